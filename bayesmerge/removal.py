r"""Removing rows of data from a trained model without training again.

At the minimum θ_0 of ℓ + ½δ‖θ‖² the rest of the data have gradient −∇ℓ_S(θ_0), so one Newton
step without the rows S is

$$\hat\theta_{\setminus S} = \theta_0 + \bar H_{\setminus S}^{-1}\nabla\ell_S(\theta_0),
\qquad \bar H_{\setminus S} = \delta I + \sum_{i \notin S}\nabla^2\ell_i(\theta_0),$$

the mode of `remove(q, expand(part, θ_0))`, exact for least squares (GMA-14, Cook 1977).
"""

import warnings
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from bayesmerge.arrays import in_row_order, to_numpy
from bayesmerge.families.checks import (
    ConvergenceWarning,
    is_concrete,
    require,
    require_finite,
    tell,
)
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.precision import DensePrecision, Full
from bayesmerge.fit.conjugate_gradients import diagonal_of, solved
from bayesmerge.fit.curvature import Kind, curvature_product, curvature_rows, require_known
from bayesmerge.fit.curvature import curvature as curvature_of
from bayesmerge.fit.optimise import (
    NEGLIGIBLE,
    Method,
    Objective,
    as_fitted_prior,
    search,
)
from bayesmerge.fit.target import Target
from bayesmerge.fit.undetermined import explained
from bayesmerge.linear_algebra import cho_solve, cholesky

Without: TypeAlias = Literal["newton", "influence"]
Solver: TypeAlias = Literal["cholesky", "cg"]

ENTRIES_AT_ONCE = 2**24
GROUPS_AT_ONCE = 8
NOTHING = 1e-6
"""Posterior standard deviations that nobody misses."""
NAMED_UP_TO = 2000
"""Parameters of which errors name those that are undetermined: that takes a matrix."""


def leave_out(
    target: Target,
    rows: Any = None,
    prior: AbstractGaussian | None = None,
    *,
    params: PyTree | None = None,
    curvature: Kind | None = None,
    method: Without = "newton",
    solver: Solver = "cholesky",
    weight: ArrayLike = 1.0,
    max_steps: int = 1000,
) -> PyTree:
    r"""The parameters without some of the data,
    $\hat\theta_{\setminus S} = \theta_0 + \bar H_{\setminus S}^{-1}\nabla\ell_S(\theta_0)$.

    - `target`: ℓ, N examples in arrays.
    - `rows`: S, indices (n,) or a mask (N,); (G, n) for G groups, each removed from all the data;
      `None` for every row alone, G = N, in one batched call. With a curvature other than the exact
      Hessian that takes one factorisation and two triangular solves a row.
    - `prior`: p_0, a Gaussian; `None` for a flat one.
    - `params`: θ_0, trained on all data; by default found from the prior mean.
    - `curvature`: as in `laplace`.
    - `method`: `"newton"` uses the curvature of the remaining data, H̄_∖S, and is exact for least
      squares; `"influence"` that of all data, H̄, which is cheaper still, first order in S, and the
      influence function of Koh & Liang.
    - `solver`: `"cholesky"` of a P×P matrix, or `"cg"`, conjugate gradients on products with H̄
      that never form it, where P×P does not fit.
    - `weight`: how much of each row to remove; 1 removes all, −1 counts them twice.
    - `max_steps`: of conjugate gradients.

    **Returns** θ̂_∖S, a pytree shaped as θ, with a leading axis G for G groups.

    **Warns** where `params` are further than 0.01 posterior standard deviations from the mode: the
    formula holds at the mode only. Where conjugate gradients stopped short.

    **Raises** `ValueError` for rows that are out of range or twice in a group, and for groups
    without which the remaining data leave θ undetermined. Conjugate gradients raise it where they
    meet negative curvature; in a singular direction they stay where they are.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> x, y = jnp.array([[1.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 4.0])
    >>> target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, y))
    >>> bm.leave_out(target, [2], params=jnp.array([2.0]))  # the mean of 1 and 3
    Array([2.], dtype=float32)
    >>> bm.leave_out(target, params=jnp.array([2.0])).round(4)  # every row in turn
    Array([[2.2],
           [1.8],
           [2. ]], dtype=float32)

    ```

    Source: GMA equation 14 (Cook 1977) and the unnumbered equation after 16; Koh & Liang (2017) for
    `method="influence"`.
    """
    require_known("method", method, Without)
    require_known("solver", solver, Solver)
    kind, prior, params = prepared(target, prior, params, curvature, solver)
    groups, is_one = _groups(rows, target.num_examples)
    share = _as_weight(weight, params)
    if solver == "cg":
        left, enough, distance, lengths = _conjugate_gradients(
            target, prior, params, groups, kind, method, share, max_steps
        )
        tell(_warn_if_short, (lengths,))
    elif rows is None and kind != "hessian":
        left, enough, distance, _ = every_row(target, prior, params, kind, method, share)
    else:
        left, enough, distance = _every_group(target, prior, params, groups, kind, method, share)
    tell(warn_if_far, (distance,))
    left = require_determined(left, enough, Fit(target, prior, params, kind, share, method), groups)
    return jax.tree.map(lambda x: x[0], left) if is_one else left


