"""The border between users' containers and JAX: values arrive as they were given, or an error says
why they cannot.

No library is imported for it: objects are known by the module of their class.
"""

import collections.abc
import datetime
import decimal
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree

COARSE = 1 / 400
"""The spacing of float32 in units of largest less smallest value (about four standard deviations)
from which rounding is worth a warning."""

X64 = "jax.config.update('jax_enable_x64', True) before anything else"
ENCODE = "encode them as integers, e.g. `classes, labels = np.unique(labels, return_inverse=True)`"


def as_array(values: Any, name: str, dtype: DTypeLike | None = None) -> Array:
    """`values` as a JAX array of what precision JAX is set to, or of `dtype`.

    **Raises** `TypeError` for what are no real numbers, `ValueError` for missing values and for
    numbers that do not fit: JAX wraps integers beyond 32 bits where 64 are not enabled.
    """
    array = to_numpy(values, name)
    if isinstance(array, jax.Array):
        return array if dtype is None else jnp.asarray(array, dtype)
    wanted = jax.dtypes.canonicalize_dtype(array.dtype if dtype is None else dtype)
    _require_fitting(array, wanted, name)
    return jnp.asarray(array.astype(wanted, copy=False))


def as_rows(
    tree: PyTree, name: str, *, lists: bool = True, rounds: str = "", warn: bool = True
) -> PyTree:
    """A pytree of containers as one of JAX arrays that have rows in their first axis; `lists` are
    arrays, too, and no part of the tree. In the leaf `rounds` integers that do not fit become
    floats.

    **Warns** once of columns that float32 rounds coarsely, where 64 bits are not enabled.

    **Raises** as `as_array`, and `ValueError` where labels of rows (a pandas index) differ.
    """

    def is_leaf(values: Any) -> bool:
        return isinstance(values, (list, *UNORDERED) if lists else UNORDERED) or _is_sparse(values)

    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    named = [(name + jax.tree_util.keystr(path), leaf) for path, leaf in paths]
    require_same_rows(named)
    opened = [
        (full, leaf, _rounded(to_numpy(leaf, full)) if full == rounds else to_numpy(leaf, full))
        for full, leaf in named
    ]
    if warn and jnp.result_type(float) == np.float32:
        warn_if_coarse(opened)
    return jax.tree.unflatten(structure, [as_array(array, full) for full, _, array in opened])


def to_numpy(values: Any, name: str) -> Any:
    """`values` as NumPy's real numbers in native byte order; a JAX array as it is."""
    if isinstance(values, jax.Array):
        return _real(values, name)
    if isinstance(values, np.ndarray) and type(values) is np.ndarray:
        return _real(values, name)
    return _real(_opened(values, name), name)


def is_array(values: Any) -> bool:
    """Whether `values` is a container of numbers by itself, and no list or other collection."""
    return hasattr(values, "shape") or hasattr(values, "__array__") or _is_sparse(values)


def row_count(array: Any) -> int | None:
    """The length of the first axis, `None` where there is none."""
    return jnp.shape(array)[0] if jnp.ndim(array) else None


def in_row_order(values: Any) -> Any:
    """A column as it is, or where a pandas index numbers its rows from 0 in another order, as a
    sorted table has it, by these numbers."""
    labels = _row_labels(values)
    if labels is None:
        return values
    order = np.argsort(np.asarray(labels), kind="stable")
    is_numbered = np.array_equal(np.asarray(labels)[order], np.arange(len(order)))
    return np.asarray(values)[order] if is_numbered else np.asarray(values)


def column_labels(values: Any) -> list[Any] | None:
    """Labels of the columns of a data frame or table, or else `None`."""
    found = getattr(values, "column_names", getattr(values, "columns", None))
    is_frame = getattr(values, "ndim", 2) == 2 and _libraries(values) & FRAMES
    return list(found) if found is not None and is_frame else None


FRAMES = {"pandas", "polars", "pyarrow"}
UNORDERED = (collections.abc.Iterator, collections.abc.Set, collections.abc.MappingView)


def _libraries(values: Any) -> set[str]:
    return {kind.__module__.partition(".")[0] for kind in type(values).__mro__}


def _is_sparse(values: Any) -> bool:
    return hasattr(values, "toarray") or hasattr(values, "todense")


