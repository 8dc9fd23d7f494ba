"""Many task weightings at once: merge, take the mode, measure; before anyone pays for training."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import unchecked
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.optimise import find_mode
from bayesmerge.fit.target import JointTarget
from bayesmerge.merging import merge
from bayesmerge.mixtures.climb import minorizer, repeat
from bayesmerge.mixtures.product import Product
from bayesmerge.mixtures.warm_starts import modes_along
from bayesmerge.result import Preview
from bayesmerge.tasks import as_weights, named

Metric = Callable[[PyTree], Any]
Sweep: TypeAlias = tuple[Callable[[Any, Any], PyTree], Any, PyTree]

BYTES_AT_ONCE = 2**28
RESERVED = {"weights", "task", "weighting"}


def preview(
    posteriors: Any,
    weights: Any,
    metric: Metric,
    prior: Any = None,
    *,
    higher_is_better: bool = True,
    batch_size: int | None = None,
    compiled: bool = True,
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
    - `batch_size`: weightings merged at once; by default as many as keep the merged posteriors
      within 256 MB.
    - `compiled`: `False` for a metric that is not a JAX function (NumPy, scikit-learn): it is then
      called with one model after the other.
    - `progress`: whether to show a progress bar, or a name for it.

    **Returns** a `Preview`.

    **Warns** where the metric is NaN: such points are kept, and `best` passes over them.

    **Raises** `ValueError` as `merge` does, and where the metric does not return scalars.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = {"a": bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0),
    ...      "b": bm.IsotropicGaussian.from_mean_precision(jnp.array(1.0), 3.0)}
    >>> seen = bm.preview(q, bm.simplex_grid(2, 0.25), lambda x: -(x - 0.5)**2, progress=False)
    >>> seen.best().weights
    {'a': 0.75, 'b': 0.25}

    ```

    Source: FP §3 and Algorithm 1.
    """
    names, qs = named(posteriors, "posteriors")
    alpha = jnp.atleast_2d(as_weights(weights, names))
    if any(getattr(q, "batch_shape", ()) for q in qs):
        raise ValueError("posteriors are batches themselves: preview one member of each at a time.")
    merged = jax.eval_shape(lambda a: merge(qs, a, prior), alpha[0])
    batch = batch_size or _batch_size(jax.eval_shape(lambda q: q.blend(), merged))
    sweep: Sweep
    if isinstance(merged, Product):
        product = merge(qs, alpha, prior)
        modes = modes_along(product, progress=progress)
        sweep = _on_ridge, product.factors, (product.exponents, modes.responsibilities)
    else:
        _check_weightings(dict(zip(names, qs, strict=True)), alpha, prior)
        sweep = _merged_mode, (qs, prior), alpha
    model_at, models, weightings = sweep
    metrics = _sweep(model_at, models, weightings, metric, batch, progress, compiled)
    return Preview(metrics, _in_float64(weights, alpha), names, higher_is_better)


