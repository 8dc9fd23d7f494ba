r"""Removing rows of data from a trained model without training again.

At the minimum θ_0 of ℓ + ½δ‖θ‖² the rest of the data have gradient −∇ℓ_S(θ_0), so one Newton
step without the rows S is

$$\hat\theta_{\setminus S} = \theta_0 + \bar H_{\setminus S}^{-1}\nabla\ell_S(\theta_0),
\qquad \bar H_{\setminus S} = \delta I + \sum_{i \notin S}\nabla^2\ell_i(\theta_0),$$

the mode of `remove(q, expand(part, θ_0))`, exact for least squares (GMA-14, Cook 1977).
"""

import warnings
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float, Int, PyTree

from bayesmerge.families.base import tree_dot
from bayesmerge.families.checks import all_finite, is_concrete, require, require_finite
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.fit.curvature import Kind, curvature_product, curvature_rows
from bayesmerge.fit.curvature import curvature as curvature_of
from bayesmerge.fit.optimise import ConvergenceWarning, Method, require_kinds, search, tell
from bayesmerge.fit.target import Target, num_examples

Without: TypeAlias = Literal["newton", "influence"]
Solver: TypeAlias = Literal["cholesky", "cg"]

ENTRIES_AT_ONCE = 2**24
GROUPS_AT_ONCE = 8
TINY = 1e-37


def leave_out(
    target: Target,
    rows: Any = None,
    prior: AbstractGaussian | None = None,
    *,
    params: PyTree | None = None,
    curvature: Kind | None = None,
    method: Without = "newton",
    solver: Solver = "cholesky",
    weight: float = 1.0,
    max_steps: int = 1000,
) -> PyTree:
    r"""The parameters without some of the data,
    $\hat\theta_{\setminus S} = \theta_0 + \bar H_{\setminus S}^{-1}\nabla\ell_S(\theta_0)$.

    - `target`: ℓ, N examples in arrays.
    - `rows`: S, indices (n,) or a mask (N,); (G, n) for G groups, each removed from all the data;
      `None` for every row alone, G = N, in one batched call. With a curvature other than the exact
      Hessian that takes one factorisation and two triangular solves a row.
    - `prior`: p_0; `None` for that of the target, or else a flat one.
    - `params`: θ_0, trained on all data; by default found from the prior mean.
    - `curvature`: as in `laplace`.
    - `method`: `"newton"` uses the curvature of the remaining data, H̄_∖S, and is exact for least
      squares; `"influence"` that of all data, H̄, which is cheaper still, first order in S, and the
      influence function of Koh & Liang.
    - `solver`: `"cholesky"` of a P×P matrix, or `"cg"`, conjugate gradients on products with H̄
      that never form it, where P×P does not fit.
    - `weight`: how much of each row to remove; 1 removes all.
    - `max_steps`: of conjugate gradients.

    **Returns** θ̂_∖S, a pytree shaped as θ, with a leading axis G for G groups.

    **Warns** where conjugate gradients stopped short.

    **Raises** `ValueError` for rows that are out of range or twice in a group, and for groups
    without which the remaining data leave θ undetermined.

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

    Source: GMA equation 14 (Cook 1977) and the unnumbered equation after 16 (Koh & Liang 2017).
    """
    _require_one_of("method", method, Without)
    _require_one_of("solver", solver, Solver)
    kind, prior, params = prepared(target, prior, params, curvature, solver)
    groups, is_one = _groups(rows, num_examples(target.data))
    if solver == "cg":
        left, residual = _conjugate_gradients(
            target, prior, params, groups, kind, method, weight, max_steps
        )
        tell(_warn_if_short, (residual,), tolerance=_cg_tolerance(Layout.of(params)))
        enough = all_finite(left) & jnp.ones(len(groups), bool)
    elif rows is None and kind != "hessian":
        left, enough, _ = every_row(target, prior, params, kind, method, weight)
    else:
        left, enough = _every_group(target, prior, params, groups, kind, method, weight)
    left = require_determined(left, enough)
    return jax.tree.map(lambda x: x[0], left) if is_one else left


def _require_one_of(name: str, value: Any, known: Any) -> None:
    if value not in get_args(known):
        raise ValueError(f"{name} is {value!r}, and it must be one of {get_args(known)}.")


def prepared(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree | None,
    curvature: Kind | None,
    solver: Solver,
) -> tuple[Kind, AbstractGaussian | None, PyTree]:
    require_kinds(target, prior)
    if not isinstance(target, Target) or target.is_streamed:
        raise TypeError(
            "rows can be taken out of a `Target` whose data are arrays. For minibatches or several "
            "tasks make a target of what is to be removed: "
            "`remove(posterior, expand(part, posterior.mode()))`."
        )
    prior = target.prior if prior is None else prior
    kind: Kind = curvature or ("ggn" if target.has_model else "hessian")
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
    given = np.asarray(rows)
    if given.dtype == bool:
        if given.shape != (count,):
            raise ValueError(
                f"rows is a mask of shape {given.shape}, and a mask of {count} rows has shape "
                f"({count},). For several groups give their indices, shape (G, n)."
            )
        given = np.flatnonzero(given)
    if given.dtype.kind not in "iu" or given.ndim not in (1, 2) or given.size == 0:
        raise ValueError(
            f"rows has dtype {given.dtype} and shape {given.shape}, and it must be indices (n,) or "
            "(G, n), at least one, or a mask (N,). Groups of different sizes: one call for each."
        )
    if given.min() < -count or given.max() >= count:
        worst = given.max() if given.max() >= count else given.min()
        raise ValueError(f"rows holds {worst}, and there are {count} rows, from 0 to {count - 1}.")
    groups = np.atleast_2d(given % count)
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
    factor = FullGaussian(linear=params, precision=H, layout=Layout.of(params))
    return factor if prior is None else factor * prior