def _as_weight(weight: Any, params: PyTree) -> Float[Array, ""]:
    value = jnp.asarray(weight, jnp.result_type(*jax.tree.leaves(params)))
    if value.ndim:
        raise ValueError(f"weight has shape {value.shape}, and it is one number for all rows.")
    return require_finite(value, "weight")


def prepared(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree | None,
    curvature: Kind | None,
    solver: Solver,
) -> tuple[Kind, AbstractGaussian | None, PyTree]:
    held = as_fitted_prior(target, prior)
    if not isinstance(target, Target) or target.is_streamed:
        raise TypeError(
            "rows can be taken out of a `Target` whose data are arrays. For minibatches or several "
            "tasks make a target of what is to be removed: "
            "`remove(posterior, expand(part, posterior.mode()))`. That is the way for NumPyro "
            "models, too, whose rows are not known."
        )
    if not held.is_closed:
        raise TypeError(
            "prior is exact, and rows are taken out of a Gaussian posterior: pass a Gaussian one, "
            "or use `remove(posterior, expand(part, posterior.mode()))`."
        )
    if prior is not None and prior.batch_shape:
        raise ValueError(f"prior is a batch of shape {prior.batch_shape}, and there is one fit.")
    kind: Kind = curvature or ("ggn" if target.has_model else "hessian")
    if params is None and prior is None:
        raise ValueError(
            "without a prior there is nothing to start a search from: pass `params`, trained on "
            "all data, e.g. `find_mode(target, start=…, method='newton').params`, or a prior."
        )
    if params is None:
        method: Method = "newton" if solver == "cholesky" else "lbfgs"
        return kind, prior, search(target, prior, None, method, 2000).params
    params, layout = as_arrays(params, "params")
    if prior is not None:
        prior.layout.require_same(layout, "prior and params")
    params = require_finite(params, "params")
    target.check(params)
    return kind, prior, params


def _groups(rows: Any, count: int) -> tuple[Int[Array, "G n"], bool]:
    """Indices of every group, and whether there is only one and no axis for it."""
    if rows is None:
        return jnp.arange(count)[:, None], False
    if not is_concrete(rows):
        raise TypeError("rows must be known when a program is compiled: they are checked.")
    if not isinstance(rows, (list, tuple)):
        rows = to_numpy(in_row_order(rows), "rows")
    try:
        given = np.asarray(rows)
    except ValueError as error:
        raise ValueError(
            "rows are groups of different sizes: make one call for each size."
        ) from error
    if given.size == 0 or (given.dtype == bool and not given.any()):
        raise ValueError(f"rows, of shape {given.shape}, names no row: there is nothing to remove.")
    if given.dtype == bool:
        if given.shape != (count,):
            raise ValueError(
                f"rows is a mask of shape {given.shape}, and a mask of {count} rows has shape "
                f"({count},). For several groups give their indices, shape (G, n)."
            )
        given = np.flatnonzero(given)
    if given.dtype.kind not in "iu" or given.ndim not in (1, 2):
        raise ValueError(
            f"rows has dtype {given.dtype} and shape {given.shape}, and it must be indices (n,) or "
            "(G, n), or a mask (N,)."
        )
    if given.min() < -count or given.max() >= count:
        worst = given.max() if given.max() >= count else given.min()
        raise ValueError(f"rows holds {worst}, and there are {count} rows, from 0 to {count - 1}.")
    groups = np.atleast_2d(given.astype(np.int64) % count)
    ordered = np.sort(groups, axis=1)
    twice = ordered[:, 1:] == ordered[:, :-1]
    if twice.any():
        raise ValueError(
            f"rows holds {ordered[:, 1:][twice][0]} twice in one group: what has been removed "
            "cannot be removed again."
        )
    return jnp.asarray(groups), given.ndim == 1


def _subset(target: Target, rows: Int[Array, " n"]) -> Target:
    return eqx.tree_at(lambda t: t.data, target, jax.tree.map(lambda x: x[rows], target.data))


def posterior_at(
    target: Target, prior: AbstractGaussian | None, params: PyTree, kind: Kind
) -> FullGaussian:
    """A Gaussian of precision H̄ = H + H_0."""
    H = curvature_of(target, params, kind)
    factor = FullGaussian(params, DensePrecision(H, Layout.of(params)))
    return factor if prior is None else factor * prior.structured(Full())


