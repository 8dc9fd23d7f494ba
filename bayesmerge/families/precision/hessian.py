"""The Hessian of a function of θ as a matrix of which a structure computes the entries that it
keeps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bayesmerge.families.layout import Layout

COLUMNS_AT_ONCE = 64


class Hessian(NamedTuple):
    """∇²f at θ."""

    function: Callable[[PyTree], Float[Array, ""]]
    theta: PyTree
    columns: int = COLUMNS_AT_ONCE

    def diagonal(self) -> PyTree:
        layout, column = Layout.of(self.theta), self._column()
        entry = lambda j: column(j)[j]  # noqa: E731
        entries = jax.lax.map(entry, jnp.arange(layout.size), batch_size=self.columns)
        return layout.unravel(entries)

    def dense(self) -> Float[Array, "Q Q"]:
        size = Layout.of(self.theta).size
        return jax.lax.map(self._column(), jnp.arange(size), batch_size=self.columns)

    def restricted(self, leaves: tuple[int, ...]) -> "Hessian":
        part, whole = restriction(self.theta, leaves)
        return Hessian(lambda part: self.function(whole(part)), part, self.columns)

    def _column(self) -> Callable[[Int[Array, ""]], Float[Array, " Q"]]:
        layout = Layout.of(self.theta)
        _, push = jax.linearize(jax.grad(self.function), self.theta)
        unit = lambda j: layout.unravel(jax.nn.one_hot(j, layout.size))  # noqa: E731
        return lambda j: layout.ravel(push(unit(j)))


def restriction(
    theta: PyTree, leaves: tuple[int, ...]
) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """Some leaves of θ, and θ as a function of them."""
    flat, structure = jax.tree.flatten(theta)

    def whole(part: list[Array]) -> PyTree:
        moved = dict(zip(leaves, part, strict=True))
        return jax.tree.unflatten(structure, [moved.get(i, x) for i, x in enumerate(flat)])

    return [flat[i] for i in leaves], whole