def _opened(values: Any, name: str) -> Any:
    """The array that a container holds."""
    kind, libraries = type(values).__name__, _libraries(values)
    if _is_sparse(values):
        dense = "toarray()" if hasattr(values, "toarray") else "todense()"
        raise TypeError(
            f"{name} is a sparse {kind} of shape {values.shape}, and only dense arrays are "
            f"computed with: pass `{name}.{dense}`, or fewer columns where that is too large."
        )
    if isinstance(values, np.ma.MaskedArray):
        return _unmasked(values, name)
    if isinstance(
        values, collections.abc.Iterator | collections.abc.Set | collections.abc.KeysView
    ):
        raise TypeError(
            f"{name} is a {kind}, which has no order or can be read only once: pass an array, as "
            "`np.array(list(…))`, in the order that is meant."
        )
    if isinstance(values, (list, tuple)):
        return _from_list(values, name)
    if "polars" in libraries and hasattr(values, "collect"):
        raise TypeError(f"{name} is a {kind}, not computed yet: pass `{name}.collect()`.")
    if (labels := column_labels(values)) is not None:
        return _from_frame(values, labels, name)
    if libraries & FRAMES:
        _require_none_missing(values, name)
    if "xarray" in libraries and hasattr(values, "data_vars"):
        raise TypeError(f"{name} is a Dataset of xarray: pick variables of it, as `{name}['x']`.")
    if "torch" in libraries and hasattr(values, "detach"):
        return _from_torch(values, name)
    return _through_protocols(values, name)


def _through_protocols(values: Any, name: str) -> np.ndarray:
    try:
        if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
            array = np.from_dlpack(values)
        else:
            array = np.asarray(values)
        if array.ndim == 0 and array.dtype == np.object_ and not isinstance(values, numbers.Number):
            raise TypeError("it is one object")
        return array
    except Exception as error:
        raise TypeError(
            f"{name} is a {type(values).__module__}.{type(values).__name__}, which does not turn "
            f"into an array of numbers ({str(error).splitlines()[0]}): pass a NumPy array."
        ) from error


def _from_list(values: Any, name: str) -> Any:
    leaves = jax.tree.leaves(values)
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        return jnp.asarray(values)
    if any(is_array(x) and not isinstance(x, (np.ndarray, np.generic)) for x in leaves):
        values = jax.tree.map(lambda x: np.asarray(to_numpy(x, name)), values)
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} is a {type(values).__name__} whose entries have different lengths, and it "
            "must be a rectangular array: fill up the shorter ones and mask what was filled up in "
            "the loss."
        ) from error


def _from_frame(values: Any, labels: list[Any], name: str) -> np.ndarray:
    position: Callable[[int], Any] = lambda i: values.iloc[:, i]  # noqa: E731
    if "polars" in _libraries(values):
        position = lambda i: values[:, i]  # noqa: E731
    elif "pyarrow" in _libraries(values):
        position = values.column
    if not labels:
        raise ValueError(f"{name} is a {type(values).__name__} without columns.")
    columns = [to_numpy(position(i), f"{name}[{label!r}]") for i, label in enumerate(labels)]
    return np.stack(columns, axis=1)


def _from_torch(values: Any, name: str) -> np.ndarray:
    if getattr(values, "is_sparse", False):
        raise TypeError(f"{name} is a sparse tensor: pass `{name}.to_dense()`.")
    values = values.detach().cpu()
    is_brain_float = str(values.dtype) == "torch.bfloat16"
    return _through_protocols(values.float() if is_brain_float else values, name)


def _unmasked(values: Any, name: str) -> np.ndarray:
    masked = np.ma.getmaskarray(values)
    if not masked.any():
        return np.asarray(values.data)
    raise ValueError(
        f"{name} is a masked array, in which {int(masked.sum())} of {masked.size} entries are "
        f"masked, the first at {_place(masked)}: leave out these rows, or fill in values by "
        "`.filled(…)`."
    )


def _require_none_missing(values: Any, name: str) -> None:
    """Nothing, or an error where a column of pandas, polars or pyarrow lacks entries."""
    if hasattr(values, "null_count"):
        missing = values.is_null()
        count = values.null_count() if callable(values.null_count) else values.null_count
    elif hasattr(values, "isna"):
        missing = values.isna()
        count = np.asarray(missing).sum()
    else:
        return
    if count:
        raise ValueError(
            f"{name} must be finite, and {int(count)} of {len(values)} entries are missing (null, "
            f"NA or NaN), the first in row {int(np.argmax(np.asarray(missing)))}: leave out these "
            "rows, or fill in values."
        )


