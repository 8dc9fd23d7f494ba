"""What a precision Λ promises: a symmetric operator over pytrees shaped as θ.

Its leaves are natural parameters, so that precisions of one structure add and scale as pytrees;
`promotion.join` finds the structure that holds the sum of two others.
"""

import abc
from typing import Any, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from bayesmerge.families.layout import Layout
from bayesmerge.families.show import safely, show_precision

P = TypeVar("P", bound="AbstractPrecision")


@runtime_checkable
class ImplicitMatrix(Protocol):
    """A symmetric matrix known by products, such as a curvature, of which a structure computes what
    it keeps."""

    def diagonal(self) -> PyTree:
        """Its diagonal, shaped as θ."""

    def dense(self) -> Float[Array, "P P"]:
        """All of it."""

    def restricted(self, leaves: tuple[int, ...]) -> "ImplicitMatrix":
        """Rows and columns of the leaves with these numbers."""


class AbstractStructure(eqx.Module):
    """Which entries of Λ there are. Structures are hashable, and make precisions."""

    name: eqx.AbstractClassVar[str]
    is_entrywise: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def over(self, layout: Layout) -> "AbstractStructure":
        """The same structure, in terms of the leaves of θ."""

    @abc.abstractmethod
    def of(self, value: Any, layout: Layout) -> "AbstractPrecision":
        """A precision from what users give, checked to have the right shapes, to be symmetric and
        finite."""

    @abc.abstractmethod
    def of_matrix(self, matrix: ImplicitMatrix, layout: Layout) -> "AbstractPrecision":
        """The entries that this structure keeps of an implicit matrix."""

    @abc.abstractmethod
    def convert(self, precision: "AbstractPrecision") -> "AbstractPrecision":
        """The entries that this structure keeps of another precision."""

    @abc.abstractmethod
    def outer(self, x: PyTree, y: PyTree, layout: Layout) -> "AbstractPrecision":
        """The entries that this structure keeps of ½(xyᵀ + yxᵀ)."""

    @abc.abstractmethod
    def joined(self: Any, other: Any) -> Any:
        """The smallest structure that holds this one and another of the same class."""

    @abc.abstractmethod
    def largest_block(self, layout: Layout) -> int:
        """Parameters of the largest dense block."""


class AbstractPrecision(eqx.Module):
    """Λ, symmetric and perhaps indefinite, over pytrees shaped as θ.

    - `value`: its entries, arrays or a pytree of them, as the structure keeps them.
    - `layout`: of θ.
    """

    __repr__ = safely(show_precision)

    value: eqx.AbstractVar[Any]
    layout: eqx.AbstractVar[Layout]

    @property
    @abc.abstractmethod
    def structure(self) -> AbstractStructure:
        """Which entries Λ has."""

    @abc.abstractmethod
    def multiply(self, theta: PyTree) -> PyTree:
        """Λθ."""

    @abc.abstractmethod
    def factor(self) -> "AbstractFactor":
        """A factorisation, to solve with Λ: nothing is checked."""

    @abc.abstractmethod
    def diagonal(self) -> PyTree:
        """diag Λ, shaped as θ."""

    @abc.abstractmethod
    def block(self, leaves: tuple[int, ...]) -> Float[Array, "_ _"]:
        """Rows and columns of the leaves with these numbers, as a matrix."""

    @abc.abstractmethod
    def weakest(self) -> tuple[Float[Array, ""], PyTree]:
        """The smallest eigenvalue, and a direction of unit length along which it is attained."""

    @abc.abstractmethod
    def sandwich(self: P, G: P) -> P:
        """GΛ⁻¹G, for G of the same structure."""

    @abc.abstractmethod
    def absolute(self: P) -> P:
        """Λ with the absolute values of its eigenvalues, at least √ε of the largest."""

    @abc.abstractmethod
    def statistic(self, theta: PyTree) -> Any:
        """T(θ), shaped as `value`, for which ⟨value, T(θ)⟩ = −½θᵀΛθ."""

    @abc.abstractmethod
    def shown(self, linear: list[Any]) -> tuple[list[Any], list[Any]] | None:
        """First entries of Λ⁻¹η and √diag Λ⁻¹, leaf by leaf, of NumPy's arrays in float64; or
        `None` where Λ is not positive definite."""

    def dense(self) -> Float[Array, "P P"]:
        """All of Λ, in the order of `layout.ravel`."""
        return self.block(tuple(range(len(self.layout.names))))

    def scaled(self: P, factor: Any) -> P:
        """Λ times a number."""
        return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, self)

    def plus(self: P, other: P, times: Any = 1.0) -> P:
        """Λ + times · Λ', for Λ' of the same structure."""
        return jax.tree.map(lambda x, y: x + jnp.asarray(times, y.dtype) * y, self, other)


class AbstractFactor(eqx.Module):
    """A factorisation of Λ."""

    @abc.abstractmethod
    def is_positive(self) -> Bool[Array, ""]:
        """Whether Λ is positive definite and finite."""

    @abc.abstractmethod
    def solve(self, vector: PyTree) -> PyTree:
        """Λ⁻¹v."""

    @abc.abstractmethod
    def half_solve(self, noise: PyTree) -> PyTree:
        """Λ^{-½}ε, of covariance Λ⁻¹ where ε is standard normal."""

    @abc.abstractmethod
    def log_determinant(self) -> Float[Array, ""]:
        """The logarithm of the determinant of Λ."""

    @abc.abstractmethod
    def inverse(self) -> Any:
        """Λ⁻¹, of the structure of Λ."""

    @abc.abstractmethod
    def excess(self, other: Any) -> Float[Array, ""]:
        """Σ (r − 1 − log r) over the eigenvalues r of Λ⁻¹Λ', Λ' of another factor."""

    def inverse_diagonal(self) -> PyTree:
        """diag Λ⁻¹, shaped as θ."""
        return self.inverse().diagonal()


def away_from_zero(values: Array) -> Array:
    """|x|, at least √ε times the largest."""
    values = jnp.abs(values)
    return jnp.maximum(values, jnp.finfo(values.dtype).eps ** 0.5 * jnp.max(values, initial=0))
