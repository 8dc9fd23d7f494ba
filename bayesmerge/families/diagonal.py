"""Diagonal Gaussians: a precision for every parameter, Λ = diag(τ)."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from bayesmerge.arrays import as_array, require_same_labels
from bayesmerge.families.base import over_batch, sum_leaves
from bayesmerge.families.checks import largest, require_finite, smallest
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gaussian import AbstractGaussian, entrywise_numbers, require_positive
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.special import excess


class DiagonalGaussian(AbstractGaussian):
    """N(θ | μ, diag(τ)⁻¹): a precision for every parameter, leaf by leaf, never flattened.

    Natural parameters λ = (τμ, τ) with T(θ) = (θ, −½θ²), entry by entry. Merging these is
    Fisher-weighted averaging when τ is a Fisher information (GM §2).

    - `linear`: τμ, a pytree shaped as θ, floating point.
    - `precision`: τ, a pytree shaped as θ.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> p = bm.DiagonalGaussian.from_mean_precision(jnp.array([0.0, 0.0]), jnp.array([1.0, 3.0]))
    >>> q = bm.DiagonalGaussian.from_mean_precision(jnp.array([4.0, 4.0]), jnp.array([3.0, 1.0]))
    >>> (p * q).mode()
    Array([3., 1.], dtype=float32)

    ```
    """

    linear: PyTree
    precision: PyTree
    layout: Layout = eqx.field(static=True)
    breadth: ClassVar[int] = 1

    @classmethod
    def from_mean_precision(cls, mean: PyTree, precision: PyTree) -> "DiagonalGaussian":
        """N(mean, diag(precision)⁻¹).

        - `mean`: μ, any pytree of floating-point arrays.
        - `precision`: τ > 0, a pytree shaped as `mean`.

        **Raises** `TypeError` for integer parameters, `ValueError` for an entry τ ≤ 0, for what is
        not finite, and where the two pytrees differ.
        """
        mean, precision, layout = _mean_and_diagonal(mean, precision)
        precision = require_positive(precision)
        linear = jax.tree.map(jnp.multiply, precision, mean)
        linear = require_finite(linear, "mean times precision")
        return cls(linear=linear, precision=precision, layout=layout)

    @classmethod
    def from_natural_parameters(cls, linear: PyTree, precision: PyTree) -> "DiagonalGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½θᵀdiag(τ)θ), η = `linear`, τ = `precision`."""
        linear, precision, layout = _mean_and_diagonal(linear, precision)
        return cls(linear=linear, precision=precision, layout=layout)

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(θ) = (θ, −½θ²)."""
        return theta, jax.tree.map(lambda x: -0.5 * x**2, theta)

    @over_batch
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether every precision is in (0, ∞)."""
        return (smallest(self.precision) > 0) & (largest(self.precision) < jnp.inf)

    def multiply(self, theta: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, self.precision, theta)

    def solve(self, vector: PyTree) -> PyTree:
        return self._solve(self.precision, vector)

    def sandwich(self, G: PyTree) -> PyTree:
        return jax.tree.map(lambda g, x: g**2 / x, G, self.precision)

    def entries(self, x: PyTree, y: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, x, y)

    @over_batch
    def smallest_precision(self) -> Float[Array, "*batch"]:
        """The smallest entry of τ."""
        return smallest(self.precision)

    @over_batch
    def widen(self) -> "FullGaussian":
        precision = jnp.diag(self.layout.ravel(self.precision))
        return FullGaussian(linear=self.linear, precision=precision, layout=self.layout)

    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        precision = jax.tree.leaves(self.precision)
        proper = all(x.size == 0 or (x.min() > 0 and x.max() < np.inf) for x in precision)
        return entrywise_numbers(jax.tree.leaves(self.linear), precision, proper)

    def _unchecked_factor(self) -> PyTree:
        return self.precision

    def _factor(self, what: str) -> PyTree:
        def detail() -> str:
            return f"Its smallest precision is {self.smallest_precision()}."

        return self._require_proper(self.precision, what, detail)

    def _solve(self, factor: PyTree, linear: PyTree) -> PyTree:
        return jax.tree.map(jnp.divide, linear, factor)

    def _log_determinant(self, factor: PyTree) -> Float[Array, ""]:
        return sum_leaves(jax.tree.map(lambda x: jnp.sum(jnp.log(x)), factor))

    def _correlate(self, factor: PyTree, noise: PyTree) -> PyTree:
        return jax.tree.map(lambda e, x: e / jnp.sqrt(x), noise, factor)

    def _marginal_variance(self, factor: PyTree) -> PyTree:
        return jax.tree.map(lambda x: 1 / x, factor)

    def _spread_divergence(self, factor: PyTree, other: "DiagonalGaussian") -> Float[Array, ""]:
        return sum_leaves(jax.tree.map(lambda x, y: jnp.sum(excess(y, x)), factor, other.precision))


def _mean_and_diagonal(mean: PyTree, precision: PyTree) -> tuple[PyTree, PyTree, Layout]:
    require_same_labels(mean, precision)
    mean, layout = as_arrays(mean, "mean")
    if jax.tree.structure(precision) == layout.structure:
        precision = jax.tree.map(lambda x, m: as_array(x, "precision", m.dtype), precision, mean)
    precision, precision_layout = as_arrays(precision, "precision")
    layout.require_same(precision_layout, "mean and precision")
    return require_finite(mean, "mean"), require_finite(precision, "precision"), layout
