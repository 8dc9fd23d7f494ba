"""Any symmetric precision over the flattened parameters."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.layout import Layout
from bayesmerge.families.precision.abstract import (
    AbstractPrecision,
    AbstractStructure,
    ImplicitMatrix,
)
from bayesmerge.families.precision.matrices import AbstractMatrices, Groups, symmetric


class DensePrecision(AbstractMatrices):
    """Λ, all of it.

    - `value`: a matrix (P, P), rows and columns in the order of `layout.ravel`.
    """

    value: Float[Array, "*batch P P"]
    layout: Layout = eqx.field(static=True)

    @property
    def structure(self) -> "Full":
        return Full()

    @property
    def matrices(self) -> list[Any]:
        return [self.value]

    @property
    def grouping(self) -> Groups:
        return (tuple(range(len(self.layout.names))),)

    def with_matrices(self, matrices: list[Any]) -> "DensePrecision":
        return DensePrecision(matrices[0], self.layout)


class Full(AbstractStructure):
    """Every entry of Λ."""

    name: ClassVar[str] = "full"
    is_entrywise: ClassVar[bool] = False

    def over(self, layout: Layout) -> "Full":
        return self

    def of(self, value: Any, layout: Layout) -> DensePrecision:
        return DensePrecision(symmetric(value, layout.size, "precision", layout), layout)

    def of_matrix(self, matrix: ImplicitMatrix, layout: Layout) -> DensePrecision:
        return DensePrecision(matrix.dense(), layout)

    def convert(self, precision: AbstractPrecision) -> DensePrecision:
        return DensePrecision(precision.dense(), precision.layout)

    def outer(self, x: PyTree, y: PyTree, layout: Layout) -> DensePrecision:
        product = jnp.outer(layout.ravel(x), layout.ravel(y))
        return DensePrecision(0.5 * (product + product.T), layout)

    def joined(self, other: "Full") -> "Full":
        return self

    def largest_block(self, layout: Layout) -> int:
        return layout.size
