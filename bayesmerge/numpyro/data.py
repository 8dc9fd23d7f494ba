"""What of a model's arguments is data, and what of it JAX cannot hold or the model cannot use."""

import enum
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesmerge import arrays as border
from bayesmerge.families.checks import is_concrete

Named = Iterable[tuple[str, Any]]
"""Arguments with the names that they have in the model."""


def is_array(x: Any) -> bool:
    """Whether `x` is an array of real numbers, of NumPy or JAX, or of JAX's random keys."""
    if not isinstance(x, jax.Array) and type(x) is not np.ndarray:
        return False
    kinds = np.bool_, jnp.integer, jnp.floating, jax.dtypes.prng_key
    return any(jnp.issubdtype(x.dtype, kind) for kind in kinds)


def is_data(leaf: Any) -> bool:
    """Whether a constant holds numbers that may well differ from shard to shard."""
    if isinstance(leaf, list):
        return any(map(_holds_numbers, leaf))
    if callable(leaf) or isinstance(leaf, (np.generic, enum.Enum)):
        return False
    if getattr(getattr(leaf, "dtype", None), "kind", "") in ("S", "U"):
        return False
    return is_array(leaf) or hasattr(leaf, "__array__") or hasattr(leaf, "__dict__")


def _holds_numbers(x: Any) -> bool:
    if isinstance(x, (list, tuple, dict)):
        return any(map(_holds_numbers, x.values() if isinstance(x, dict) else x))
    return isinstance(x, (int, float, np.generic))


def turned(leaf: Any) -> Array | None:
    """A list or column as an array, where it can be one; missing numbers are NaN, which masks may
    cover."""
    if is_array(leaf) or not is_data(leaf):
        return None
    is_masked = isinstance(leaf, np.ma.MaskedArray)
    try:
        is_column = hasattr(leaf, "__array__") and not is_masked
        return border.as_array(np.asarray(leaf) if is_column else leaf, "it")
    except Exception:
        return None


def require_usable(named: Named) -> None:
    """An error for numbers that JAX would wrap or make infinite, wherever the model hands them to
    it, and for what can be read only once."""
    for name, leaf in named:
        if isinstance(leaf, Iterator):
            raise TypeError(
                f"{name} is a {type(leaf).__name__}, which can be read only once, and the model "
                f"runs many times: pass an array, or `list({name})`."
            )
        if not is_array(leaf):
            for column, values in _columns(name, leaf):
                border.as_array(values, column)


def warn_if_coarse(named: Named) -> None:
    """A warning where the values of data differ by little more than the spacing of float32."""
    if jnp.result_type(float) == np.float32:
        columns = [column for name, leaf in named for column in _columns(name, leaf)]
        border.warn_if_coarse([(name, values, values) for name, values in columns])


def not_finite(named: Named) -> list[str]:
    """Where data hold NaN or infinite values, in words."""
    found = []
    for name, leaf in named:
        for path, values in _columns(name, leaf):
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                index = tuple(bad[0].tolist())
                place = f"[{', '.join(map(str, index))}]" if index else ""
                found.append(f"{path}{place} is {values[index]} ({len(bad)} such entries)")
    return found


def _columns(name: str, leaf: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of real numbers in an array, a list, a table, or the fields of an object."""
    if is_array(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        values = None if is_key or not is_concrete(leaf) else np.asarray(leaf)
    elif isinstance(leaf, (float, np.integer, np.floating)):
        values = np.asarray(leaf)
    elif not is_data(leaf):
        return
    elif (labels := border.column_labels(leaf) if hasattr(leaf, "columns") else None) is not None:
        for label in dict.fromkeys(labels):
            column = leaf[label]
            column = np.asarray(column) if hasattr(column, "columns") else column
            yield from _columns(f"{name}[{label!r}]", column)
        return
    elif isinstance(leaf, list) or hasattr(leaf, "__array__"):
        try:
            values = np.asarray(leaf)
        except Exception:
            return
    else:
        for field, value in vars(leaf).items():
            if isinstance(value, (list, float, np.generic)) or hasattr(value, "__array__"):
                yield from _columns(f"{name}.{field}", value)
        return
    if values is not None and values.dtype.kind in "iuf":
        yield name, values


def described(x: Any) -> str:
    """The type and shape of an argument."""
    if is_array(x):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, (bool, int, float, str, type(None))):
        return repr(x)[:40]
    size = f" of {len(x)}" if hasattr(x, "__len__") else ""
    return f"{type(x).__name__}{size}"
