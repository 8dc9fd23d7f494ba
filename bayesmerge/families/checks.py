"""Readable errors, eagerly and under jit."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PyTree

T = TypeVar("T")


def is_concrete(tree: PyTree) -> bool:
    """Whether every array of `tree` has a value to look at (none is being traced)."""
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def require(
    tree: T, holds: Bool[ArrayLike, ""], message: str, detail: Callable[[], str] = str
) -> T:
    """`tree`, or an error where `holds` is false.

    Eagerly a `ValueError` of `message` and the numbers that `detail()` finds; under `jit` and
    `vmap` an equinox runtime error of `message` alone, raised when the program runs.
    """
    if isinstance(holds, jax.core.Tracer):
        return eqx.error_if(tree, jnp.logical_not(holds), message)
    if not holds:
        raise ValueError(f"{message} {detail()}".strip())
    return tree


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def require_finite(tree: T, name: str) -> T:
    """`tree`, or an error that names the leaf holding a NaN or an infinity."""

    def where() -> str:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            values = np.asarray(leaf)
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                index = tuple(bad[0].tolist())
                return (
                    f"First at leaf '{jax.tree_util.keystr(path) or name}', index {index}: "
                    f"{values[index]} ({len(bad)} such entries)."
                )
        return ""

    message = f"{name} must be finite, and it holds NaN or infinite values."
    return require(tree, all_finite(tree), message, where)
