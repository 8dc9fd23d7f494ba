"""Training on every weighting of the losses: what a preview predicts."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.fit.optimise import find_mode
from bayesmerge.fit.target import JointTarget
from bayesmerge.previews.executors import Compute, as_compute
from bayesmerge.previews.measure import Metric, Model, function_of
from bayesmerge.previews.modes import Group
from bayesmerge.previews.record import Record, fill
from bayesmerge.previews.result import Preview
from bayesmerge.priors import Prior
from bayesmerge.tasks import as_weights, in_float64, named

AT_ONCE = 32


def joint_training(
    targets: Any,
    weights: Any,
    metric: Metric,
    prior: Prior = None,
    *,
    start: PyTree | None = None,
    max_steps: int = 2000,
    compute: Compute | None = None,
    higher_is_better: bool = True,
    save: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Preview:
    r"""The metric of the jointly trained model at every weighting: what a preview predicts.

    $\theta_\alpha = \arg\min_\theta \sum_t \alpha_t\ell_t(\theta) +
    \tfrac12\|\theta-\theta_0\|^2_{H_0}$, by `find_mode` from θ_0, many weightings in one
    compiled program.

    - `targets`: ℓ_t, a mapping from task names to targets, or a sequence.
    - `prior`: p_0 = N(θ_0, H_0⁻¹), an `ExactPrior`, or `None` for a flat one.
    - `start`, `max_steps`: as in `find_mode`; a neural network needs a start.
    - `weights`, `metric`, `compute`, `higher_is_better`, `save`, `progress`: as in `preview`; by
      default 32 weightings are trained at once.

    **Returns** a `Preview`, for `preview(…).compare(…)`; its `details` are the `steps` taken.

    **Warns** as `find_mode` does, for every weighting that has not converged.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, y):
    ...     return 0.5 * (y - theta) ** 2
    >>> tasks = {"a": bm.Target(loss, jnp.array([0.0])), "b": bm.Target(loss, jnp.array([4.0]))}
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> bm.joint_training(tasks, [[0.0, 1.0]], lambda x: x, prior, progress=False).best().value
    2.0

    ```

    Source: FP equation 1 with the prior of FP equation 7; GM equation 7.
    """
    names, losses = named(targets, "targets")
    alpha = jnp.atleast_2d(as_weights(weights, names))
    streamed = any(target.is_streamed for target in losses)
    compute = as_compute(compute)
    compute.require_batches(streamed)
    models = (losses, prior, start, max_steps)
    starts = {
        "targets": losses,
        "prior": prior,
        "start": start,
        "max_steps": max_steps,
        "weights": alpha,
        "metric": function_of(metric),
    }
    record = Record(in_float64(weights, names), names, higher_is_better, save, starts)
    groups = [Group(_joint_mode, models, alpha, np.arange(len(alpha)), AT_ONCE)]
    bar = "joint training" if progress is True else progress
    return Preview.of(fill(record, groups, metric, compute, streamed, bar))


def _joint_mode(models: tuple[Any, ...], alpha: Float[Array, " T"]) -> Model:
    targets, prior, start, max_steps = models
    found = find_mode(JointTarget(targets, alpha), prior, start=start, max_steps=max_steps)
    return Model(found.params, {"steps": jnp.asarray(found.steps, float)})
