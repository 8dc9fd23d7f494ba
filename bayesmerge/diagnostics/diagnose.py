"""All of it at once, with a warning where something is wrong."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from bayesmerge.diagnostics.difference import Difference, as_gaussian, difference, entries
from bayesmerge.diagnostics.overlap import Overlap, overlap, tail
from bayesmerge.diagnostics.reweighting import Reweighted, reweighted
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.show import ROWS, number, table
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.curvature import Kind
from bayesmerge.fit.expand import expand
from bayesmerge.fit.target import JointTarget
from bayesmerge.fit.tilted import likelihood_factor
from bayesmerge.merging import merge
from bayesmerge.priors import Prior, as_prior
from bayesmerge.refinement import refine
from bayesmerge.tasks import as_weights, matched, named

MUCH = 0.5
"""A shift in posterior standard deviations worth a warning: 95 % intervals then cover 92 %."""

SURPRISING = 0.001
"""The probability of a conflict as large, were there none, below which it is worth a warning."""

STATIONARY = 0.1
"""Standard deviations from the mode of its target from which a posterior is not one at a mode."""

REFINEMENTS = 5
"""Those that are advised, and were tried."""


class MergeWarning(UserWarning):
    """A merged posterior is not what joint training would give."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; as text, a table by parameter.

    - `merged`: the Gaussian that was looked at.
    - `refined`: the `Difference` to the merge after one refinement, an estimate of that to the
      Laplace posterior of all data; `None` where that has no maximum.
    - `overlap`: the `Overlap` of the tasks, `None` for a single one.
    - `reweighted`: `Reweighted` to the exact posterior, `None` without a key.
    - `reference`: the `Difference` to a posterior of all data, where one was given.
    - `coordinates`: for sites of a NumPyro model the names of their coordinates, such as
      `log sigma`, and their values at the mode in their own units.
    - `concerns`: what was warned of, in words.
    """

    merged: AbstractGaussian
    refined: Difference | None
    overlap: Overlap | None
    reweighted: Reweighted | None
    reference: Difference | None
    coordinates: dict[str, tuple[str, Any]]
    concerns: tuple[str, ...]

    def __repr__(self) -> str:
        return self._text(ROWS)

    def __str__(self) -> str:
        return self._text(None)

    def _text(self, most: int | None) -> str:
        """A table of at most so many parameters, and what is said of tasks and draws."""
        theta = self.merged.mode()
        names, mode = labels(theta, self.coordinates), entries(theta)[1]
        columns: dict[str, Any] = {"mode": mode, "sd": np.sqrt(entries(self.merged.variance())[1])}
        if any(label != name for name, (label, _) in self.coordinates.items()):
            own = self._own_units(theta)
            columns["own units"] = ["" if np.isnan(x) else number(x) for x in own]
        if self.refined is not None:
            columns["shift/sd"] = entries(self.refined.shift)[1]
            columns["sd ratio"] = entries(self.refined.spread)[1]
        if self.overlap is not None:
            surprises = np.stack([entries(z)[1] for z in self.overlap.surprise.values()])
            columns["most |z|"] = np.max(np.abs(surprises), axis=0)
        if self.reference is not None:
            columns["shift/sd of reference"] = entries(self.reference.shift)[1]
        lines = [table(columns, names, most)]
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

    def _own_units(self, theta: Any) -> np.ndarray:
        """The mode in the units of sites, NaN where coordinates are not transformed one by one."""
        values = {name: value for name, (_, value) in self.coordinates.items()}
        own = {
            name: np.full(np.shape(x), np.nan) if values.get(name) is None else values[name]
            for name, x in theta.items()
        }
        return entries(own)[1]


def labels(theta: Any, coordinates: dict[str, tuple[str, Any]]) -> list[str]:
    """Names of all entries, `log sigma` for the coordinate of a positive site `sigma`."""
    if not coordinates:
        return entries(theta)[0]
    return [
        coordinates[site][0] + entry.removeprefix(site if entry != "theta" else "theta")
        for site, x in theta.items()
        for entry in entries({site: x})[0]
    ]


def diagnose(
    targets: Any,
    posteriors: Any,
    weights: Any,
    prior: Prior = None,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
    curvature: Kind | None = None,
    reference: AbstractGaussian | None = None,
) -> Diagnosis:
    r"""What is wrong with a merge, if anything, and what would help.

    - `targets`: ℓ_t, T targets or a mapping from task names to them.
    - `posteriors`, `weights`, `prior`: q_t, α and p_0, as in `merge`.
    - `key`, `num_samples`: of draws from the merged posterior, for importance weights to the exact
      one, $p_0\prod_t e^{-\alpha_t\ell_t}$. Without a key there are none.
    - `curvature`: of the refinement, as in `expand`.
    - `reference`: a posterior of all data, where one can be afforded.

    **Returns** a `Diagnosis`, to be printed.

    **Warns** with a `bayesmerge.diagnostics.MergeWarning` where one refinement moves a parameter by
    more than half a posterior standard deviation (Laplace shards with an unknown noise scale do
    that), where tasks conflict (p < 0.001), and where the importance weights are not reliable
    (Pareto's k above 0.7, or for fewer than 2200 draws above 1 − 1/log₁₀S). With a key refinement
    is advised only where it has been tried and has not made k worse. A conflict is put down to
    overdispersion where the squared gradients of single examples say so.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, y):
    ...     return 0.5 * (y - theta) ** 2
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> tasks = {"a": bm.Target(loss, jnp.array([1.0])), "b": bm.Target(loss, jnp.array([4.0]))}
    >>> q = {n: bm.laplace(t, prior) for n, t in tasks.items()}
    >>> found = bm.diagnose(tasks, q, [1.0, 1.0], prior)
    >>> print(found)
            mode      sd  shift/sd  sd ratio  most |z|
    theta  1.667  0.5774         0         1     2.858
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
    merged = as_gaussian(merge(qs, alpha, prior))
    refined, trouble = _refined(losses, merged, alpha, prior, curvature, 1)
    weighted, unweighted = _reweighted(merged, joint, prior, key, num_samples)
    found = Diagnosis(
        merged,
        None if refined is None else difference(merged, refined),
        overlap(qs, alpha, prior) if len(names) > 1 else None,
        weighted,
        None if reference is None else difference(merged, reference),
        _coordinates(losses, merged.mode()),
        (),
    )
    concerns = [*trouble, *unweighted]
    shifted = _shift_concern(found)
    if shifted:
        concerns.append(shifted)
        concerns.extend(_away_from_modes(dict(zip(names, losses, strict=True)), qs, prior))
    unreliable = "" if weighted is None or weighted.is_reliable else _weights_concern(weighted)
    if unreliable:
        concerns.append(unreliable)
    if shifted or unreliable:
        better, _ = _refined(losses, merged, alpha, prior, curvature, REFINEMENTS)
        after, _ = _reweighted(better, joint, prior, key, num_samples)
        concerns.append(_advice(better, weighted, after))
    concerns.extend(_conflicts(found, dict(zip(names, losses, strict=True)), qs, prior))
    found = dataclasses.replace(found, concerns=tuple(concerns))
    if found.concerns:
        warnings.warn("\n".join(found.concerns), MergeWarning, stacklevel=2)
    return found


