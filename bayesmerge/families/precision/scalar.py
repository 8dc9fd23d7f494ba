"""One precision for all parameters, Λ = τI."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.arrays import as_array
from bayesmerge.families.checks import require_finite
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision.abstract import (
    AbstractPrecision,
    AbstractStructure,
    ImplicitMatrix,
)
from bayesmerge.families.precision.entrywise import AbstractEntrywise
from bayesmerge.families.special import excess
from bayesmerge.families.trees import tree_dot


class ScalarPrecision(AbstractEntrywise):
    """Λ = τI.

    - `value`: τ, a scalar.
    """

    value: Float[Array, "*batch"]
    layout: Layout = eqx.field(static=True)

    @property
    def structure(self) -> "Isotropic":
        return Isotropic()

    def of_leaf(self, i: int) -> Any:
        return self.value.astype(self.layout.dtypes[i])

    def log_determinant(self) -> Float[Array, ""]:
        return self.layout.size * jnp.log(self.value)

    def excess(self, other: "ScalarPrecision") -> Float[Array, ""]:
        return self.layout.size * excess(other.value, self.value)

    def statistic(self, theta: PyTree) -> Float[Array, ""]:
        """−½‖θ‖²."""
        return -0.5 * tree_dot(theta, theta)


class Isotropic(AbstractStructure):
    """Λ = τI: the mean of the diagonal is what it keeps of another matrix."""

    name: ClassVar[str] = "isotropic"
    is_entrywise: ClassVar[bool] = True

    def over(self, layout: Layout) -> "Isotropic":
        return self

    def of(self, value: Any, layout: Layout) -> ScalarPrecision:
        tau = as_array(value, "precision", jnp.result_type(*layout.dtypes))
        if tau.shape != ():
            raise ValueError(f"precision has shape {tau.shape}, and an isotropic one is a scalar.")
        return ScalarPrecision(require_finite(tau, "precision"), layout)

    def of_matrix(self, matrix: ImplicitMatrix, layout: Layout) -> ScalarPrecision:
        return ScalarPrecision(jnp.mean(layout.ravel(matrix.diagonal())), layout)

    def convert(self, precision: AbstractPrecision) -> ScalarPrecision:
        if isinstance(precision, ScalarPrecision):
            return precision
        layout = precision.layout
        return ScalarPrecision(jnp.mean(layout.ravel(precision.diagonal())), layout)

    def outer(self, x: PyTree, y: PyTree, layout: Layout) -> ScalarPrecision:
        dtype = jnp.result_type(*layout.dtypes)
        return ScalarPrecision((tree_dot(x, y) / layout.size).astype(dtype), layout)

    def joined(self, other: "Isotropic") -> "Isotropic":
        return self

    def largest_block(self, layout: Layout) -> int:
        return 1
