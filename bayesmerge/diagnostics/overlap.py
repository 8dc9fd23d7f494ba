"""Whether tasks agree, from the product of their posteriors alone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.diagnostics.difference import as_gaussian, entries
from bayesmerge.families.layout import Layout
from bayesmerge.families.show import number, safely, table
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.tilted import likelihood_factor
from bayesmerge.linear_algebra import eigh
from bayesmerge.merging import combined
from bayesmerge.priors import AbstractPrior, Prior, as_prior
from bayesmerge.tasks import as_weights, named


def _negligible(x: Array) -> float:
    """The share of variance that a task takes away, below which it says nothing of a direction:
    half the digits, as much as inverses of ill-conditioned precisions lose."""
    return float(jnp.finfo(x.dtype).eps) ** 0.5


class Overlap(eqx.Module):
    r"""How well task posteriors agree, from their product alone.

    - `log_normaliser`: $\log\int p_0^\gamma\prod_t q_t^{\alpha_t}\,d\theta$: the log Bayes factor
      of one θ for all tasks against a θ of its own for each.
    - `by_task`: for every task $\log\int q_{-t}(\theta)\,\hat L_t(\theta)^{\alpha_t}d\theta$, the
      log Bayes factor of sharing θ with the others, q_{−t} their merge and L̂_t = q_t/p_0.
    - `surprise`: for every task, shaped as θ, $z_i = \Delta_i/\sqrt{S_{-t,ii} - S_{ii}}$, the
      change Δ of the merged mode when task t comes in, in the standard deviations it would have
      under agreement. 0 where a task says nothing.
    - `chi_squared`: for every task χ² = Δᵀ(S_{−t} − S)⁺Δ and the number of directions in which
      the task says something, its degrees of freedom.
    - `p_value`: for every task the probability of a χ² as large under agreement.
    """

    __repr__ = safely(lambda found: _show(found))

    log_normaliser: Float[Array, ""]
    by_task: dict[str, Float[Array, ""]]
    surprise: dict[str, PyTree]
    chi_squared: dict[str, tuple[float, int]]
    p_value: dict[str, float]


def _show(found: Overlap) -> str:
    most = [np.max(np.abs(entries(z)[1])) for z in found.surprise.values()]
    columns = {
        "log Bayes factor": list(found.by_task.values()),
        "p": list(found.p_value.values()),
        "most |z|": most,
    }
    head = f"Overlap of {len(most)} tasks: log-normaliser {number(found.log_normaliser)}"
    return f"{head}\n{table(columns, list(found.by_task), None)}"


def overlap(posteriors: Any, weights: Any, prior: Prior = None) -> Overlap:
    r"""The log-normaliser of a product of posteriors as a measure of conflict, by task and by
    parameter: no data are read.

    - `posteriors`, `weights`, `prior`: q_t, α and p_0, as in `merge`. Gaussians; at least two.

    **Returns** an `Overlap`.

    **Raises** `ValueError` for a single task, or where the others of some task are improper without
    it.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.diagnostics import overlap
    >>> q = [bm.IsotropicGaussian.from_mean_precision(jnp.array(m), 1.0) for m in (0.0, 0.5, 6.0)]
    >>> found = overlap(q, [1.0, 1.0, 1.0])
    >>> [f"{found.surprise[t]:.2f}" for t in "012"], f"{found.p_value['2']:.0e}"
    (['-2.65', '-2.04', '4.69'], '3e-06')

    ```

    Source: Cochran (1954) and Marshall & Spiegelhalter (2007).
    """
    names, qs = named(posteriors, "posteriors")
    alpha = as_weights(weights, names)
    if alpha.ndim != 1:
        raise ValueError(f"weights have shape {alpha.shape}: overlaps are those of one merge.")
    if len(names) < 2:
        raise ValueError("there is one task, and an overlap needs at least two.")
    merged = as_gaussian(combined(qs, alpha, prior))
    mode = merged.mode()
    held = as_prior(prior)
    total, by_task = -held.energy(mode) - merged.log_prob(mode), {}
    surprise, statistic = {}, {}
    for name, q, weight in zip(names, qs, alpha, strict=True):
        factor = likelihood_factor(q, prior) ** weight
        log_factor = weight.astype(merged.log_prob(mode).dtype) * _log_factor(q, held, mode)
        others = merged / factor
        if not bool(others.is_proper()):
            raise ValueError(
                f"without task '{name}' the merged posterior is improper, and there is nothing to "
                "compare it with. Pass a prior, or more tasks."
            )
        total = total + log_factor
        by_task[name] = log_factor + others.log_prob(mode) - merged.log_prob(mode)
        surprise[name], statistic[name] = _surprise(others, merged)
    p_value = {name: tail(*found) for name, found in statistic.items()}
    return Overlap(total, by_task, surprise, statistic, p_value)


def tail(statistic: float, directions: int) -> float:
    """The probability of a χ² as large."""
    from scipy.stats import chi2

    return float(chi2.sf(statistic, directions)) if directions else 1.0


def _log_factor(q: Any, prior: AbstractPrior, theta: PyTree) -> Float[Array, ""]:
    """log q(θ)/p̂_0(θ), p̂_0 the prior or what stands for it in q."""
    if prior.is_closed:
        return q.log_prob(theta) + prior.energy(theta)
    at = q.mode()
    site = prior.site(at, q.precision.structure)
    return q.log_prob(theta) + prior.energy(at) - site.log_ratio(theta, at)


def _surprise(others: Any, merged: Any) -> tuple[PyTree, tuple[float, int]]:
    """z_i of every parameter, and χ² with its degrees of freedom."""
    change = jax.tree.map(jnp.subtract, merged.mode(), others.mode())
    before, after = others.variance(), merged.variance()
    z = jax.tree.map(_standardised, change, before, after)
    if not others.precision.structure.is_entrywise:
        layout: Layout = others.layout
        scale = jnp.sqrt(layout.ravel(before))
        taken = (others.covariance() - merged.covariance()) / jnp.outer(scale, scale)
        shares, directions = eigh(0.5 * (taken + taken.T))
        along = directions.T @ (layout.ravel(change) / scale)
        told = shares > _negligible(shares)
        statistic = jnp.sum(jnp.where(told, along**2 / jnp.where(told, shares, 1.0), 0.0))
        directions_told = int(jnp.sum(told))
    else:
        told = jax.tree.map(lambda x, y: int(jnp.sum(_is_told(x, y))), before, after)
        statistic, directions_told = tree_dot(z, z), sum(jax.tree.leaves(told))
    return z, (float(statistic), directions_told)


def _is_told(before: Array, after: Array) -> Array:
    return before - after > _negligible(before) * before


def _standardised(change: Array, before: Array, after: Array) -> Array:
    told = _is_told(before, after)
    return jnp.where(told, change / jnp.sqrt(jnp.where(told, before - after, 1.0)), 0.0)
