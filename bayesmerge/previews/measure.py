"""The metric of many models: a batch of them in one compiled program, or one after the other."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bayesmerge.families.checks import all_finite
from bayesmerge.previews.executors import Job, carried_out
from bayesmerge.tasks import texts

Metric: TypeAlias = Callable[[PyTree], Any]
ModelAt: TypeAlias = Callable[[Any, Any], "Model"]

RESERVED = {"weights", "task", "weighting"}
DETAILS = {"mode error", "gradients", "mismatch", "last mismatch", "spread", "steps"}


class Model(NamedTuple):
    """A model, numbers by name that say how it was found, and draws around it."""

    params: PyTree
    details: dict[str, Float[Array, ""]]
    draws: PyTree | None = None


class Measured(NamedTuple):
    """Of models in a leading axis: metrics by name, and what was said of how they were found."""

    metrics: dict[str, Any]
    details: dict[str, Any]


class Batch(NamedTuple):
    """Results of the weightings with the numbers `rows`."""

    rows: Int[np.ndarray, " B"]
    measured: Measured


class Means(NamedTuple):
    """What measures: a metric, whether JAX compiles it, whether it compiles the models, and who
    carries the work out."""

    metric: Metric
    compiled: bool = True
    models_compiled: bool = True
    executor: Executor | None = None


def measure(
    model_at: ModelAt, models: Any, weightings: PyTree, batch_size: int, means: Means
) -> Iterator[Batch]:
    """`metric(model_at(models, w))` for every w along the leading axis of `weightings`, as batches
    are finished: `batch_size` models at a time in one compiled program."""
    jobs = _jobs(model_at, models, weightings, batch_size, means)
    for rows, measured in carried_out(jobs, means.executor):
        yield Batch(rows, measured)


def _jobs(
    model_at: ModelAt, models: Any, weightings: PyTree, batch_size: int, means: Means
) -> Iterator[Job]:
    count = len(jax.tree.leaves(weightings)[0])
    batch_size = min(batch_size, count) if means.models_compiled else 1
    for first in range(0, count, batch_size):
        rows = np.arange(first, min(first + batch_size, count))
        index = np.minimum(np.arange(first, first + batch_size), count - 1)
        batch = jax.tree.map(lambda x, index=index: jnp.asarray(x[index]), weightings)
        if means.compiled and means.models_compiled:
            yield Job(rows, _measure_batch, (model_at, models, means.metric, batch, len(rows)))
        elif means.models_compiled:
            found = _models_together(model_at, models, batch)
            for i in range(len(rows)):
                model = jax.tree.map(lambda x, i=i: x[i], found)
                yield Job(rows[i : i + 1], _measure_one, (means.metric, model))
        else:
            w = jax.tree.map(lambda x: x[0], batch)
            yield Job(rows, _find_and_measure, (means.metric, model_at, models, w))


def _measure_batch(
    model_at: ModelAt, models: Any, metric: Metric, batch: PyTree, kept: int
) -> Measured:
    try:
        values = _measured_together(model_at, models, metric, batch)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "the metric is compiled by JAX, and it looks at values as NumPy or Python's `if` and "
            "`float` do. Write it with jax.numpy, or pass compiled=False."
        ) from error
    return jax.tree.map(lambda x: np.asarray(x)[:kept], values)


def _measure_one(metric: Metric, model: Model) -> Measured:
    return jax.tree.map(lambda x: np.asarray(x)[None], _measured(metric, model, _in_turn))


def _find_and_measure(metric: Metric, model_at: ModelAt, models: Any, w: PyTree) -> Measured:
    return _measure_one(metric, model_at(models, w))


@eqx.filter_jit
def _measured_together(model_at: ModelAt, models: Any, metric: Metric, batch: PyTree) -> Measured:
    return jax.vmap(lambda w: _measured(metric, model_at(models, w), _together))(batch)


@eqx.filter_jit
def _models_together(model_at: ModelAt, models: Any, batch: PyTree) -> Model:
    return jax.vmap(lambda w: model_at(models, w))(batch)


def _measured(metric: Metric, model: Model, over_draws: Callable[..., Any]) -> Measured:
    metrics = _metrics(metric, model.params)
    if model.draws is None:
        return Measured(metrics, model.details)
    of_draws = over_draws(lambda theta: _metrics(metric, theta), model.draws)
    of_draws = {f"spread of {name}": values for name, values in of_draws.items()}
    of_draws["spread"] = sum(of_draws.values()) / len(of_draws)
    spreads = {name: jnp.std(values, ddof=1) for name, values in of_draws.items()}
    return Measured(metrics, model.details | spreads)


def _together(function: Callable[[PyTree], Any], draws: PyTree) -> Any:
    return jax.vmap(function)(draws)


def _in_turn(function: Callable[[PyTree], Any], draws: PyTree) -> Any:
    count = len(jax.tree.leaves(draws)[0])
    values = [function(jax.tree.map(lambda x, s=s: x[s], draws)) for s in range(count)]
    return jax.tree.map(lambda *x: jnp.stack(x), *values)


def _metrics(metric: Metric, params: PyTree) -> "OrderedDict[str, Float[Array, '']]":
    """By name, in the metric's order, and NaN where parameters are not finite."""
    values = metric(params)
    if not isinstance(values, Mapping):
        values = {"metric": values}
    names = texts([*values], "the metric")
    try:
        arrays = OrderedDict(
            (name, jnp.asarray(x, float)) for name, x in zip(names, values.values(), strict=True)
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, (jax.errors.JAXTypeError, jax.errors.TracerArrayConversionError)):
            raise
        raise TypeError(
            f"the metric returned {type(next(iter(values.values()))).__name__}, and it must return "
            "a number, or a mapping from names to numbers."
        ) from error
    if len(arrays) < len(values):
        raise ValueError(
            f"the metric returned the names {tuple(values)}, and they must differ as text."
        )
    if not arrays or set(arrays) & (RESERVED | DETAILS):
        raise ValueError(
            f"the metric returned the names {tuple(arrays)}; there must be at least one, and "
            f"{tuple(sorted(RESERVED | DETAILS))} are names of the result's own."
        )
    for name, value in arrays.items():
        if value.shape != ():
            raise ValueError(
                f"metric '{name}' has shape {value.shape}, and it must be a scalar: take the mean "
                "over examples, or return a mapping with one scalar for each task."
            )
    is_model = all_finite(params)
    return OrderedDict((name, jnp.where(is_model, x, jnp.nan)) for name, x in arrays.items())
