"""A precision for every parameter, Λ = diag(τ), leaf by leaf and never flattened."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.arrays import as_array
from bayesmerge.families.checks import require_finite
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.precision.abstract import (
    AbstractPrecision,
    AbstractStructure,
    ImplicitMatrix,
)
from bayesmerge.families.precision.entrywise import AbstractEntrywise
from bayesmerge.families.special import excess
from bayesmerge.families.trees import sum_leaves


class DiagonalPrecision(AbstractEntrywise):
    """Λ = diag(τ).

    - `value`: τ, a pytree shaped as θ.
    """

    value: PyTree
    layout: Layout = eqx.field(static=True)

    @property
    def structure(self) -> "Diagonal":
        return Diagonal()

    def of_leaf(self, i: int) -> Any:
        return jax.tree.leaves(self.value)[i]

    def log_determinant(self) -> Float[Array, ""]:
        return sum_leaves(jax.tree.map(lambda x: jnp.sum(jnp.log(x)), self.value))

    def excess(self, other: "DiagonalPrecision") -> Float[Array, ""]:
        return sum_leaves(jax.tree.map(lambda x, y: jnp.sum(excess(y, x)), self.value, other.value))

    def statistic(self, theta: PyTree) -> PyTree:
        """−½θ², entry by entry."""
        return jax.tree.map(lambda x: -0.5 * x**2, theta)


class Diagonal(AbstractStructure):
    """Λ = diag(τ)."""

    name: ClassVar[str] = "diagonal"
    is_entrywise: ClassVar[bool] = True

    def over(self, layout: Layout) -> "Diagonal":
        return self

    def of(self, value: Any, layout: Layout) -> DiagonalPrecision:
        if jax.tree.structure(value) == layout.structure:
            leaves = zip(jax.tree.leaves(value), layout.dtypes, strict=True)
            cast = [as_array(x, "precision", dtype) for x, dtype in leaves]
            value = jax.tree.unflatten(layout.structure, cast)
        value, own = as_arrays(value, "precision")
        layout.require_same(own, "mean and precision")
        return DiagonalPrecision(require_finite(value, "precision"), layout)

    def of_matrix(self, matrix: ImplicitMatrix, layout: Layout) -> DiagonalPrecision:
        return DiagonalPrecision(matrix.diagonal(), layout)

    def convert(self, precision: AbstractPrecision) -> DiagonalPrecision:
        return DiagonalPrecision(precision.diagonal(), precision.layout)

    def outer(self, x: PyTree, y: PyTree, layout: Layout) -> DiagonalPrecision:
        return DiagonalPrecision(jax.tree.map(jnp.multiply, x, y), layout)

    def joined(self, other: "Diagonal") -> "Diagonal":
        return self

    def largest_block(self, layout: Layout) -> int:
        return 1