def require_same_rows(leaves: list[tuple[str, Any]]) -> None:
    """An error where two containers label their rows, and not in the same way."""
    labelled = [(name, labels) for name, x in leaves if (labels := _row_labels(x)) is not None]
    for name, labels in labelled[1:]:
        first_name, first = labelled[0]
        if len(labels) != len(first) or labels.equals(first):
            continue
        is_shuffled = set(labels) == set(first)
        is_counting = any(np.array_equal(x, np.arange(len(x))) for x in (labels, first))
        if is_shuffled or not is_counting:
            raise ValueError(
                f"{first_name} and {name} label their rows differently, "
                f"{list(first[:3])}… and {list(labels[:3])}…"
                f"{', the same labels in another order' if is_shuffled else ''}, and rows are "
                f"put together by position: sort them first, `{name}.loc[{first_name}.index]` in "
                "pandas, or where they belong together as they are pass `.to_numpy()` of both."
            )


def require_same_labels(mean: PyTree, precision: PyTree) -> None:
    """An error where a precision labels its rows or columns otherwise than the mean its entries."""
    pairs = zip(jax.tree.leaves(mean), jax.tree.leaves(precision), strict=False)
    for own, other in pairs:
        named = [("mean", own), ("precision", other)]
        if getattr(other, "ndim", 1) == 2 and getattr(own, "ndim", 2) == 1:
            named.append(("precision.T", getattr(other, "T", other)))
        require_same_rows(named)


def _row_labels(values: Any) -> Any:
    """A pandas index, or `None`."""
    libraries = _libraries(values)
    if "pandas" in libraries and hasattr(values, "iloc"):
        return values.index
    if "xarray" in libraries and not hasattr(values, "data_vars") and values.dims:
        return values.indexes.get(values.dims[0])
    return None


def _real(array: Any, name: str) -> Any:
    """`array` of real numbers, or an error that says what it holds instead."""
    kind = array.dtype
    if jnp.issubdtype(kind, jax.dtypes.prng_key):
        return array
    if kind == np.object_:
        return _from_objects(array, name)
    if jnp.issubdtype(kind, jnp.complexfloating):
        raise TypeError(
            f"{name} must be real numbers, and it has dtype {kind}: pass real and imaginary part "
            "as two arrays, and put them together in the loss."
        )
    if kind.kind == "f" and kind.itemsize > 8:
        raise TypeError(
            f"{name} has dtype {kind}, of which JAX has none: round it by `.astype(np.float64)`."
        )
    is_time = np.issubdtype(kind, np.timedelta64)
    if (not is_time and jnp.issubdtype(kind, jnp.number)) or kind == np.bool_:
        return array if kind.isnative else array.astype(kind.newbyteorder("="))
    raise TypeError(f"{name} must be numbers, and it {_instead(array)}")


