"""All of it at once, with a warning where something is wrong."""

import dataclasses
import warnings
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from bayesmerge.diagnostics.difference import Difference, as_gaussian, difference, entries
from bayesmerge.diagnostics.overlap import Overlap, overlap
from bayesmerge.diagnostics.reweighting import Reweighted, reweighted
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.show import ROWS, table
from bayesmerge.fit.absorb import shared_prior
from bayesmerge.fit.curvature import Kind
from bayesmerge.fit.target import JointTarget
from bayesmerge.merging import merge
from bayesmerge.refinement import refine
from bayesmerge.tasks import as_weights, matched, named

MUCH = 0.5
"""A shift in posterior standard deviations worth a warning."""

UNRELIABLE = 0.7
"""Pareto's k from which importance weights have too heavy a tail (Vehtari et al. 2024)."""

SURPRISING = 0.001
"""The probability of a conflict as large, were there none, below which it is worth a warning."""


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
    - `concerns`: what was warned of, in words.
    """

    merged: AbstractGaussian
    refined: Difference | None
    overlap: Overlap | None
    reweighted: Reweighted | None
    reference: Difference | None
    concerns: tuple[str, ...]

    def __repr__(self) -> str:
        return self._text(ROWS)

    def __str__(self) -> str:
        return self._text(None)

    def _text(self, most: int | None) -> str:
        """A table of at most so many parameters, and what is said of tasks and draws."""
        names, mode = entries(self.merged.mode())
        columns = {"mode": mode, "sd": np.sqrt(entries(self.merged.variance())[1])}
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
    prior = shared_prior(dict(zip(names, losses, strict=True))) if prior is None else prior
    merged = as_gaussian(merge(qs, alpha, prior))
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


def _refined(
    losses: Any, merged: Any, alpha: Any, prior: Any, curvature: Kind | None
) -> tuple[Any, tuple[str, ...]]:
    """The merge after one refinement, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return as_gaussian(refine(losses, merged, alpha, prior, curvature=curvature)), ()
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
                names, z = entries(found.overlap.surprise[task])
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
