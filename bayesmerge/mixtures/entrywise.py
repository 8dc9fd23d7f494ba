"""Products of diagonal Gaussians, block by block of parameters.

Entries meet only in sums, so θ(r) and the log-densities there are computed for thousands of entries
at a time while these are in cache: mapped over many r, the posteriors are read once, and no θ is
ever stored.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.gaussian import AbstractGaussian

BLOCK = 8192


class Block(NamedTuple):
    """Natural parameters of all components in some entries, η = Λ(μ − c) around a centre c."""

    linear: Float[Array, "R n"]
    precision: Float[Array, "R n"]


def are_entrywise(components: Sequence[Any]) -> bool:
    """Whether every batch of components is of Gaussians without correlations."""
    return all(
        isinstance(q, AbstractGaussian) and q.precision.structure.is_entrywise for q in components
    )


def log_ratios(
    components: Sequence[Any], centre: PyTree, weights: Float[Array, " R"]
) -> Float[Array, " R"]:
    """log q_i(θ)/q_i(c) for all components i, at θ = argmax Π_i q_i^{w_i}:
    ηᵀδ − ½δᵀΛδ with δ = θ − c."""

    def of_block(block: Block) -> Float[Array, " R"]:
        delta, _ = _peak(block, weights)
        return block.linear @ delta - 0.5 * block.precision @ delta**2

    return _sum(of_block, components, centre, jnp.zeros_like(weights))


def squared_distance(
    components: Sequence[Any],
    centre: PyTree,
    weights: Float[Array, " R"],
    others: Float[Array, " R"],
) -> Float[Array, ""]:
    """‖θ − θ'‖²_Λ for θ = argmax Π q_i^{w_i} and θ' = argmax Π q_i^{w'_i}, Λ = Σ w'_iΛ_i."""

    def of_block(block: Block) -> Float[Array, ""]:
        delta, _ = _peak(block, weights)
        other, precision = _peak(block, others)
        return jnp.sum(precision * (other - delta) ** 2)

    return _sum(of_block, components, centre, jnp.zeros((), weights.dtype))


def _peak(block: Block, weights: Float[Array, " R"]) -> tuple[Array, Array]:
    """θ − c and Λ of Π q_i^{w_i}; NaN where it has no maximum."""
    precision = weights @ block.precision
    return jnp.where(precision > 0, weights @ block.linear / precision, jnp.nan), precision


def _sum(
    of_block: Callable[[Block], Array], components: Sequence[Any], centre: PyTree, zero: Array
) -> Array:
    total = zero
    for at in _leaves(components, centre):
        total = total + _sum_over_leaf(of_block, *at, zero)
    return total


def _sum_over_leaf(
    of_block: Callable[[Block], Array],
    linear: list[Array],
    precision: list[Array],
    centre: Array,
    zero: Array,
) -> Array:
    size = centre.shape[0]
    length = min(BLOCK, size)

    def block(first: Any) -> Block:
        """Entries from `first`; the last block begins earlier and leaves out what has been done."""
        begin = jnp.minimum(first, size - length)

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, begin, length, axis=-1)

        c, new = cut(centre), begin + jnp.arange(length) >= first
        taus = [
            cut(x) if x.shape[-1] == size else jnp.broadcast_to(x, (len(x), length))
            for x in precision
        ]
        etas = [
            jnp.where(new[None], cut(x) - tau * c[None], 0)
            for x, tau in zip(linear, taus, strict=True)
        ]
        return Block(*(jnp.concatenate(x).astype(zero.dtype) for x in (etas, taus)))

    if length == size:
        return of_block(block(0))
    return jax.lax.fori_loop(
        0, -(-size // length), lambda i, total: total + of_block(block(i * length)), zero
    )


def _leaves(
    components: Sequence[Any], centre: PyTree
) -> Iterator[tuple[list[Array], list[Array], Array]]:
    """For every leaf that has entries: η and Λ of every batch, shapes (K, n) or (K, 1), and c,
    shape (n,)."""
    for i, c in enumerate(jax.tree.leaves(centre)):
        if not c.size:
            continue
        linear = [jax.tree.leaves(q.linear)[i].reshape(-1, c.size) for q in components]
        precision = [q.precision.of_leaf(i) for q in components]
        precision = [
            x.reshape(-1, c.size if x.ndim > len(q.batch_shape) else 1)
            for q, x in zip(components, precision, strict=True)
        ]
        yield linear, precision, c.reshape(-1)