def _added(params: PyTree, layout: Layout, step: Float[Array, " P"]) -> PyTree:
    return jax.tree.map(jnp.add, params, layout.unravel(step))


class _Factor(eqx.Module):
    """A Cholesky factor of H̄ = H + H_0, whether it is one, and how far θ_0 is from the mode."""

    precision: Float[Array, "P P"]
    lower: Float[Array, "P P"]
    distance: Float[Array, ""]

    def __init__(self, target: Target, prior: AbstractGaussian | None, params: PyTree, kind: Kind):
        layout = Layout.of(params)
        self.precision = posterior_at(target, prior, params, kind).precision.value
        self.lower = cholesky(self.precision)
        gradient = layout.ravel(Objective(target, prior).value_and_gradient(params)[1])
        self.distance = jnp.sqrt(gradient @ self.solve(gradient) / layout.size)

    def solve(self, sides: Float[Array, "P ..."]) -> Float[Array, "P ..."]:
        return cho_solve(self.lower, sides)

    def determines(self, lower: Float[Array, "P P"]) -> Bool[Array, ""]:
        """Whether the pivots of another factor stand out from rounding errors of H̄."""
        return jnp.min(jnp.diag(lower) ** 2 / jnp.diag(self.precision)) > _rounding(self.precision)


@eqx.filter_jit
def _every_group(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree,
    groups: Int[Array, "G n"],
    kind: Kind,
    method: Without,
    weight: Float[Array, ""],
) -> tuple[PyTree, Bool[Array, " G"], Float[Array, ""]]:
    """θ_0 + (H̄ − H_S)⁻¹∇ℓ_S, a P×P factorisation for each group; and what `_Factor` knows."""
    layout, whole = Layout.of(params), _Factor(target, prior, params, kind)

    def one(rows: Int[Array, " n"]) -> tuple[PyTree, Bool[Array, ""]]:
        part = _subset(target, rows)
        gradient = weight * layout.ravel(part.value_and_gradient(params)[1])
        if method == "influence":
            return _added(params, layout, whole.solve(gradient)), whole.determines(whole.lower)
        lower = cholesky(whole.precision - weight * curvature_of(part, params, kind))
        step = cho_solve(lower, gradient)
        return _added(params, layout, step), whole.determines(lower)

    left, enough = jax.lax.map(one, groups)
    return left, enough, whole.distance


