"""Precisions without correlations, Λ = diag(τ)."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from bayesmerge.families.checks import largest, smallest
from bayesmerge.families.precision.abstract import AbstractFactor, AbstractPrecision, away_from_zero
from bayesmerge.families.show import first


class AbstractEntrywise(AbstractPrecision):
    """Λ = diag(τ), τ known leaf by leaf."""

    @abc.abstractmethod
    def of_leaf(self, i: int) -> Any:
        """τ of one leaf, shaped as the leaf or a scalar, batches in front."""

    @abc.abstractmethod
    def log_determinant(self) -> Float[Array, ""]:
        """Σ log τ."""

    @abc.abstractmethod
    def excess(self, other: Any) -> Float[Array, ""]:
        """Σ (r − 1 − log r) over r = τ'/τ, τ' of `other`."""

    def taus(self) -> PyTree:
        """τ, shaped as θ or with scalars in the place of leaves."""
        leaves = [self.of_leaf(i) for i in range(len(self.layout.names))]
        return jax.tree.unflatten(self.layout.structure, leaves)

    def multiply(self, theta: PyTree) -> PyTree:
        return jax.tree.map(lambda tau, x: tau.astype(x.dtype) * x, self.taus(), theta)

    def factor(self) -> "EntrywiseFactor":
        return EntrywiseFactor(self)

    def diagonal(self) -> PyTree:
        leaves = [
            jnp.broadcast_to(self.of_leaf(i), shape).astype(dtype)
            for i, (shape, dtype) in enumerate(
                zip(self.layout.shapes, self.layout.dtypes, strict=True)
            )
        ]
        return jax.tree.unflatten(self.layout.structure, leaves)

    def block(self, leaves: tuple[int, ...]) -> Float[Array, "_ _"]:
        diagonal = jax.tree.leaves(self.diagonal())
        return jnp.diag(jnp.concatenate([diagonal[i].ravel() for i in leaves]))

    def weakest(self) -> tuple[Float[Array, ""], PyTree]:
        diagonal = self.layout.ravel(self.diagonal())
        unit = jax.nn.one_hot(jnp.argmin(diagonal), self.layout.size, dtype=diagonal.dtype)
        return jnp.min(diagonal), self.layout.unravel(unit)

    def sandwich(self, G: Any) -> Any:
        return jax.tree.map(lambda g, x: g**2 / x, G, self)

    def absolute(self) -> Any:
        return jax.tree.map(away_from_zero, self)

    def shown(self, linear: list[Any]) -> tuple[list[Any], list[Any]] | None:
        taus = [np.asarray(self.of_leaf(i)) for i in range(len(linear))]
        if not all(x.size == 0 or (x.min() > 0 and x.max() < np.inf) for x in taus):
            return None
        mean = [first(eta) / first(tau) for eta, tau in zip(linear, taus, strict=True)]
        return mean, [0 * m + first(tau) ** -0.5 for m, tau in zip(mean, taus, strict=True)]


class EntrywiseFactor(AbstractFactor):
    """The factor of Λ = diag(τ) is τ."""

    precision: AbstractEntrywise

    def is_positive(self) -> Bool[Array, ""]:
        values = self.precision.value
        return (smallest(values) > 0) & (largest(values) < jnp.inf)

    def solve(self, vector: PyTree) -> PyTree:
        return jax.tree.map(lambda x, tau: x / tau.astype(x.dtype), vector, self.precision.taus())

    def half_solve(self, noise: PyTree) -> PyTree:
        return jax.tree.map(
            lambda e, tau: e / jnp.sqrt(tau).astype(e.dtype), noise, self.precision.taus()
        )

    def log_determinant(self) -> Float[Array, ""]:
        return self.precision.log_determinant()

    def inverse(self) -> AbstractEntrywise:
        return jax.tree.map(lambda tau: 1 / tau, self.precision)

    def excess(self, other: "EntrywiseFactor") -> Float[Array, ""]:
        return self.precision.excess(other.precision)
