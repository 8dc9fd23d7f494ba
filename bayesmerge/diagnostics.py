"""What a careful person asks of a merged posterior before using it."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind
from bayesmerge.fit.expand import expand
from bayesmerge.fit.target import JointTarget
from bayesmerge.fit.tilted import likelihood_factor
from bayesmerge.merging import merge
from bayesmerge.refinement import refine
from bayesmerge.tasks import as_weights, matched, named

LogDensity: TypeAlias = Callable[[Any], Any]

MUCH = 0.5
"""A shift in posterior standard deviations worth a warning."""
UNRELIABLE = 0.7
"""Pareto's k from which importance weights have too heavy a tail (Vehtari et al. 2024)."""
SURPRISING = 0.001
"""The probability of a conflict as large, were there none, below which it is worth a warning."""
EQUAL = 1e-8
"""A range of log weights within which they have no tail."""

DIRECTIONS = 1e-6
"""Shares of variance that a task takes away, below which it says nothing of a direction."""


class MergeWarning(UserWarning):
    """A merged posterior is not what joint training would give."""


class Difference(eqx.Module):
    r"""How far a posterior q is from a reference p, parameter by parameter.

    - `shift`: (mode q − mode p) / sd p, shaped as θ.
    - `spread`: sd q / sd p, shaped as θ.
    - `divergence`: KL(p ‖ q), in nats.
    """

    shift: PyTree
    spread: PyTree
    divergence: Float[Array, ""]

    @property
    def largest(self) -> tuple[str, float]:
        """The parameter with the largest shift, and that shift."""
        names, shifts = _entries(self.shift)
        worst = int(np.argmax(np.abs(shifts)))
        return names[worst], float(shifts[worst])


class Overlap(eqx.Module):
    r"""How well task posteriors agree, from their product alone.

    - `log_normaliser`: $\log\int p_0^\gamma\prod_t q_t^{\alpha_t}\,d\theta$: the log Bayes factor
      of one θ for all tasks against a θ of its own for each.
    - `by_task`: for every task $\log\int q_{-t}(\theta)\,\hat L_t(\theta)^{\alpha_t}d\theta$, the
      log Bayes factor of sharing θ with the others, q_{−t} their merge and L̂_t = q_t/p_0.
    - `surprise`: for every task, shaped as θ, $z_i = \Delta_i/\sqrt{S_{-t,ii} - S_{ii}}$, the
      change Δ of the merged mode when task t comes in, in the standard deviations it would have
      under agreement. 0 where a task says nothing.
    - `p_value`: for every task the probability of a change as large under agreement, of
      χ² = Δᵀ(S_{−t} − S)⁺Δ.
    """

    log_normaliser: Float[Array, ""]
    by_task: dict[str, Float[Array, ""]]
    surprise: dict[str, PyTree]
    p_value: dict[str, float]


