"""Named tasks and their weights α."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesmerge.families.base import AbstractExponentialFamily, unstack
from bayesmerge.families.checks import is_concrete, require_finite


def named(collection: Any, what: str) -> tuple[tuple[str, ...], list[Any]]:
    """Task names and members of a sequence or batch (named "0", "1", …) or of a mapping."""
    if isinstance(collection, AbstractExponentialFamily) and collection.batch_shape:
        collection = unstack(collection)
    if isinstance(collection, Mapping):
        names, members = tuple(str(name) for name in collection), list(collection.values())
    elif isinstance(collection, Sequence):
        names, members = tuple(str(t) for t in range(len(collection))), list(collection)
    else:
        raise TypeError(
            f"{what} is a {type(collection).__name__}, and it must be a sequence of T members, a "
            "mapping from task names to them, or a batch of posteriors."
        )
    if not members:
        raise ValueError(f"{what} is empty: there is nothing to merge.")
    return names, members


def matched(collection: Any, names: Sequence[str], what: str) -> list[Any]:
    """The members of `collection` in the order of `names`."""
    own_names, members = named(collection, what)
    if set(own_names) != set(names):
        raise ValueError(
            f"{what} must name the same tasks: {tuple(names)} are expected, {own_names} are given."
        )
    by_name = dict(zip(own_names, members, strict=True))
    return [by_name[name] for name in names]


def as_weights(weights: Any, names: Sequence[str]) -> Float[Array, "..."]:
    """α as an array (T,) or (A, T), its last axis in the order of `names`.

    **Raises** `ValueError` for another length, other names, or weights that are not finite.
    """
    if isinstance(weights, Mapping):
        columns = [jnp.asarray(w, float) for w in matched(weights, names, "weights")]
        alpha = jnp.stack(jnp.broadcast_arrays(*columns), axis=-1)
    else:
        alpha = jnp.asarray(weights, float)
    if alpha.ndim not in (1, 2) or alpha.shape[-1] != len(names):
        raise ValueError(
            f"weights have shape {alpha.shape}, and for {len(names)} tasks {tuple(names)} they "
            f"must have shape ({len(names)},), or (A, {len(names)}) for A weightings."
        )
    if 0 in alpha.shape:
        raise ValueError(f"weights have shape {alpha.shape}: there is no weighting in them.")
    return require_finite(alpha, "weights") if is_concrete(alpha) else alpha


def in_float64(weights: Any, alpha: Array) -> Float[np.ndarray, "A T"]:
    """α as the caller wrote it, where float32 has rounded it."""
    if isinstance(weights, Mapping):
        return np.asarray(alpha, float)
    return np.atleast_2d(np.asarray(weights, float))