def _added(params: PyTree, layout: Layout, step: Float[Array, " P"]) -> PyTree:
    return jax.tree.map(jnp.add, params, layout.unravel(step))


@eqx.filter_jit
def _every_group(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree,
    groups: Int[Array, "G n"],
    kind: Kind,
    method: Without,
    weight: float,
) -> tuple[PyTree, Bool[Array, " G"]]:
    """θ_0 + (H̄ − H_S)⁻¹∇ℓ_S, a P×P factorisation for each group."""
    layout = Layout.of(params)
    precision = posterior_at(target, prior, params, kind).precision

    def one(rows: Int[Array, " n"]) -> tuple[PyTree, Bool[Array, ""]]:
        part = _subset(target, rows)
        gradient = weight * layout.ravel(part.value_and_gradient(params)[1])
        left = precision
        if method == "newton":
            left = precision - weight * curvature_of(part, params, kind)
        factor = jnp.linalg.cholesky(left)
        pivots = jnp.diag(factor) ** 2 / jnp.diag(precision)
        step = cho_solve((factor, True), gradient)
        return _added(params, layout, step), jnp.min(pivots) > _negligible(precision)

    return jax.lax.map(one, groups)


@eqx.filter_jit
def every_row(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree,
    kind: Kind,
    method: Without,
    weight: float,
) -> tuple[PyTree, Bool[Array, " N"], Float[Array, " N"]]:
    """θ_0 + (H̄ − A_iᵀA_i)⁻¹g_i by Woodbury's identity, and leverages tr A_iH̄⁻¹A_iᵀ."""
    layout = Layout.of(params)
    precision = posterior_at(target, prior, params, kind).precision
    factor = (jnp.linalg.cholesky(precision), True)

    def one(row: Int[Array, ""]) -> tuple[PyTree, Bool[Array, ""], Float[Array, ""]]:
        part = _subset(target, row[None])
        gradient = weight * layout.ravel(part.value_and_gradient(params)[1])
        A = jnp.sqrt(weight) * curvature_rows(part, params, kind)[:, 0]
        solved = cho_solve(factor, jnp.concatenate([gradient[:, None], A.T], axis=1))
        step, spread = solved[:, 0], solved[:, 1:]
        leverage = A @ spread
        inner = jnp.linalg.cholesky(jnp.eye(len(A), dtype=A.dtype) - leverage)
        if method == "newton":
            step = step + spread @ cho_solve((inner, True), A @ step)
        enough = jnp.min(jnp.diag(inner) ** 2) > _negligible(precision)
        return _added(params, layout, step), enough, jnp.trace(leverage) / weight

    at_once = max(1, ENTRIES_AT_ONCE // precision.size)
    count = num_examples(target.data)
    return jax.lax.map(one, jnp.arange(count), batch_size=max(at_once, GROUPS_AT_ONCE))


@eqx.filter_jit
def _conjugate_gradients(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree,
    groups: Int[Array, "G n"],
    kind: Kind,
    method: Without,
    weight: float,
    max_steps: int,
) -> tuple[PyTree, Float[Array, " G"]]:
    """θ_0 + H̄_∖S⁻¹∇ℓ_S from products with H̄_∖S, and the relative residuals left."""
    tolerance = _cg_tolerance(Layout.of(params))

    def one(rows: Int[Array, " n"]) -> tuple[PyTree, Float[Array, ""]]:
        part = _subset(target, rows)
        gradient = jax.tree.map(lambda g: weight * g, part.value_and_gradient(params)[1])

        def product(vector: PyTree) -> PyTree:
            left = curvature_product(target, params, vector, kind)
            if method == "newton":
                gone = curvature_product(part, params, vector, kind)
                left = jax.tree.map(lambda x, y: x - weight * y, left, gone)
            return left if prior is None else jax.tree.map(jnp.add, left, prior.multiply(vector))

        step, _ = cg(product, gradient, tol=tolerance, maxiter=max_steps)
        short = jax.tree.map(jnp.subtract, gradient, product(step))
        squared = tree_dot(short, short) / jnp.maximum(tree_dot(gradient, gradient), TINY)
        return jax.tree.map(jnp.add, params, step), jnp.sqrt(squared)

    return jax.lax.map(one, groups, batch_size=GROUPS_AT_ONCE)


def _cg_tolerance(layout: Layout) -> float:
    return float(jnp.finfo(jnp.result_type(*layout.dtypes)).eps) ** 0.75


def _warn_if_short(residual: Any, tolerance: float) -> None:
    worst = float(np.max(residual))
    if not worst <= 100 * tolerance:
        warnings.warn(
            f"conjugate gradients left a relative residual of {worst:.2g}. Allow more `max_steps`, "
            "use a stronger prior, scale the inputs, or use solver='cholesky'.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _negligible(precision: Float[Array, "P P"]) -> float:
    return 10 * len(precision) * float(jnp.finfo(precision.dtype).eps)


def require_determined(left: PyTree, enough: Bool[Array, " G"]) -> PyTree:
    message = (
        "without these rows the rest of the data and the prior leave the parameters undetermined "
        "(the remaining precision is not positive definite). Remove fewer rows, use a prior or a "
        "stronger one, or curvature='ggn', which is never indefinite."
    )

    def which() -> str:
        bad = np.flatnonzero(~np.asarray(enough))
        return f"So it is for {len(bad)} groups, the first being group {bad[0]}."

    return require(left, jnp.all(enough), message, which)