class Reweighted(eqx.Module):
    r"""Draws θ_s ~ q with importance weights w_s ∝ p(θ_s)/q(θ_s).

    - `k`: Pareto's k of the weights' tail, −∞ where all are equal. Below 0.7 the weights are
      reliable, and q not far from p.
    - `effective_samples`: 1 / Σ w_s², of smoothed weights.
    - `draws`: θ_s, with a leading axis.
    - `log_weights`: log w_s, smoothed and normalised.
    """

    k: float
    effective_samples: float
    draws: PyTree
    log_weights: Float[np.ndarray, " S"]

    def mean(self) -> PyTree:
        """Σ w_sθ_s, the mean of p."""
        w = jnp.exp(self.log_weights)
        return jax.tree.map(lambda x: jnp.tensordot(w.astype(x.dtype), x, 1), self.draws)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; as text, a table by parameter.

    - `merged`: the Gaussian that was looked at.
    - `refined`: the `Difference` to the merge after one refinement, an estimate of that to the
      Laplace posterior of all data; `None` where that has no maximum.
    - `overlap`: the `Overlap` of the tasks, `None` for a single one.
    - `reweighted`: `Reweighted` to the exact posterior, `None` without a key.
    - `reference`: the `Difference` to a posterior of all data, where one was given.
    - `concerns`: what was warned of, in words.
    """

    merged: AbstractGaussian
    refined: Difference | None
    overlap: Overlap | None
    reweighted: Reweighted | None
    reference: Difference | None
    concerns: tuple[str, ...]

    def __str__(self) -> str:
        names, mode = _entries(self.merged.mode())
        columns = {"mode": mode, "sd": np.sqrt(_entries(self.merged.variance())[1])}
        if self.refined is not None:
            columns["shift/sd"] = _entries(self.refined.shift)[1]
            columns["sd ratio"] = _entries(self.refined.spread)[1]
        if self.overlap is not None:
            surprises = np.stack([_entries(z)[1] for z in self.overlap.surprise.values()])
            columns["most |z|"] = np.max(np.abs(surprises), axis=0)
        if self.reference is not None:
            columns["shift/sd of reference"] = _entries(self.reference.shift)[1]
        width = max(len(name) for name in names)
        lines = [" " * width + "".join(f"  {title:>10}" for title in columns)]
        for i, name in enumerate(names):
            cells = [f"  {column[i]:>{max(10, len(t))}.3g}" for t, column in columns.items()]
            lines.append(f"{name:<{width}}" + "".join(cells))
        if self.overlap is not None:
            for task, p in self.overlap.p_value.items():
                factor = float(self.overlap.by_task[task])
                lines.append(f"task {task}: log Bayes factor of sharing {factor:.3g}, p = {p:.2g}")
        if self.reweighted is not None:
            lines.append(
                f"importance weights: k = {self.reweighted.k:.2f}, effective samples "
                f"{self.reweighted.effective_samples:.0f} of {len(self.reweighted.log_weights)}"
            )
        return "\n".join([*lines, *self.concerns])


def diagnose(
    targets: Any,
    posteriors: Any,
    weights: Any,
    prior: Any = None,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
    curvature: Kind | None = None,
    reference: AbstractGaussian | None = None,
) -> Diagnosis:
    r"""What is wrong with a merge, if anything, and what would help.

    - `targets`: ℓ_t, T targets or a mapping from task names to them.
    - `posteriors`, `weights`, `prior`: q_t, α and p_0, as in `merge`; the prior by default that of
      the targets.
    - `key`, `num_samples`: of draws from the merged posterior, for importance weights to the exact
      one, $p_0\prod_t e^{-\alpha_t\ell_t}$. Without a key there are none.
    - `curvature`: of the refinement, as in `expand`.
    - `reference`: a posterior of all data, where one can be afforded.

    **Returns** a `Diagnosis`, to be printed.

    **Warns** with a `bayesmerge.diagnostics.MergeWarning` where one refinement moves a parameter by
    more than half a posterior standard deviation (Laplace shards with an unknown noise scale do
    that), where tasks conflict (p < 0.001), and where Pareto's k is above 0.7.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, y):
    ...     return 0.5 * (y - theta) ** 2
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> tasks = {"a": bm.Target(loss, jnp.array([1.0]), prior=prior),
    ...          "b": bm.Target(loss, jnp.array([4.0]), prior=prior)}
    >>> found = bm.diagnose(tasks, {n: bm.laplace(t) for n, t in tasks.items()}, [1.0, 1.0])
    >>> print(found)
                 mode          sd    shift/sd    sd ratio    most |z|
    theta        1.67       0.577           0           1        2.86
    task a: log Bayes factor of sharing 0.0605, p = 0.41
    task b: log Bayes factor of sharing 0.0605, p = 0.0043

    ```

    Source: GMA §1.5 for the refinement; Marshall & Spiegelhalter (2007) for conflicts; Vehtari,
    Simpson, Gelman, Yao & Gabry (2024) for Pareto's k.
    """
    names, losses = named(targets, "targets")
    qs = dict(zip(names, matched(posteriors, names, "posteriors"), strict=True))
    alpha = as_weights(weights, names)
    joint = JointTarget(losses, alpha)
    prior = joint.prior if prior is None else prior
    merged = gaussian_of(merge(qs, alpha, prior))
    refined, trouble = _refined(losses, merged, alpha, prior, curvature)
    found = Diagnosis(
        merged,
        None if refined is None else difference(merged, refined),
        overlap(qs, alpha, prior) if len(names) > 1 else None,
        None if key is None else reweighted(merged, joint, prior, key, num_samples),
        None if reference is None else difference(merged, reference),
        trouble,
    )
    found = dataclasses.replace(found, concerns=(*trouble, *_concerns(found)))
    if found.concerns:
        warnings.warn("\n".join(found.concerns), MergeWarning, stacklevel=2)
    return found


def difference(posterior: Any, reference: Any) -> Difference:
    """How far a Gaussian is from a reference, in the standard deviations of the reference.

    - `posterior`, `reference`: Gaussians, or what `merge` returns with an exact prior.

    **Raises** `ValueError` for improper ones, or other parameters.
    """
    q, p = gaussian_of(posterior), gaussian_of(reference)
    q.layout.require_same(p.layout)
    sds = [jax.tree.map(jnp.sqrt, x.variance()) for x in (q, p)]
    shift = jax.tree.map(lambda x, y, sd: (x - y) / sd, q.mode(), p.mode(), sds[1])
    return Difference(shift, jax.tree.map(jnp.divide, *sds), p.kl_divergence(q))


def overlap(posteriors: Any, weights: Any, prior: Any = None) -> Overlap:
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
    merged = gaussian_of(merge(qs, alpha, prior))
    mode = merged.mode()
    total, by_task, surprise, p_value = _log_prior(prior, mode) - merged.log_prob(mode), {}, {}, {}
    for name, q, weight in zip(names, qs, alpha, strict=True):
        factor = likelihood_factor(q, prior) ** weight
        log_factor = weight.astype(merged.log_prob(mode).dtype) * _log_factor(q, prior, mode)
        others = merged / factor
        if not bool(others.is_proper()):
            raise ValueError(
                f"without task '{name}' the merged posterior is improper, and there is nothing to "
                "compare it with. Pass a prior, or more tasks."
            )
        total = total + log_factor
        by_task[name] = log_factor + others.log_prob(mode) - merged.log_prob(mode)
        surprise[name], p_value[name] = _surprise(others, merged)
    return Overlap(total, by_task, surprise, p_value)


def reweighted(
    posterior: Any,
    target: AbstractTarget,
    prior: Any = None,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Reweighted:
    r"""Draws from a posterior q with importance weights to the exact $p \propto p_0 e^{-\ell}$,
    smoothed as Pareto's k says.

    - `posterior`: q, with `sample` and `log_prob`.
    - `target`: ℓ, e.g. `JointTarget(targets, weights)`.
    - `prior`: p_0; by default that of the target, or else flat.
    - `key`, `num_samples`: of the draws.

    **Returns** `Reweighted` draws.

    **Raises** `ImportError` without `arviz-stats`, which smooths the weights.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto Smoothed Importance Sampling*.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError as error:
        raise ImportError(
            "Pareto-smoothed importance weights need arviz-stats: pip install "
            "'bayesmerge[numpyro]'."
        ) from error
    prior = target.prior if prior is None else prior
    draws = posterior.sample(jax.random.key(0) if key is None else key, (num_samples,))
    ratios = np.asarray(_log_ratios(posterior, target, prior, draws), float)
    if np.ptp(ratios) < EQUAL:
        log_weights, k = np.zeros(num_samples), -np.inf
    else:
        log_weights, k = array_stats.psislw(-ratios)
    log_weights = np.asarray(log_weights) - np.logaddexp.reduce(log_weights)
    return Reweighted(float(k), float(1 / np.sum(np.exp(2 * log_weights))), draws, log_weights)


def gaussian_of(posterior: Any) -> Any:
    """A Gaussian itself, or the Laplace approximation of what is none."""
    if isinstance(posterior, AbstractGaussian):
        return posterior
    if isinstance(posterior, AbstractExponentialFamily) or not hasattr(posterior, "laplace"):
        raise TypeError(
            f"a posterior is a {type(posterior).__name__}, and this diagnostic is one of Gaussians."
        )
    return posterior.laplace()


@eqx.filter_jit
def _log_ratios(posterior: Any, target: Any, prior: Any, draws: PyTree) -> Float[Array, " S"]:
    def one(theta: PyTree) -> Array:
        log_p = _log_prior(prior, theta) - target.total(theta)
        return log_p - posterior.log_prob(theta)

    return jax.lax.map(one, draws)


def _log_prior(prior: Any, theta: PyTree) -> Any:
    if prior is None:
        return 0.0
    return -prior.total(theta) if isinstance(prior, AbstractTarget) else prior.log_prob(theta)


def _log_factor(q: Any, prior: Any, theta: PyTree) -> Float[Array, ""]:
    """log q(θ)/p̂_0(θ), p̂_0 the prior or what stands for it in q."""
    if isinstance(prior, AbstractTarget):
        at = q.mode()
        site = expand(prior, at)
        return q.log_prob(theta) + prior.total(at) - site.log_ratio(theta, at)
    return q.log_prob(theta) - _log_prior(prior, theta)


def _surprise(others: Any, merged: Any) -> tuple[PyTree, float]:
    """z_i of every parameter, and the p-value of χ²."""
    from scipy.stats import chi2

    change = jax.tree.map(jnp.subtract, merged.mode(), others.mode())
    before, after = others.variance(), merged.variance()
    z = jax.tree.map(_standardised, change, before, after)
    if isinstance(others, FullGaussian):
        layout: Layout = others.layout
        scale = jnp.sqrt(layout.ravel(before))
        taken = (jnp.linalg.inv(others.precision) - jnp.linalg.inv(merged.precision)) / jnp.outer(
            scale, scale
        )
        shares, directions = jnp.linalg.eigh(0.5 * (taken + taken.T))
        along = directions.T @ (layout.ravel(change) / scale)
        told = shares > DIRECTIONS
        statistic = jnp.sum(jnp.where(told, along**2 / jnp.where(told, shares, 1.0), 0.0))
        directions_told = int(jnp.sum(told))
    else:
        entries = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(z)])
        statistic, directions_told = jnp.sum(entries**2), int(jnp.sum(entries != 0))
    return z, float(chi2.sf(float(statistic), directions_told)) if directions_told else 1.0


def _standardised(change: Array, before: Array, after: Array) -> Array:
    told = before - after > DIRECTIONS * before
    return jnp.where(told, change / jnp.sqrt(jnp.where(told, before - after, 1.0)), 0.0)


def _refined(
    losses: Any, merged: Any, alpha: Any, prior: Any, curvature: Kind | None
) -> tuple[Any, tuple[str, ...]]:
    """The merge after one refinement, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return gaussian_of(refine(losses, merged, alpha, prior, curvature=curvature)), ()
        except ValueError as error:
            return None, (f"it could not be refined: {error}",)


def _concerns(found: Diagnosis) -> tuple[str, ...]:
    concerns = []
    name, shift = ("", 0.0) if found.refined is None else found.refined.largest
    if abs(shift) > MUCH:
        concerns.append(
            f"one refinement moves {name} by {-shift:.2g} posterior standard deviations: the "
            "shards' posteriors are not those of one quadratic. Use `refine(targets, merged, "
            "weights, steps=5)`, or variational shards (`von`)."
        )
    if found.overlap is not None:
        for task, p in found.overlap.p_value.items():
            if p < SURPRISING:
                names, z = _entries(found.overlap.surprise[task])
                worst = int(np.argmax(np.abs(z)))
                concerns.append(
                    f"task {task} conflicts with the others (p = {p:.1g}), most in {names[worst]} "
                    f"(z = {z[worst]:.2g}): perhaps it should not share these parameters."
                )
    if found.reweighted is not None and found.reweighted.k > UNRELIABLE:
        concerns.append(
            f"Pareto's k of the importance weights is {found.reweighted.k:.2f}: the merged "
            "Gaussian is far from the exact posterior somewhere. Refine it, or sample it by MCMC."
        )
    return tuple(concerns)


def _entries(theta: PyTree) -> tuple[list[str], Float[np.ndarray, " P"]]:
    """Names and values of all entries: `theta`, `slope`, `effects[3]`."""
    names, values = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        stem = jax.tree_util.keystr(path, simple=True, separator=".") or "theta"
        array = np.asarray(leaf, float)
        for index in np.ndindex(array.shape):
            names.append(stem + (f"[{','.join(map(str, index))}]" if index else ""))
            values.append(array[index])
    return names, np.asarray(values)