@eqx.filter_jit
def every_row(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree,
    kind: Kind,
    method: Without,
    weight: Float[Array, ""],
) -> tuple[PyTree, Bool[Array, " N"], Float[Array, ""], Float[Array, " N"]]:
    """θ_0 + (H̄ − αA_iᵀA_i)⁻¹αg_i by Woodbury's identity, and leverages tr A_iH̄⁻¹A_iᵀ."""
    layout, whole = Layout.of(params), _Factor(target, prior, params, kind)

    def one(row: Int[Array, ""]) -> tuple[PyTree, Bool[Array, ""], Float[Array, ""]]:
        part = _subset(target, row[None])
        gradient = weight * layout.ravel(part.value_and_gradient(params)[1])
        A = curvature_rows(part, params, kind)[:, 0]
        solved = whole.solve(jnp.concatenate([gradient[:, None], A.T], axis=1))
        step, spread = solved[:, 0], solved[:, 1:]
        leverage, enough = A @ spread, whole.determines(whole.lower)
        if method == "newton":
            inner = cholesky(jnp.eye(len(A), dtype=A.dtype) - weight * leverage)
            step = step + weight * spread @ cho_solve(inner, A @ step)
            enough = enough & (jnp.min(jnp.diag(inner) ** 2) > _rounding(whole.precision))
        return _added(params, layout, step), enough, jnp.trace(leverage)

    _, example = target.first_batch()
    outputs = jax.eval_shape(target.loss, params, example).size
    if target.has_model:
        outputs = jax.eval_shape(target.loss.model, params, example[0]).size  # type: ignore[attr-defined]
    count = target.num_examples
    entries = layout.size**2 + 4 * (outputs // count) ** 2
    rows_at_once = max(1, ENTRIES_AT_ONCE // entries)
    left, enough, leverage = jax.lax.map(one, jnp.arange(count), batch_size=rows_at_once)
    return left, enough, whole.distance, leverage


@eqx.filter_jit
def _conjugate_gradients(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree,
    groups: Int[Array, "G n"],
    kind: Kind,
    method: Without,
    weight: Float[Array, ""],
    max_steps: int,
) -> tuple[PyTree, Bool[Array, " G"], Float[Array, ""], Float[Array, "G 2"]]:
    """θ_0 + H̄_∖S⁻¹∇ℓ_S from products with H̄_∖S, whether these determine it, how far θ_0 is from
    the mode, and the lengths of the steps and of what is missing of them."""
    layout = Layout.of(params)
    options: Any = {"tolerance": _cg_tolerance(layout), "max_steps": max_steps}
    diagonal = diagonal_of(target, prior, params, kind)

    def whole(vector: Float[Array, " P"]) -> Float[Array, " P"]:
        v = layout.unravel(vector)
        product = layout.ravel(curvature_product(target, params, v, kind))
        return product if prior is None else product + layout.ravel(prior.multiply(v))

    def one(rows: Int[Array, " n"]) -> tuple[PyTree, Bool[Array, ""], Float[Array, " 2"]]:
        part = _subset(target, rows)
        gradient = weight * layout.ravel(part.value_and_gradient(params)[1])

        def remaining(vector: Float[Array, " P"]) -> Float[Array, " P"]:
            if method == "influence":
                return whole(vector)
            gone = curvature_product(part, params, layout.unravel(vector), kind)
            return whole(vector) - weight * layout.ravel(gone)

        found = solved(remaining, diagonal, gradient, **options)
        lengths = jnp.stack([found.length, found.missing]) / layout.size**0.5
        return _added(params, layout, found.x), found.determined, lengths

    gradient = layout.ravel(Objective(target, prior).value_and_gradient(params)[1])
    away = solved(whole, diagonal, gradient, **options | {"tolerance": 0.1})
    left, enough, lengths = jax.lax.map(one, groups, batch_size=GROUPS_AT_ONCE)
    return left, enough, away.length / layout.size**0.5, lengths


def warn_if_far(distance: Any) -> None:
    if not distance <= NEGLIGIBLE:
        warnings.warn(
            f"params are {float(distance):.2g} posterior standard deviations (root mean square) "
            "from the mode, and removal is computed as if they were the mode. Train to a minimum "
            "of the summed loss plus prior, e.g. by `find_mode(…, start=params, method='newton')`.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _cg_tolerance(layout: Layout) -> float:
    return max(float(jnp.finfo(dtype).eps) for dtype in layout.dtypes) ** 0.75


def _warn_if_short(lengths: Any) -> None:
    length, missing = np.moveaxis(np.asarray(lengths), -1, 0)
    short = ~((missing <= NEGLIGIBLE * length) | (missing < NOTHING))
    if short.any():
        worst = int(np.argmax(np.where(short, missing, 0)))
        warnings.warn(
            f"conjugate gradients stopped about {missing[worst]:.2g} posterior standard deviations "
            f"(root mean square) short of the parameters without the rows, on a way of "
            f"{length[worst]:.2g}, for {short.sum()} of {len(short)} groups. Allow more "
            "`max_steps`, centre the inputs, use a stronger prior or float64, or use "
            "solver='cholesky'.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _rounding(precision: Float[Array, "P P"]) -> float:
    return 20 * len(precision) ** 0.5 * float(jnp.finfo(precision.dtype).eps)


class Fit(NamedTuple):
    """What rows are removed from, and how."""

    target: Target
    prior: AbstractGaussian | None
    params: PyTree
    kind: Kind
    weight: Float[Array, ""]
    method: Without


def require_determined(
    left: PyTree, enough: Bool[Array, " G"], fit: Fit, groups: Int[Array, "G n"]
) -> PyTree:
    """`left`, or an error that names what is undetermined without rows."""
    message = (
        "without these rows the rest of the data and the prior leave the parameters undetermined "
        "(the remaining precision is not positive definite)."
    )

    def which() -> str:
        bad = np.flatnonzero(~np.asarray(enough))
        some = f"So it is for {len(bad)} of {len(enough)} groups, the first being group {bad[0]}."
        if Layout.of(fit.params).size > NAMED_UP_TO:
            return f"{some} Remove fewer rows, leave parameters out, or use a stronger prior."
        target, prior, params, kind = fit.target, fit.prior, fit.params, fit.kind
        precision = posterior_at(target, prior, params, kind).precision.value
        whole = _is_determined(precision)
        if whole and fit.method == "newton":
            gone = curvature_of(_subset(target, groups[bad[0]]), params, kind)
            precision = precision - fit.weight * gone
        before = "Remove fewer rows." if whole else "They are so with all rows, too."
        why = explained(target, params, kind, precision, prior is not None)
        return f"{some} {before} {why}"

    return require(left, jnp.all(enough), message, which)


def _is_determined(precision: Float[Array, "P P"]) -> bool:
    lower = cholesky(precision)
    pivots = jnp.diag(lower) ** 2 / jnp.diag(precision)
    return bool(jnp.min(pivots) > _rounding(precision))