def _refined(
    losses: Any, merged: Any, alpha: Any, prior: Any, curvature: Kind | None, steps: int
) -> tuple[Any, tuple[str, ...]]:
    """The merge after refinements, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            refined = refine(losses, merged, alpha, prior, curvature=curvature, steps=steps)
            return as_gaussian(refined), ()
        except ValueError as error:
            return None, (f"it could not be refined: {error}",)


def _reweighted(
    q: Any, joint: Any, prior: Any, key: PRNGKeyArray | None, num_samples: int
) -> tuple[Reweighted | None, tuple[str, ...]]:
    """Draws with importance weights, or why there are none."""
    if key is None or q is None:
        return None, ()
    try:
        return reweighted(q, joint, prior, key, num_samples), ()
    except ValueError as error:
        return None, (f"there are no importance weights: {error}",)


def _coordinates(losses: Any, theta: Any) -> dict[str, tuple[str, Any]]:
    return losses[0].coordinates(theta)


def _shift_concern(found: Diagnosis) -> str:
    if found.refined is None:
        return ""
    names = labels(found.refined.shift, found.coordinates)
    shifts = entries(found.refined.shift)[1]
    worst = int(np.argmax(np.abs(shifts)))
    if abs(shifts[worst]) <= MUCH:
        return ""
    return (
        f"one refinement moves {names[worst]} by {-shifts[worst]:.2g} posterior standard "
        "deviations: the shards' posteriors are not those of one quadratic."
    )


def _weights_concern(weighted: Reweighted) -> str:
    if np.isnan(weighted.k):
        return "no tail can be fitted to the importance weights, so that they are not reliable."
    return (
        f"Pareto's k of the importance weights is {weighted.k:.2f}: the merged Gaussian is far "
        "from the exact posterior somewhere."
    )


def _advice(better: Any, before: Reweighted | None, after: Reweighted | None) -> str:
    """What to do, as far as it has been tried."""
    call = f"`refine(targets, merged, weights, prior, steps={REFINEMENTS})`"
    sample = (
        "sample the exact posterior by MCMC from the merged one, or fit fewer and larger shards"
    )
    if better is None:
        return f"{call} finds no maximum: {sample}."
    if before is None:
        return f"Use {call}, and pass `key` to see what that does to Pareto's k."
    if after is None or not _is_better(before, after):
        now = "not to be had" if after is None else f"{after.k:.2f}"
        return f"{call} does not help: Pareto's k is {now} after it. So {sample}."
    still = "" if after.is_reliable else f". That is not enough, so {sample} after it"
    return (
        f"Use {call}: Pareto's k is {after.k:.2f} after it (and {before.k:.2f} before), with "
        f"{after.effective_samples:.0f} effective samples (and {before.effective_samples:.0f} "
        f"before){still}."
    )


def _is_better(before: Reweighted, after: Reweighted) -> bool:
    """Whether k has fallen, or weights are reliable, more draws effective, and k not higher by more
    than its own error."""
    more = after.effective_samples >= before.effective_samples
    error = before.k_error if np.isfinite(before.k) else 0.0
    return after.k <= before.k or bool(after.is_reliable and more and after.k <= before.k + error)


def _away_from_modes(losses: dict[str, Any], qs: dict[str, Any], prior: Any) -> list[str]:
    """Which posteriors are not centred at the mode of their own target."""
    far = {}
    for name, loss in losses.items():
        at = qs[name].mode()
        slope = loss.value_and_gradient(at)[1]
        score = jax.tree.map(jnp.add, slope, as_prior(prior).gradient(at))
        distance = float(jnp.sqrt(qs[name].squared_length(score) / qs[name].layout.size))
        if distance > STATIONARY:
            far[name] = f"{name} {distance:.2g}"
    if not far:
        return []
    return [
        "Some of that is no error of merging: refinement looks for a mode, and these posteriors "
        "are centred elsewhere, as variational ones are, and fits that have not converged "
        f"(standard deviations from the modes of their own targets: {', '.join(far.values())})."
    ]


def _conflicts(
    found: Diagnosis, losses: dict[str, Any], qs: dict[str, Any], prior: Any
) -> list[str]:
    if found.overlap is None:
        return []
    surprising = {t: p for t, p in found.overlap.p_value.items() if not p >= SURPRISING}
    if not surprising:
        return []
    excess = _dispersion(losses, qs, prior)
    explained, concerns = [], []
    for task, p in surprising.items():
        z = entries(found.overlap.surprise[task])[1]
        worst = int(np.argmax(np.abs(np.nan_to_num(z))))
        name = labels(found.overlap.surprise[task], found.coordinates)[worst]
        statistic, directions = found.overlap.chi_squared[task]
        allowed = tail(statistic / max(excess, 1.0), directions)
        said = f"(p = {p:.1g}), most in {name} (z = {z[worst]:.2g})"
        if allowed >= SURPRISING:
            explained.append(f"task {task} {said}, but p = {allowed:.1g} with that")
        else:
            concerns.append(
                f"task {task} conflicts with the others {said}: perhaps it should not share these "
                "parameters."
            )
    if explained:
        concerns.append(
            "tasks differ more than they should if they shared parameters, but single examples "
            f"vary {excess:.2g} times as much as the model says (overdispersion): "
            f"{'; '.join(explained)}. So the likelihood is too narrow, rather than the tasks in "
            "conflict. Use a wider one: negative binomial for Poisson, beta-binomial for binomial, "
            "Student t for normal, a scale that is estimated."
        )
    return concerns


def _dispersion(losses: dict[str, Any], qs: dict[str, Any], prior: Any) -> float:
    r"""How many times as much as the model says the gradients of single examples vary,
    $\sum_{ti} v_{ti}\sum_n g_{tni}^2 / \sum_{ti} v_{ti}H_{tii}$ with marginal
    variances v: 1 where the model is right (the information identity)."""
    seen = said = 0.0
    for name, loss in losses.items():
        q = qs[name]
        try:
            squares = expand(
                loss, q.mode(), structure="diagonal", curvature="squared_gradients"
            ).precision.value
        except (ValueError, TypeError):
            return 1.0
        variance, H = q.variance(), _diagonal(likelihood_factor(q, prior))
        seen += float(tree_dot(variance, squares))
        said += float(tree_dot(variance, H))
    return seen / said if said > 0 else 1.0


def _diagonal(q: Any) -> Any:
    return q.precision.diagonal()
