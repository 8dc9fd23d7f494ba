"""The metric of many models: many of them in one compiled program, or one after the other."""

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
from bayesmerge.previews.modes import Group
from bayesmerge.tasks import texts

Metric: TypeAlias = Callable[[PyTree], Any]
"""params → a scalar, or a mapping from names to scalars."""

Find: TypeAlias = Callable[[Any, Any], "Model"]
"""(models, weighting) → `Model`."""

RESERVED = {"weights", "task", "weighting"}
DETAILS = {"mode error", "gradients", "mismatch", "last mismatch", "spread", "steps"}


class Uncompiled(eqx.Module):
    """A metric that is no function of JAX (NumPy, scikit-learn): it is called with one model after
    the other, and what it does is not compiled.

    - `metric`: `metric(params)` is a number, or a mapping from names to numbers.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = [bm.IsotropicGaussian.from_mean_precision(jnp.array(x), 1.0) for x in (0.0, 4.0)]
    >>> def rounded(x):
    ...     return 1.0 if float(x) > 1 else 0.0
    >>> metric = bm.previews.Uncompiled(rounded)
    >>> bm.preview(q, bm.simplex_grid(2, 0.5), metric, progress=False).values()
    array([1., 1., 0.])

    ```
    """

    metric: Metric

    def __call__(self, params: PyTree) -> Any:
        return self.metric(params)


def function_of(metric: Metric) -> Metric:
    """The bare function."""
    return metric.metric if isinstance(metric, Uncompiled) else metric


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


def measure(
    group: Group, metric: Metric, executor: Executor | None = None, streamed: bool = False
) -> Iterator[Batch]:
    """`metric(group.find(group.models, w))` for every w of a group that finds a `Model`, as batches
    are finished: `group.at_once` models in one compiled program, or where data are `streamed` one
    model after the other."""
    jobs = _one_by_one(group, metric) if streamed else _together(group, metric)
    for rows, measured in carried_out(jobs, executor):
        yield Batch(group.rows[rows], measured)


def _one_by_one(group: Group, metric: Metric) -> Iterator[Job]:
    for row in range(len(group.rows)):
        w = jax.tree.map(lambda x, row=row: jnp.asarray(x[row]), group.weightings)
        arguments = function_of(metric), group.find, group.models, w
        yield Job(np.array([row]), _find_and_measure, arguments)


def _together(group: Group, metric: Metric) -> Iterator[Job]:
    count = len(group.rows)
    size = min(group.at_once, count)
    for first in range(0, count, size):
        rows = np.arange(first, min(first + size, count))
        index = np.minimum(np.arange(first, first + size), count - 1)
        batch = jax.tree.map(lambda x, index=index: jnp.asarray(x[index]), group.weightings)
        if isinstance(metric, Uncompiled):
            found = _found_together(group.find, group.models, batch)
            for i in range(len(rows)):
                model = jax.tree.map(lambda x, i=i: x[i], found)
                yield Job(rows[i : i + 1], _measure_one, (metric.metric, model))
        else:
            yield Job(rows, _measure_batch, (group.find, group.models, metric, batch, len(rows)))


def _measure_batch(find: Find, models: Any, metric: Metric, batch: PyTree, kept: int) -> Measured:
    try:
        values = _measured_together(find, models, metric, batch)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "the metric is compiled by JAX, and it looks at values as NumPy or Python's `if` and "
            "`float` do. Write it with jax.numpy, or wrap it: `bm.previews.Uncompiled(metric)`."
        ) from error
    return jax.tree.map(lambda x: np.asarray(x)[:kept], values)


def _measure_one(metric: Metric, model: Model) -> Measured:
    return jax.tree.map(lambda x: np.asarray(x)[None], _measured(metric, model, _over_draws))


def _find_and_measure(metric: Metric, find: Find, models: Any, w: PyTree) -> Measured:
    return _measure_one(metric, find(models, w))


@eqx.filter_jit
def _measured_together(find: Find, models: Any, metric: Metric, batch: PyTree) -> Measured:
    return jax.vmap(lambda w: _measured(metric, find(models, w), jax.vmap))(batch)


@eqx.filter_jit
def _found_together(find: Find, models: Any, batch: PyTree) -> Model:
    return jax.vmap(lambda w: find(models, w))(batch)


def _measured(
    metric: Metric, model: Model, mapped: Callable[[Metric], Callable[[PyTree], Any]]
) -> Measured:
    metrics = _metrics(metric, model.params)
    if model.draws is None:
        return Measured(metrics, model.details)
    of_draws = mapped(lambda theta: _metrics(metric, theta))(model.draws)
    of_draws = {f"spread of {name}": values for name, values in of_draws.items()}
    of_draws["spread"] = sum(of_draws.values()) / len(of_draws)
    spreads = {name: jnp.std(values, ddof=1) for name, values in of_draws.items()}
    return Measured(metrics, model.details | spreads)


def _over_draws(function: Metric) -> Callable[[PyTree], Any]:
    """`jax.vmap`, by calls of one draw after the other."""

    def of_all(draws: PyTree) -> Any:
        count = len(jax.tree.leaves(draws)[0])
        values = [function(jax.tree.map(lambda x, s=s: x[s], draws)) for s in range(count)]
        return jax.tree.map(lambda *x: jnp.stack(x), *values)

    return of_all


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
            f"{tuple(sorted(RESERVED | DETAILS))} are reserved names."
        )
    for name, value in arrays.items():
        if value.shape != ():
            raise ValueError(
                f"metric '{name}' has shape {value.shape}, and it must be a scalar: take the mean "
                "over examples, or return a mapping with one scalar for each task."
            )
    is_model = all_finite(params)
    return OrderedDict((name, jnp.where(is_model, x, jnp.nan)) for name, x in arrays.items())