def _instead(array: np.ndarray) -> str:
    kind = array.dtype.kind
    if kind == "M":
        return (
            f"holds dates (dtype {array.dtype}): encode them as numbers, e.g. days since the "
            "first, `(dates - dates.min()) / np.timedelta64(1, 'D')`."
        )
    if kind == "m":
        return (
            f"holds time differences (dtype {array.dtype}): encode them as numbers, e.g. days, "
            "`x / np.timedelta64(1, 'D')`."
        )
    if array.dtype.names:
        return (
            f"is a structured array with the fields {array.dtype.names}: pass the columns that "
            "are meant, e.g. `numpy.lib.recfunctions.structured_to_unstructured(x)`."
        )
    first = f", first {array.flat[0].item()!r}" if array.size else ""
    return f"holds strings{first}: {ENCODE}, or for numbers in text use `.astype(float)`."


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Integers or floats of Python objects that are numbers, or an error that names one."""
    entries = array.ravel().tolist()
    missing = [x is None or type(x).__name__ in ("NAType", "NaTType") for x in entries]
    if any(missing):
        raise ValueError(
            f"{name} must be finite, and {sum(missing)} of {len(entries)} entries are missing "
            f"({entries[missing.index(True)]}), the first at "
            f"{_place(np.reshape(missing, array.shape))}: leave out these rows, or fill in values."
        )
    if all(isinstance(x, (bool, np.bool_)) for x in entries):
        return array.astype(bool)
    if all(isinstance(x, numbers.Integral) for x in entries):
        return _from_integers(entries, name).reshape(array.shape)
    is_number = [isinstance(x, (numbers.Real, decimal.Decimal)) for x in entries]
    if all(is_number):
        return np.array([float(x) for x in entries]).reshape(array.shape)
    odd = entries[is_number.index(False)]
    where = f"at {_place(np.reshape(is_number, array.shape) == 0)} it holds {odd!r:.60}"
    raise TypeError(
        f"{name} must be numbers, and {where}, a {type(odd).__name__}: {_remedy_for(odd)}."
    )


def _remedy_for(entry: Any) -> str:
    if isinstance(entry, str):
        return ENCODE
    if isinstance(entry, (datetime.date, datetime.timedelta)) or hasattr(entry, "ordinal"):
        return "encode dates as numbers, e.g. days since the first"
    if isinstance(entry, numbers.Complex):
        return "pass real and imaginary part as two arrays"
    if isinstance(entry, (list, tuple)) or is_array(entry):
        return "put its entries into one array by `np.stack`, all of one length"
    return "encode it as a number"


def _from_integers(entries: list[Any], name: str) -> np.ndarray:
    for kind in (np.int64, np.uint64):
        try:
            return np.array([int(x) for x in entries], kind)
        except OverflowError:
            pass
    raise ValueError(
        f"{name} holds {max(entries, key=abs)}, an integer of more than 64 bits: pass floats, "
        "`float(x)`, or smaller units."
    )


def _require_fitting(array: np.ndarray, wanted: Any, name: str) -> None:
    if not array.size or array.dtype == wanted:
        return
    if jnp.issubdtype(wanted, jnp.integer) and array.dtype.kind in "iu":
        least, most = int(array.min()), int(array.max())
        limits = jnp.iinfo(wanted)
        if least < limits.min or most > limits.max:
            worst = most if most > limits.max else least
            raise ValueError(
                f"{name} holds {worst}, which does not fit into {jnp.dtype(wanted).name}, all that "
                f"JAX is set to: enable 64 bits by {X64}, or pass floats, `.astype(float)`, or "
                "smaller units."
            )
    if jnp.issubdtype(wanted, jnp.floating) and array.dtype == np.float64:
        largest = np.max(np.abs(array), initial=0, where=np.isfinite(array))
        if largest > float(jnp.finfo(wanted).max):
            raise ValueError(
                f"{name} holds {largest:.6g}, which is infinite in {jnp.dtype(wanted).name}: "
                f"use larger units, or enable 64 bits by {X64}."
            )


def _rounded(array: Any) -> Any:
    is_wide = isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.size > 0
    if not is_wide or np.array_equal(
        array.astype(jax.dtypes.canonicalize_dtype(array.dtype)), array
    ):
        return array
    return array.astype(float)


def warn_if_coarse(leaves: list[tuple[str, Any, Any]]) -> None:
    coarse = [text for name, given, array in leaves for text in _coarse_columns(name, given, array)]
    if coarse:
        more = f" So it is for {len(coarse)} columns." if len(coarse) > 1 else ""
        warnings.warn(
            f"{coarse[0]}.{more} Subtract a constant (the mean, the first date) before passing "
            f"them, or enable 64 bits by {X64}.",
            stacklevel=5,
        )


def _coarse_columns(name: str, given: Any, array: Any) -> list[str]:
    """What float32 loses of each column whose values differ by little more than its spacing."""
    is_wide = isinstance(array, np.ndarray) and array.dtype.kind in "iuf" and array.itemsize >= 4
    if not is_wide or array.dtype == np.float32 or array.ndim == 0 or not array.size:
        return []
    low, high = np.fmin.reduce(array, axis=0), np.fmax.reduce(array, axis=0)
    low, high = np.atleast_1d(low).astype(float), np.atleast_1d(high).astype(float)
    largest, spread = np.maximum(np.abs(low), np.abs(high)), high - low
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = np.spacing(largest.astype(np.float32)).astype(float)
    spacing = np.maximum(spacing, float(np.finfo(np.float32).tiny))
    varies = spread > 8 * np.finfo(float).eps * largest
    is_exact = (array.dtype.kind != "f") & (largest <= 2**24)
    found = np.argwhere((spacing > COARSE * spread) & varies & ~is_exact & np.isfinite(spacing))
    labels, texts = column_labels(given), []
    for index in map(tuple, found.tolist()):
        values = array if array.ndim == 1 else array[(slice(None), *index)]
        if np.array_equal(values, values.astype(np.float32)):
            continue
        column = labels[index[0]] if labels else index[0] if len(index) == 1 else index
        where = "" if array.ndim == 1 else f", column {column!r},"
        texts.append(
            f"{name}{where} is around {values[0]:.6g} and varies by {spread[index]:.3g}, and "
            f"float32 has only every {spacing[index]:.3g} there, to which the values are rounded"
        )
    return texts


def _place(where: Any) -> str:
    """The first index at which `where` is true, in words."""
    index = tuple(np.argwhere(where)[0].tolist())
    return f"row {index[0]}" if len(index) == 1 else f"index {index}"
