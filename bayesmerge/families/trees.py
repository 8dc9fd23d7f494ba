"""Sums over the leaves of pytrees."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


def tree_dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """⟨x, y⟩ over all leaves."""
    return sum_leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), x, y))


def sum_leaves(tree: PyTree) -> Float[Array, ""]:
    return functools.reduce(jnp.add, jax.tree.leaves(tree))


def keys_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """One key for every leaf of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
