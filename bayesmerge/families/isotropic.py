"""Isotropic Gaussians: one precision for all parameters, Λ = τI."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from bayesmerge.arrays import as_array
from bayesmerge.families.base import over_batch, tree_dot
from bayesmerge.families.checks import require_finite
from bayesmerge.families.diagonal import DiagonalGaussian
from bayesmerge.families.gaussian import AbstractGaussian, entrywise_numbers, require_positive
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.special import excess


class IsotropicGaussian(AbstractGaussian):
    """N(θ | μ, I/τ): one precision τ for all parameters.

    Natural parameters λ = (τμ, τ) with T(θ) = (θ, −½‖θ‖²). Merging with N(θ_t, I) is simple
    averaging (FP-9).

    - `linear`: τμ, a pytree shaped as θ, floating point.
    - `precision`: τ, a scalar.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = bm.IsotropicGaussian.from_mean_precision({"w": jnp.array([1.0, 3.0])}, 2.0)
    >>> (q * q).mode()["w"], (q * q).precision
    (Array([1., 3.], dtype=float32), Array(4., dtype=float32))

    ```
    """

    linear: PyTree
    precision: Float[Array, "*batch"]
    layout: Layout = eqx.field(static=True)
    breadth: ClassVar[int] = 0

    @classmethod
    def from_mean_precision(cls, mean: PyTree, precision: ArrayLike) -> "IsotropicGaussian":
        """N(mean, I/precision).

        - `mean`: μ, any pytree of floating-point arrays.
        - `precision`: τ > 0, a scalar.

        **Raises** `TypeError` for integer parameters, `ValueError` for τ ≤ 0 or what is not finite.
        """
        mean, layout = as_arrays(mean, "mean")
        mean = require_finite(mean, "mean")
        tau = as_array(precision, "precision", jnp.result_type(*layout.dtypes))
        if tau.shape != ():
            raise ValueError(f"precision has shape {tau.shape}, and an isotropic one is a scalar.")
        tau = require_positive(tau)
        linear = jax.tree.map(lambda m: tau.astype(m.dtype) * m, mean)
        linear = require_finite(linear, "mean times precision")
        return cls(linear=linear, precision=tau, layout=layout)

    @classmethod
    def from_natural_parameters(cls, linear: PyTree, precision: ArrayLike) -> "IsotropicGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½τ‖θ‖²) with η = `linear`, τ = `precision`."""
        linear, layout = as_arrays(linear, "linear")
        tau = as_array(precision, "precision", jnp.result_type(*layout.dtypes))
        linear, tau = require_finite(linear, "linear"), require_finite(tau, "precision")
        return cls(linear=linear, precision=tau, layout=layout)

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(θ) = (θ, −½‖θ‖²)."""
        return theta, -0.5 * tree_dot(theta, theta)

    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether 0 < τ < ∞."""
        return (self.precision > 0) & jnp.isfinite(self.precision)

    def multiply(self, theta: PyTree) -> PyTree:
        return jax.tree.map(lambda x: self.precision.astype(x.dtype) * x, theta)

    def solve(self, vector: PyTree) -> PyTree:
        return self._solve(self.precision, vector)

    def sandwich(self, G: Float[Array, ""]) -> Float[Array, ""]:
        return G**2 / self.precision

    def entries(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        return (tree_dot(x, y) / self.layout.size).astype(self.precision.dtype)

    def smallest_precision(self) -> Float[Array, "*batch"]:
        """τ."""
        return self.precision

    @over_batch
    def widen(self) -> "DiagonalGaussian":
        shapes, dtypes = self.layout.shapes, self.layout.dtypes
        leaves = [
            jnp.full(shape, self.precision.astype(dtype))
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        precision = jax.tree.unflatten(self.layout.structure, leaves)
        return DiagonalGaussian(linear=self.linear, precision=precision, layout=self.layout)

    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        linear, tau = jax.tree.leaves(self.linear), self.precision
        return entrywise_numbers(linear, [tau] * len(linear), bool(0 < tau < np.inf))

    def _unchecked_factor(self) -> Array:
        return self.precision

    def _factor(self, what: str) -> Array:
        return self._require_proper(
            self.precision, what, lambda: f"Its precision is {self.precision}."
        )

    def _solve(self, factor: Array, linear: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x / factor.astype(x.dtype), linear)

    def _log_determinant(self, factor: Array) -> Float[Array, ""]:
        return self.layout.size * jnp.log(factor)

    def _correlate(self, factor: Array, noise: PyTree) -> PyTree:
        return self._solve(jnp.sqrt(factor), noise)

    def _marginal_variance(self, factor: Array) -> PyTree:
        return self._solve(factor, jax.tree.map(jnp.ones_like, self.linear))

    def _spread_divergence(self, factor: Array, other: "IsotropicGaussian") -> Float[Array, ""]:
        return self.layout.size * excess(other.precision, factor)
