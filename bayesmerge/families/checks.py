"""Readable errors, eagerly and under jit."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

T = TypeVar("T")


class ConvergenceWarning(UserWarning):
    """An optimiser stopped short, or a posterior was expanded away from the mode."""


_checking = contextvars.ContextVar("checking", default=True)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Leave checks out of programs traced inside: for callers that have checked already."""
    token = _checking.set(False)
    try:
        yield
    finally:
        _checking.reset(token)


def is_concrete(tree: PyTree) -> bool:
    """Whether every array of `tree` has a value to look at (none is being traced)."""
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def require(
    tree: T, holds: Bool[ArrayLike, ""], message: str, detail: Callable[[], str] = str
) -> T:
    """`tree`, or an error where `holds` is false.

    Eagerly a `ValueError` of `message` and the numbers that `detail()` finds; under `jit` and
    `vmap` an equinox runtime error of `message` alone, raised when the program runs. There only a
    scalar factor of the arrays waits for the check, so that nothing large is copied for it.
    """
    if isinstance(holds, jax.core.Tracer):
        if not _checking.get():
            return tree
        gate = eqx.error_if(jnp.ones((), jnp.int8), jnp.logical_not(holds), message)
        return jax.tree.map(lambda x: x * gate.astype(jnp.result_type(x)), tree)
    if not holds:
        raise ValueError(f"{message} {detail()}".strip())
    return tree


def plain(tree: PyTree) -> PyTree:
    """`tree` with Python numbers for arrays, as they are shown in messages."""
    return jax.tree.map(lambda x: np.round(np.asarray(x, float), 6).tolist(), tree)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def smallest(tree: PyTree) -> Float[Array, ""]:
    """The smallest entry of all leaves, ∞ where there is none."""
    leaves = [jnp.min(x, initial=jnp.inf) for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.minimum, leaves)


def largest(tree: PyTree) -> Float[Array, ""]:
    """The largest entry of all leaves, −∞ where there is none."""
    leaves = [jnp.max(x, initial=-jnp.inf) for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.maximum, leaves)


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


def tell(report: Callable[..., None], values: tuple[Array, ...], **options: Any) -> None:
    """`report(*values)`, now or, where values are traced, when the program runs."""
    if is_concrete(values):
        report(*values, **options)
    else:
        jax.debug.callback(functools.partial(report, **options), *values)
