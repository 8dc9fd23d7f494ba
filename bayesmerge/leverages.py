"""Which rows of data a fit hangs on: leverage, DFBETAs and Cook's distance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import tell
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.show import number, safely, table
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.curvature import Kind
from bayesmerge.fit.target import Target
from bayesmerge.removal import (
    Fit,
    every_row,
    posterior_at,
    prepared,
    require_determined,
    warn_if_far,
)


class Influence(NamedTuple):
    """What every row does to a fit.

    - `leverage`: h_i, trace of the curvature of row i in units of H̄; (N,).
    - `dfbeta`: θ_0 − θ̂_∖i, a pytree shaped as θ with a leading axis N.
    - `dfbetas`: the same in standard errors of the parameters.
    - `cooks_distance`: ‖θ_0 − θ̂_∖i‖²_H̄/(Pφ), (N,).
    - `dispersion`: φ, the variance of the noise.
    """

    def __repr__(self) -> str:
        """The rows with the largest of Cook's distances."""
        return _show(self)

    leverage: Float[Array, " N"]
    dfbeta: PyTree
    dfbetas: PyTree
    cooks_distance: Float[Array, " N"]
    dispersion: Float[Array, ""]


@safely
def _show(found: Influence) -> str:
    distance = np.asarray(found.cooks_distance)
    rows = np.argsort(-distance)
    columns = {"Cook's distance": distance[rows], "leverage": np.asarray(found.leverage)[rows]}
    head = (
        f"Influence of {len(rows)} rows, the largest first; dispersion {number(found.dispersion)}"
    )
    return f"{head}\n{table(columns, [f'row {i}' for i in rows], 5)}"


def influence(
    target: Target,
    prior: AbstractGaussian | None = None,
    *,
    params: PyTree | None = None,
    curvature: Kind | None = None,
    dispersion: float | None = None,
) -> Influence:
    r"""Cook's distances, DFBETAs and leverages of all rows,
    $D_i = \|\theta_0 - \hat\theta_{\setminus i}\|^2_{\bar H}/(P\varphi)$.

    For linear regression these are the classical ones, exactly; for other supervised models those
    of one Newton step (GGN) without the row, as is usual for generalised linear models.

    - `target`: ℓ, made by `Target.supervised`, N examples in arrays.
    - `prior`, `params`, `curvature`: as in `leave_out`.
    - `dispersion`: φ, by which the losses should have been divided. `None` estimates it for a
      Gaussian likelihood of one output under a flat prior, as Σr²/(N−P), and for the standard
      errors in DFBETAs without row i; it is 1 otherwise.

    **Returns** an `Influence`.

    **Warns** where `params` are not the mode, as `leave_out`.

    **Raises** `ValueError` where a row alone determines a parameter (leverage 1), or N ≤ P + 1
    leaves nothing to estimate φ from.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> x, y = jnp.array([[1.0], [1.0], [1.0], [1.0]]), jnp.array([0.0, 0.0, 1.0, 7.0])
    >>> target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, y))
    >>> bm.influence(target, params=jnp.array([2.0])).cooks_distance.round(3)
    Array([0.157, 0.157, 0.039, 0.98 ], dtype=float32)

    ```

    Source: Cook (1977); Belsley, Kuh & Welsch (1980); GMA equation 14.
    """
    kind, prior, params = prepared(target, prior, params, curvature, "cholesky")
    if kind == "hessian":
        ggn = "'ggn' or " if target.has_model else ""
        made = (
            "" if target.has_model else " (or make the target by `Target.supervised`, for the GGN)"
        )
        raise ValueError(
            f"leverages need a curvature with a root: use curvature={ggn}'squared_gradients'{made}."
        )
    if dispersion is not None and not 0 < dispersion < np.inf:
        raise ValueError(f"dispersion is {dispersion}, and a variance is positive and finite.")
    one = jnp.ones((), jnp.result_type(*jax.tree.leaves(params)))
    left, enough, distance, leverage = every_row(target, prior, params, kind, "newton", one)
    tell(warn_if_far, (distance,))
    fit = Fit(target, prior, params, kind, one, "newton")
    left = require_determined(left, enough, fit, jnp.arange(len(enough))[:, None])
    dfbeta = jax.tree.map(lambda x, y: x[None] - y, params, left)
    q = posterior_at(target, prior, params, kind)
    overall, without = _dispersions(target, prior, params, leverage, dispersion)

    def standardised(change: Array, variance: Array) -> Array:
        phi = without.reshape((-1,) + (1,) * variance.ndim)
        return change / jnp.sqrt(phi * variance[None])

    squared = jax.vmap(lambda change: tree_dot(change, q.multiply(change)))(dfbeta)
    return Influence(
        leverage,
        dfbeta,
        jax.tree.map(standardised, dfbeta, q.variance()),
        squared / (q.layout.size * overall),
        overall,
    )


def _dispersions(
    target: Target,
    prior: AbstractGaussian | None,
    params: PyTree,
    leverage: Float[Array, " N"],
    given: float | None,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """φ from all rows, and without each."""
    size, count = Layout.of(params).size, len(leverage)
    likelihood = getattr(target.loss, "likelihood", None)
    is_estimated = given is None and prior is None and getattr(likelihood, "name", "") == "gaussian"
    if not is_estimated:
        overall = jnp.asarray(1.0 if given is None else given, leverage.dtype)
        return overall, jnp.broadcast_to(overall, (count,))
    if np.prod(jax.eval_shape(target.loss.model, params, target.data[0]).shape) != count:  # type: ignore[attr-defined]
        raise ValueError(
            "the dispersion of a model with several outputs has no one estimate: pass `dispersion`."
        )
    if count <= size + 1:
        raise ValueError(
            f"{count} rows and {size} parameters leave no degree of freedom to estimate the "
            "dispersion without one row: pass `dispersion`, or take fewer parameters."
        )
    squares = 2 * target.loss(params, target.data)
    total = jnp.sum(squares)
    without = (total - squares / (1 - leverage)) / (count - size - 1)
    return total / (count - size), without
