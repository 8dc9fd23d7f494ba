"""Many task weightings at once: merge, take the mode, measure; before anyone pays for training."""

import os
import warnings
from concurrent.futures import Executor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import all_finite, is_concrete
from bayesmerge.fit.absorb import absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.optimise import Objective
from bayesmerge.fit.target import JointTarget
from bayesmerge.keys import as_key
from bayesmerge.merging import warn_of_priors
from bayesmerge.previews.executors import usable
from bayesmerge.previews.measure import Means, Metric, Model
from bayesmerge.previews.record import Part, Record, fill
from bayesmerge.previews.refined import refined, refined_at_once
from bayesmerge.previews.result import Preview
from bayesmerge.previews.sweep import Colours, Method, Sweep, sweeps_of
from bayesmerge.priors import as_prior
from bayesmerge.tasks import as_weights, in_float64, matched, named


def preview(
    posteriors: Any,
    weights: Any,
    metric: Metric,
    prior: Any = None,
    *,
    higher_is_better: bool = True,
    method: Method = "auto",
    tolerance: float = 1e-3,
    targets: Any = None,
    refine: int = 0,
    until: float = 0.0,
    batch_size: int | None = None,
    compiled: bool = True,
    num_samples: int = 0,
    key: PRNGKeyArray | None = None,
    executor: Executor | None = None,
    save: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Preview:
    r"""The metric of the merged model at every weighting,
    $\alpha \mapsto \mathrm{metric}(\arg\max_\theta p_0^\gamma \prod_t q_t^{\alpha_t})$.

    - `posteriors`, `prior`: q_t and p_0, as in `merge`; T posteriors, best as a mapping from task
      names.
    - `weights`: α, shape (A, T), e.g. `simplex_grid(T, 0.05)`.
    - `metric(params)`: a scalar, or a mapping from names to scalars (an accuracy for each task).
      A JAX function: it is compiled and mapped over weightings.
    - `higher_is_better`: whether the best metric is the largest.
    - `method`: of finding the modes of full Gaussians (others have one each): `"each"` by a
      Cholesky factorisation for every weighting; `"basis"` in a small basis that is grown until a
      bound on the relative error of every mode is below `tolerance`; `"line"` exactly, by one
      generalised eigendecomposition, for weightings that span two dimensions with γ (two tasks
      without a prior). `"auto"` takes what is fastest.
    - `tolerance`: of the relative error ‖θ̂ − θ‖/‖θ‖ of modes in a basis.
    - `targets`, `refine`: ℓ_t, for at most `refine` steps from every merged mode towards that of
      the joint objective, by L-BFGS in the coordinates in which the merged posterior is a standard
      normal distribution. Each costs one gradient of every task; of large data let
      `bayesmerge.fit.subsampled` take a part.
    - `until`: a mismatch, ‖Λ^{-½}∇‖/√P with the gradient ∇ of the joint objective, in posterior
      standard deviations: weightings below it are refined no further.
    - `num_samples`, `key`: draws of every merged posterior, around the mode as refined, for the
      spread of each metric over them: how unsure the picture is. For Gaussians; the draws of a
      product of mixtures are those of the Gaussian that touches it at its highest mode, narrower
      than all of it.
    - `batch_size`: weightings merged at once; by default as many as keep the merged posteriors
      within 256 MB.
    - `compiled`: `False` for a metric that is not a JAX function (NumPy, scikit-learn): it is then
      called with one model after the other.
    - `executor`: any `concurrent.futures.Executor` (threads, processes, Dask's, MPI's) to measure
      with: it is given batches of weightings or, where `compiled` is `False`, single models.
      Processes must be spawned, not forked: JAX deadlocks in a fork.
    - `save`: a file (`.nc`) for the preview, written four times a minute and at the end, also where
      that is an interruption; if it exists the sweep goes on from it. A file of another preview is
      refused: it knows arrays, options, and the code of functions with the values that they refer
      to by name, but not streams and the code of installed packages.
    - `progress`: whether to show a progress bar, or a name for it.

    **Returns** a `Preview`, whose `details` are the bound on the relative error of each mode
    (`mode error`, from a basis), of refined modes the `mismatch` at the merged mode and at the last
    of the `gradients` (`last mismatch`; one more step follows), and
    of draws the standard deviation of every metric (`spread of <name>`) and of their mean
    (`spread`).

    **Warns** where the metric is NaN, as it is for a model that is not finite: such points are
    kept, and `best` passes over them; and where a basis does not reach `tolerance`.

    **Raises** `ValueError` as `merge` does, for posteriors that are not finite, where the metric
    does not return scalars, for a `method` that does not apply, for refinement without a prior,
    and for a file of another preview.

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
    _require_usable(posteriors_by_name := dict(zip(names, qs, strict=True)), prior)
    warn_of_priors(posteriors, qs, alpha, prior)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, and it is a number of weightings, ≥ 1.")
    refinement = _refinement(targets, names, prior, refine, until)
    drawing = _drawing(num_samples, key)
    streamed = refinement is not None and any(loss.is_streamed for loss in refinement.losses)
    means = Means(metric, compiled, not streamed, usable(executor))
    starts = {
        "posteriors": qs,
        "prior": prior,
        "weights": alpha,
        "metric": metric,
        "method": (method, tolerance),
        "targets": refinement and refinement.losses,
        "refine": refinement and (refinement.most, refinement.until),
        "draws": drawing,
    }
    record = Record(in_float64(weights, names), names, higher_is_better, save, starts)
    colours: Colours = "exact" if num_samples else "near" if refine else "none"
    sweeps = sweeps_of(posteriors_by_name, alpha, prior, method, tolerance, colours, progress)
    if sweeps.error is not None:
        record.detail("mode error", sweeps.error)
        _warn_of_errors(sweeps.error, tolerance)
    parts = [_part(sweep, alpha, refinement, drawing, batch_size) for sweep in sweeps.parts]
    return Preview.of(fill(record, parts, means, progress))


def _require_usable(posteriors: dict[str, Any], prior: Any) -> None:
    for name, q in {**posteriors, "prior": prior}.items():
        arrays = eqx.filter(q, eqx.is_inexact_array)
        if is_concrete(arrays) and jax.tree.leaves(arrays) and not all_finite(arrays):
            what = "the prior" if q is prior else f"the posterior of '{name}'"
            raise ValueError(f"{what} has parameters that are not finite: fit or load it again.")


def _warn_of_errors(error: Float[np.ndarray, " A"], tolerance: float) -> None:
    if not (error <= tolerance).all():
        warnings.warn(
            f"modes in the basis may be wrong by {np.max(error):.2g} of their length, where "
            f"tolerance={tolerance:g} was asked: rounding allows no better. Use float64 "
            "(jax.config.update('jax_enable_x64', True)), or method='each'.",
            stacklevel=3,
        )


class _Refinement(NamedTuple):
    """Towards the joint mode of losses and prior, as in `refined`."""

    losses: list[Any]
    prior: Any
    most: Int[Array, ""]
    until: Float[Array, ""]


class _Drawing(NamedTuple):
    """S draws of every merged posterior, from one key: neighbours differ by their weights alone."""

    size: int
    key: PRNGKeyArray


def _part(
    sweep: Sweep,
    alpha: Array,
    refinement: _Refinement | None,
    drawing: _Drawing | None,
    batch_size: int | None,
) -> Part:
    size = sweep.batch_size // (1 + (drawing.size if drawing else 0))
    if refinement is not None:
        first = jax.tree.map(lambda x: x[0], sweep.weightings)
        theta = eqx.filter_eval_shape(sweep.start_at, sweep.models, first).theta
        size = min(size, refined_at_once(refinement.losses, theta))
    models = sweep.start_at, sweep.models, refinement, drawing
    weightings = sweep.weightings, alpha[sweep.rows]
    return Part(_model_at, models, weightings, sweep.rows, batch_size or max(1, size))


def _model_at(models: Any, weighting: PyTree) -> Model:
    start_at, merging, refinement, drawing = models
    at, alpha = weighting
    start = start_at(merging, at)
    theta, details = start.theta, {}
    if refinement is not None:
        held = as_prior(refinement.prior)
        loss, gaussian = absorb(JointTarget(refinement.losses, alpha), held)
        objective = Objective(loss, gaussian, theta)
        found = refined(objective, start, refinement.most, refinement.until)
        theta = found.params
        details = {
            "gradients": found.gradients + 0.0,
            "mismatch": found.mismatch,
            "last mismatch": found.last_mismatch,
        }
    draws = None if drawing is None else _draws(theta, start.colour, drawing)
    return Model(theta, details, draws)


def _draws(theta: PyTree, colour: Any, drawing: _Drawing) -> PyTree:
    leaves, structure = jax.tree.flatten(theta)

    def draw(key: PRNGKeyArray) -> PyTree:
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.map(jnp.add, theta, colour(jax.tree.unflatten(structure, noise)))

    return jax.vmap(draw)(jax.random.split(drawing.key, drawing.size))


def _refinement(
    targets: Any, names: tuple[str, ...], prior: Any, refine: int, until: float
) -> _Refinement | None:
    if refine < 0 or refine != int(refine):
        raise ValueError(f"refine is {refine}, and it is a number of gradients for each weighting.")
    if refine == 0:
        if until > 0:
            raise ValueError(
                f"until is {until}, and refine is 0: it is the most gradients to take."
            )
        return None
    if targets is None:
        raise ValueError("refine takes gradients of the tasks' losses: pass `targets`.")
    losses = [*matched(targets, names, "targets")]
    for name, loss in zip(names, losses, strict=True):
        if not isinstance(loss, AbstractTarget):
            raise TypeError(
                f"the target of '{name}' is a {type(loss).__name__}, and it must be a `Target`."
            )
    if prior is None:
        raise ValueError(
            "refine goes to the mode of the tasks' losses and the prior: pass `prior`, that of the "
            "posteriors."
        )
    return _Refinement(losses, prior, jnp.asarray(refine), jnp.asarray(until))


def _drawing(num_samples: int, key: PRNGKeyArray | None) -> _Drawing | None:
    if num_samples == 0:
        return None
    if num_samples < 2 or num_samples != int(num_samples) or key is None:
        raise ValueError(
            f"num_samples is {num_samples} and key is {key}: a spread needs two draws or more, and "
            "a key, e.g. jax.random.key(0)."
        )
    return _Drawing(num_samples, as_key(key))