def joint_training(
    targets: Any,
    weights: Any,
    metric: Metric,
    prior: Any = None,
    *,
    start: PyTree | None = None,
    max_steps: int = 2000,
    higher_is_better: bool = True,
    batch_size: int = 32,
    compiled: bool = True,
    progress: bool | str = True,
) -> Preview:
    r"""The metric of the jointly trained model at every weighting: what a preview predicts.

    $\theta_\alpha = \arg\min_\theta \sum_t \alpha_t\ell_t(\theta) +
    \tfrac12\|\theta-\theta_0\|^2_{H_0}$, by `find_mode` from θ_0, many weightings in one
    compiled program.

    - `targets`: ℓ_t, a mapping from task names to targets, or a sequence.
    - `prior`: p_0 = N(θ_0, H_0⁻¹); by default that of the first target, where all have one.
    - `start`, `max_steps`: as in `find_mode`; a neural network needs a start.
    - `weights`, `metric`, `higher_is_better`, `compiled`, `progress`: as in `preview`.
    - `batch_size`: weightings trained at once.

    **Returns** a `Preview`, for `preview(…).compare(…)`.

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
    compiled = compiled and not any(target.is_streamed for target in losses)
    models = (losses, prior, start, max_steps)
    metrics = _sweep(_joint_mode, models, alpha, metric, batch_size, progress, compiled)
    return Preview(metrics, _in_float64(weights, alpha), names, higher_is_better)


def _merged_mode(models: tuple[list[Any], Any], alpha: Float[Array, " T"]) -> PyTree:
    qs, prior = models
    with unchecked():
        return merge(qs, alpha, prior).mode()


def _on_ridge(factors: list[Any], at: tuple[Array, Array]) -> PyTree:
    exponents, responsibilities = at
    with unchecked():
        return minorizer(factors, repeat(factors, exponents) * responsibilities).mode()


def _joint_mode(models: tuple[Any, ...], alpha: Float[Array, " T"]) -> PyTree:
    targets, prior, start, max_steps = models
    return find_mode(JointTarget(targets, alpha), prior, start=start, max_steps=max_steps).params


def _sweep(
    model_at: Callable[[Any, Any], PyTree],
    models: Any,
    weightings: PyTree,
    metric: Metric,
    batch_size: int,
    progress: bool | str,
    compiled: bool,
) -> Mapping[str, Float[np.ndarray, " A"]]:
    """`metric(model_at(models, w))` for every w along the leading axis of `weightings`,
    `batch_size` at a time in one compiled program."""
    from tqdm import tqdm

    count = len(jax.tree.leaves(weightings)[0])
    measured = []
    batch_size = min(batch_size, count) if compiled else 1
    name = progress if isinstance(progress, str) else None
    with tqdm(total=count, desc=name, disable=not progress, unit=" weightings") as bar:
        for first in range(0, count, batch_size):
            index = np.minimum(np.arange(first, first + batch_size), count - 1)
            batch = jax.tree.map(lambda x, index=index: jnp.asarray(x[index]), weightings)
            if compiled:
                values = _measure_compiled(model_at, models, metric, batch)
            else:
                model = model_at(models, jax.tree.map(lambda x: x[0], batch))
                values = jax.tree.map(lambda x: x[None], _measured(metric, model))
            kept = min(batch_size, count - first)
            measured.append({name: np.asarray(x)[:kept] for name, x in values.items()})
            bar.update(kept)
    return {name: np.concatenate([m[name] for m in measured]) for name in measured[0]}


def _measure_compiled(
    model_at: Callable[[Any, Any], PyTree], models: Any, metric: Metric, batch: PyTree
) -> dict[str, Float[Array, " A"]]:
    try:
        return _measure_batch(model_at, models, metric, batch)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "the metric is compiled by JAX, and it looks at values as NumPy or Python's `if` and "
            "`float` do. Write it with jax.numpy, or pass compiled=False."
        ) from error


@eqx.filter_jit
def _measure_batch(
    model_at: Callable[[Any, Any], PyTree], models: Any, metric: Metric, batch: PyTree
) -> dict[str, Float[Array, " A"]]:
    return jax.vmap(lambda w: _measured(metric, model_at(models, w)))(batch)


def _measured(metric: Metric, params: PyTree) -> dict[str, Float[Array, ""]]:
    values = metric(params)
    if not isinstance(values, Mapping):
        values = {"metric": values}
    try:
        arrays = {str(name): jnp.asarray(value, float) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        if isinstance(error, (jax.errors.JAXTypeError, jax.errors.TracerArrayConversionError)):
            raise
        raise TypeError(
            f"the metric returned {type(next(iter(values.values()))).__name__}, and it must return "
            "a number, or a mapping from names to numbers."
        ) from error
    if not arrays or set(arrays) & RESERVED:
        raise ValueError(
            f"the metric returned the names {tuple(arrays)}; there must be at least one, and "
            f"{tuple(sorted(RESERVED))} are names of the result's own."
        )
    for name, value in arrays.items():
        if value.shape != ():
            raise ValueError(
                f"metric '{name}' has shape {value.shape}, and it must be a scalar: take the mean "
                "over examples, or return a mapping with one scalar for each task."
            )
    return arrays


def _in_float64(weights: Any, alpha: Array) -> Float[np.ndarray, "A T"]:
    """α as the caller wrote it, where float32 has rounded it."""
    if isinstance(weights, Mapping):
        return np.asarray(alpha, float)
    return np.atleast_2d(np.asarray(weights, float))


def _batch_size(merged: Any) -> int:
    bytes_each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(merged))
    return max(1, BYTES_AT_ONCE // bytes_each)


def _check_weightings(posteriors: dict[str, Any], alpha: Array, prior: Any) -> None:
    """The error of `merge(…).mode()` at the first weighting that has one. Where factors are proper
    and no exponent is negative there is none, and nothing is merged to find out."""
    is_target = isinstance(prior, AbstractTarget)
    factors = [*posteriors.values()] + ([] if prior is None or is_target else [prior])
    gamma = 1 - jnp.sum(alpha, axis=1)
    suspect = jnp.any(alpha < 0, axis=1) | ~jnp.any(alpha > 0, axis=1)
    if prior is not None and not is_target:
        suspect |= gamma < -1e-6
    if not all(_has_mode(q) for q in factors):
        suspect |= True
    for row in alpha[np.flatnonzero(np.asarray(suspect))]:
        merge(posteriors, row, prior).mode()


def _has_mode(q: Any) -> bool:
    try:
        q.mode()
    except ValueError:
        return False
    return True
