"""Named tasks and their weights α."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesmerge.arrays import as_array, column_labels, to_numpy
from bayesmerge.families.base import AbstractExponentialFamily, unstack
from bayesmerge.families.checks import is_concrete, require_finite


def named(collection: Any, what: str) -> tuple[tuple[str, ...], list[Any]]:
    """Task names and members of a sequence or batch (named "0", "1", …) or of what has labels: a
    mapping, a named tuple, a pandas Series."""
    if isinstance(collection, AbstractExponentialFamily) and collection.batch_shape:
        collection = unstack(collection)
    labels = _labels(collection)
    if labels is not None:
        names, members = texts(labels, what), _members(collection, labels)
    elif isinstance(collection, Sequence) and not isinstance(collection, (str, bytes)):
        names, members = tuple(str(t) for t in range(len(collection))), list(collection)
    else:
        raise TypeError(
            f"{what} is a {type(collection).__name__}, and it must be a sequence of T members "
            "(a list), a mapping from task names to them, or a batch of posteriors."
        )
    if not members:
        raise ValueError(f"{what} is empty: there is nothing to merge.")
    return names, members


def texts(labels: Sequence[Any], what: str) -> tuple[str, ...]:
    """Labels as text, or an error where two are the same: names are compared as text everywhere."""
    names = tuple(str(label) for label in labels)
    for i, name in enumerate(names):
        if name in names[:i]:
            twins = [label for label in labels if str(label) == name]
            raise ValueError(
                f"{what} has the names {twins}, which are one name as text: give every one its own."
            )
    return names


def matched(collection: Any, names: Sequence[str], what: str) -> list[Any]:
    """The members of `collection` in the order of `names`."""
    own_names, members = named(collection, what)
    if set(own_names) != set(names):
        raise ValueError(
            f"{what} must name the same tasks: {tuple(names)} are expected, {own_names} are given"
            f"{_difference(own_names, names)}."
        )
    by_name = dict(zip(own_names, members, strict=True))
    return [by_name[name] for name in names]


def _difference(given: Sequence[str], expected: Sequence[str]) -> str:
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    parts = [
        f"{word} {found}" for word, found in (("without", missing), ("besides", extra)) if found
    ]
    return f" ({', '.join(parts)})" if parts else ""


def as_weights(weights: Any, names: Sequence[str]) -> Float[Array, "..."]:
    """α as an array (T,) or (A, T), its last axis in the order of `names`.

    **Raises** `ValueError` for another length, other names, or weights that are not finite.
    """
    alpha = as_array(_in_order(weights, names), "weights", float)
    if alpha.ndim not in (1, 2) or alpha.shape[-1] != len(names):
        raise ValueError(
            f"weights have shape {alpha.shape}, and for {len(names)} tasks {tuple(names)} they "
            f"must have shape ({len(names)},), or (A, {len(names)}) for A weightings."
        )
    if 0 in alpha.shape:
        raise ValueError(f"weights have shape {alpha.shape}: there is no weighting in them.")
    return require_finite(alpha, "weights") if is_concrete(alpha) else alpha


def in_float64(weights: Any, names: Sequence[str]) -> Float[np.ndarray, "A T"]:
    """α as the caller wrote it, where float32 has rounded it, in the order of `names`."""
    return np.atleast_2d(np.asarray(_in_order(weights, names), float))


def _in_order(weights: Any, names: Sequence[str]) -> Any:
    """Weights as an array whose last axis is in the order of `names`, by their labels if they have
    any: a row of labelled weights, or a table with a column for each task."""
    if (
        isinstance(weights, (list, tuple))
        and weights
        and all(isinstance(w, Mapping) for w in weights)
    ):
        return np.stack([_in_order(w, names) for w in weights])
    if hasattr(weights, "coords") and hasattr(weights, "dims"):
        return _along_tasks(weights, names)
    labels = _labels(weights)
    if labels is None or _is_counting(weights, labels, len(names)):
        return to_numpy(weights, "weights")
    columns = [
        to_numpy(column, f"weights[{name!r}]")
        for name, column in zip(names, matched(weights, names, "weights"), strict=True)
    ]
    if any(isinstance(column, jax.Array) for column in columns):
        return jnp.stack(jnp.broadcast_arrays(*[jnp.asarray(c, float) for c in columns]), axis=-1)
    return np.stack(np.broadcast_arrays(*[np.asarray(c, float) for c in columns]), axis=-1)


def _along_tasks(weights: Any, names: Sequence[str]) -> Any:
    """The values of a DataArray, its axis of tasks last and in the order of `names`."""
    for axis, dim in enumerate(weights.dims):
        if dim not in weights.coords or len(weights[dim]) != len(names):
            continue
        labels = texts(weights[dim].values.tolist(), "weights")
        if set(labels) == set(names):
            order = [labels.index(name) for name in names]
            values = np.moveaxis(to_numpy(weights.values, "weights"), axis, -1)
            return values[..., order]
    last = weights.dims[-1] if weights.dims else None
    if last in weights.coords and not np.array_equal(weights[last], np.arange(len(weights[last]))):
        raise ValueError(
            f"weights must name the same tasks: {tuple(names)} are expected, and their coordinate "
            f"{last!r} is {weights[last].values.tolist()}. To take them by position pass `.values`."
        )
    return to_numpy(weights.values, "weights")


def _is_counting(weights: Any, labels: Sequence[Any], count: int) -> bool:
    """Whether labels of a pandas or polars object are those it has where none were given."""
    if isinstance(weights, Mapping) or len(labels) != count:
        return False
    return list(labels) in ([*range(count)], [f"column_{t}" for t in range(count)])


def _labels(collection: Any) -> list[Any] | None:
    """Of members: the keys of a mapping, fields of a tuple or record, a pandas index, columns."""
    if isinstance(collection, Mapping):
        return list(collection)
    if isinstance(collection, tuple) and hasattr(collection, "_fields"):
        return list(collection._fields)
    if isinstance(collection, np.ndarray) and collection.dtype.names:
        return list(collection.dtype.names)
    if hasattr(collection, "iloc") and collection.ndim == 1:
        return list(collection.index)
    return column_labels(collection)


def _members(collection: Any, labels: list[Any]) -> list[Any]:
    if isinstance(collection, Mapping):
        return list(collection.values())
    if isinstance(collection, tuple):
        return list(collection)
    if hasattr(collection, "iloc"):
        ndim = collection.ndim
        return [
            collection.iloc[i] if ndim == 1 else collection.iloc[:, i] for i in range(len(labels))
        ]
    return [collection[label] for label in labels]
