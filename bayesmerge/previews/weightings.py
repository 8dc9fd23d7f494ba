"""Many task weightings at once: merge, take the mode, measure; before anyone pays for training."""

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bayesmerge.families.checks import all_finite, is_concrete
from bayesmerge.merging import warn_of_priors
from bayesmerge.previews.executors import Compute, as_compute
from bayesmerge.previews.measure import Metric, Model, function_of
from bayesmerge.previews.modes import AbstractModes, Fastest, Group, Merges, Obstacle, Sweep
from bayesmerge.previews.record import Record, fill
from bayesmerge.previews.refinement import Joint, Refinement
from bayesmerge.previews.result import Preview
from bayesmerge.previews.spread import Spread
from bayesmerge.priors import Prior
from bayesmerge.tasks import as_weights, in_float64, named


def preview(
    posteriors: Any,
    weights: Any,
    metric: Metric,
    prior: Prior = None,
    *,
    modes: AbstractModes | None = None,
    refine: Refinement | None = None,
    spread: Spread | None = None,
    compute: Compute | None = None,
    higher_is_better: bool = True,
    save: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Preview:
    r"""The metric of the merged model at every weighting,
    $\alpha \mapsto \mathrm{metric}(\arg\max_\theta p_0^\gamma \prod_t q_t^{\alpha_t})$.

    - `posteriors`, `prior`: q_t and p_0, as in `merge`; T posteriors, best as a mapping from task
      names.
    - `weights`: α, shape (A, T), e.g. `simplex_grid(T, 0.05)`.
    - `metric(params)`: a scalar, or a mapping from names to scalars (an accuracy for each task).
      A JAX function: it is compiled and mapped over weightings. A function of NumPy or scikit-learn
      is wrapped, `bayesmerge.previews.Uncompiled(metric)`.
    - `modes`: how the modes are found, an object of `bayesmerge.previews`: `Each()`, `Basis()`,
      `Line()`, `Climbs()`, or one of your own; by default `Fastest()`, the fastest that applies.
    - `refine`: a `bayesmerge.previews.Refinement` of every mode towards joint training; by default
      merges are measured as they are.
    - `spread`: a `bayesmerge.previews.Spread`, for the standard deviation of each metric over draws
      of the merged posterior; by default there are no draws.
    - `compute`: a `bayesmerge.previews.Compute`: by which executor, and how many weightings at
      once; by default here, as many as fit into 256 MB.
    - `higher_is_better`: whether the best metric is the largest.
    - `save`: a file (`.nc`) for the preview, written four times a minute and at the end, also where
      that is an interruption; if it exists the sweep goes on from it. A file of another preview is
      refused: it knows arrays, options, and the code of functions with the values that they refer
      to by name, but not streams and the code of installed packages.
    - `progress`: whether to show a progress bar, or a name for it.

    **Returns** a `Preview`, whose `details` are what `Basis`, `Refinement` and `Spread` say of
    every weighting.

    **Warns** where the metric is NaN, as it is for a model that is not finite: such points are
    kept, and `best` passes over them; and as the objects say.

    **Raises** `ValueError` as `merge` does, for posteriors that are not finite, where the metric
    does not return scalars, for `modes` that do not apply, for refinement without a prior, for
    options that would be ignored, and for a file of another preview.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = {"a": bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0),
    ...      "b": bm.IsotropicGaussian.from_mean_precision(jnp.array(1.0), 3.0)}
    >>> seen = bm.preview(q, bm.simplex_grid(2, 0.25), lambda x: -(x - 0.5)**2, progress=False)
    >>> seen.best().weights
    {'a': 0.75, 'b': 0.25}

    ```

    Source: FP §3 and Algorithm 1; GMA §1.5 for the refinement.
    """
    names, qs = named(posteriors, "posteriors")
    alpha = jnp.atleast_2d(as_weights(weights, names))
    if any(getattr(q, "batch_shape", ()) for q in qs):
        raise ValueError("posteriors are batches themselves: preview one member of each at a time.")
    by_name = dict(zip(names, qs, strict=True))
    _require_finite(by_name, prior)
    warn_of_priors(posteriors, qs, alpha, prior)
    _require_parts(modes=modes, refine=refine, spread=spread)
    modes = Fastest() if modes is None else modes
    compute = as_compute(compute)
    joint = None if refine is None else refine.joint(names, prior)
    streamed = joint is not None and joint.is_streamed
    compute.require_batches(streamed)
    starts = {
        "posteriors": qs,
        "prior": prior,
        "weights": alpha,
        "metric": function_of(metric),
        "modes": modes,
        "refine": joint,
        "spread": spread,
    }
    record = Record(in_float64(weights, names), names, higher_is_better, save, starts)
    refined, drawn = joint is not None, spread is not None
    merges = Merges(by_name, alpha, prior, refined, drawn)
    sweep = _swept(merges, modes, progress)
    if sweep.error is not None:
        record.detail("mode error", sweep.error)
    groups = [_with_models(group, alpha, joint, spread) for group in sweep.groups]
    return Preview.of(fill(record, groups, metric, compute, streamed, progress))


def _require_finite(posteriors: dict[str, Any], prior: Any) -> None:
    for name, q in {**posteriors, "prior": prior}.items():
        arrays = eqx.filter(q, eqx.is_inexact_array)
        if is_concrete(arrays) and jax.tree.leaves(arrays) and not all_finite(arrays):
            what = "the prior" if q is prior else f"the posterior of '{name}'"
            raise ValueError(f"{what} has parameters that are not finite: fit or load it again.")


def _require_parts(**parts: Any) -> None:
    """An error that names an option which is no object of its kind."""
    kinds: dict[str, tuple[type, str]] = {
        "modes": (AbstractModes, "Basis(tolerance=1e-3)"),
        "refine": (Refinement, "Refinement(targets, steps=2)"),
        "spread": (Spread, "Spread(num_draws=16, key=jax.random.key(0))"),
    }
    for name, part in parts.items():
        kind, example = kinds[name]
        if part is not None and not isinstance(part, kind):
            raise TypeError(
                f"{name} is {part!r}, and it must be an object such as `bm.previews.{example}`: "
                "make one, or leave it out."
            )


def _swept(merges: Merges, modes: AbstractModes, progress: bool | str) -> Sweep:
    merges.require_gaussians()
    found = modes.attempt(merges, progress)
    if isinstance(found, Obstacle):
        raise ValueError(f"modes={modes!r} does not apply: {found.reason}")
    return found


def _with_models(
    group: Group, alpha: jax.Array, joint: Joint | None, spread: Spread | None
) -> Group:
    """A group that finds models, from one that finds where they start."""
    at_once = group.at_once
    if joint is not None or spread is not None:
        first = jax.tree.map(lambda x: x[0], group.weightings)
        start = eqx.filter_eval_shape(group.find, group.models, first)
        if start.colour is None:
            raise TypeError(
                "`modes` finds modes without the coordinates Λ^{-½}u around them, `Start.colour`, "
                "which refinement and spreads need: leave out `refine` and `spread`, or `modes`."
            )
        at_once = at_once if spread is None else max(1, at_once // (1 + spread.num_draws))
        at_once = at_once if joint is None else min(at_once, joint.at_once(start.theta))
    models = group.find, group.models, joint, spread
    return Group(_model, models, (group.weightings, alpha[group.rows]), group.rows, at_once)


def _model(models: Any, weighting: PyTree) -> Model:
    find, merging, joint, spread = models
    at, alpha = weighting
    start = find(merging, at)
    model = Model(start.theta, {}) if joint is None else joint.refined(start, alpha)
    return model if spread is None else model._replace(draws=spread.draws(model.params, start))
