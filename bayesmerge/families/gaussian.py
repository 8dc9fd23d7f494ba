"""Gaussians N(θ | μ, Λ⁻¹) in natural parameters: isotropic ⊂ diagonal ⊂ full.

λ = (Λμ, Λ) pairs with T(θ) = (θ, −½θθᵀ): `linear` and `precision` here. Multiplying posteriors
adds both, which is FP-10: the mode of Π N(θ_t, H_t⁻¹)^{α_t} is (Σ α_t H_t)⁻¹ Σ α_t H_t θ_t.
"""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.families.base import (
    AbstractExponentialFamily,
    keys_like,
    over_batch,
    over_batch_with_key,
    sum_leaves,
    tree_dot,
)
from bayesmerge.families.checks import all_finite, require, require_finite
from bayesmerge.families.layout import Layout, as_arrays

LOG_2PI = math.log(2 * math.pi)


class AbstractGaussian(AbstractExponentialFamily):
    """What the three structures share. Every density is computed from θ − μ, so that nothing
    cancels when means are large, and from one factor of Λ."""

    linear: eqx.AbstractVar[PyTree]
    precision: eqx.AbstractVar[PyTree]
    breadth: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def multiply(self, theta: PyTree) -> PyTree:
        """Λθ."""

    @abc.abstractmethod
    def squared_length(self, gradient: PyTree) -> Float[Array, ""]:
        """gᵀΛ⁻¹g, the squared length of a gradient g in units of the posterior; NaN if improper."""

    @abc.abstractmethod
    def widen(self) -> "AbstractGaussian":
        """The same density in the next larger family."""

    @abc.abstractmethod
    def smallest_precision(self) -> Float[Array, "*batch"]:
        """The smallest eigenvalue of Λ."""

    @abc.abstractmethod
    def _factor(self, what: str) -> PyTree:
        """A factor of Λ, or an error that there is no `what`."""

    @abc.abstractmethod
    def _solve(self, factor: PyTree, linear: PyTree) -> PyTree:
        """Λ⁻¹η."""

    @abc.abstractmethod
    def _log_determinant(self, factor: PyTree) -> Float[Array, ""]:
        """log |Λ|."""

    @abc.abstractmethod
    def _correlate(self, factor: PyTree, noise: PyTree) -> PyTree:
        """Λ^{-½}ε."""

    @abc.abstractmethod
    def _marginal_variance(self, factor: PyTree) -> PyTree:
        """diag Λ⁻¹, in the shape of θ."""

    @abc.abstractmethod
    def _spread_divergence(self, factor: PyTree, other: Any) -> Float[Array, ""]:
        """Σ (r − 1 − log r) over the eigenvalues r of Λ⁻¹Λ_other."""

    @property
    def natural_parameters(self) -> PyTree:
        return self.linear, self.precision

    @over_batch
    def log_density(self, theta: PyTree) -> Float[Array, "*batch"]:
        """⟨λ, T(θ)⟩ = ηᵀθ − ½θᵀΛθ, defined for improper objects too."""
        theta = self._theta(theta)
        return tree_dot(theta, self.linear) - 0.5 * tree_dot(theta, self.multiply(theta))

    @over_batch
    def mode(self) -> PyTree:
        """argmax_θ log q(θ) = μ = Λ⁻¹(Λμ), by one factorisation of Λ."""
        return self._solve(self._factor("mode"), self.linear)

    @over_batch
    def mean(self) -> PyTree:
        """E_q[θ] = μ."""
        return self._solve(self._factor("mean"), self.linear)

    @over_batch
    def variance(self) -> PyTree:
        """The diagonal of Λ⁻¹, in the shape of θ."""
        return self._marginal_variance(self._factor("variance"))

    @over_batch
    def log_partition(self) -> Float[Array, "*batch"]:
        """A(λ) = ½ηᵀΛ⁻¹η − ½log|Λ| + ½P log 2π."""
        factor = self._factor("log-partition")
        quadratic = tree_dot(self.linear, self._solve(factor, self.linear))
        return 0.5 * (quadratic - self._log_determinant(factor) + self.layout.size * LOG_2PI)

    @over_batch
    def log_prob(self, theta: PyTree) -> Float[Array, "*batch"]:
        """log N(θ | μ, Λ⁻¹)."""
        factor = self._factor("normalised density")
        log_determinant = self._log_determinant(factor)
        distance = self._distance(self._theta(theta), self._solve(factor, self.linear))
        return 0.5 * (log_determinant - distance - self.layout.size * LOG_2PI)

    @over_batch
    def entropy(self) -> Float[Array, "*batch"]:
        """½P log 2πe − ½log|Λ|."""
        log_determinant = self._log_determinant(self._factor("entropy"))
        return 0.5 * (self.layout.size * (LOG_2PI + 1) - log_determinant)

    def kl_divergence(self, other: Any) -> Float[Array, "*batch"]:
        """½[Σ(r − 1 − log r) + ‖μ − μ_other‖²_{Λ_other}], r the eigenvalues of Λ⁻¹Λ_other."""
        self.layout.require_same(other.layout)
        p, q = self.aligned_with(other)
        axes = (0 if p.batch_shape else None, 0 if q.batch_shape else None)
        divergence = type(p)._kl_divergence
        if axes != (None, None):
            divergence = jax.vmap(divergence, axes)
        return divergence(p, q)

    def _kl_divergence(self, other: Any) -> Float[Array, ""]:
        factor = self._factor("divergence")
        mean, other_mean = self._solve(factor, self.linear), other.mean()
        distance = other._distance(mean, other_mean)
        return 0.5 * (self._spread_divergence(factor, other) + distance)

    @over_batch_with_key
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> PyTree:
        """θ = μ + Λ^{-½}ε, ε ~ N(0, I)."""
        factor = self._factor("sample")
        mean = self._solve(factor, self.linear)

        def draw(key: PRNGKeyArray) -> PyTree:
            noise = jax.tree.map(
                lambda k, m: jax.random.normal(k, m.shape, m.dtype), keys_like(key, mean), mean
            )
            return jax.tree.map(jnp.add, mean, self._correlate(factor, noise))

        if shape == ():
            return draw(key)
        draws = jax.vmap(draw)(jax.random.split(key, math.prod(shape)))
        return jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[1:]), draws)

    def aligned_with(self, other: AbstractExponentialFamily) -> tuple[Any, Any]:
        if not isinstance(other, AbstractGaussian):
            raise TypeError(
                f"a {type(self).__name__} and a {type(other).__name__} are not members of one "
                "exponential family, so their product has no closed form here."
            )
        p: Any = self
        q: Any = other
        while p.breadth < q.breadth:
            p = p.widen()
        while q.breadth < p.breadth:
            q = q.widen()
        return p, q

    def _distance(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        """‖x − y‖²_Λ."""
        difference = jax.tree.map(jnp.subtract, x, y)
        return tree_dot(difference, self.multiply(difference))


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
        tau = jnp.asarray(precision, jnp.result_type(*layout.dtypes))
        if tau.shape != ():
            raise ValueError(f"precision has shape {tau.shape}, and an isotropic one is a scalar.")
        tau = _require_positive(tau)
        linear = jax.tree.map(lambda m: tau.astype(m.dtype) * m, mean)
        return cls(linear=linear, precision=tau, layout=layout)

    @classmethod
    def from_natural_parameters(cls, linear: PyTree, precision: ArrayLike) -> "IsotropicGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½τ‖θ‖²) with η = `linear`, τ = `precision`."""
        linear, layout = as_arrays(linear, "linear")
        tau = jnp.asarray(precision, jnp.result_type(*layout.dtypes))
        return cls(linear=linear, precision=tau, layout=layout)

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(θ) = (θ, −½‖θ‖²)."""
        return theta, -0.5 * tree_dot(theta, theta)

    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether 0 < τ < ∞."""
        return (self.precision > 0) & jnp.isfinite(self.precision)

    def multiply(self, theta: PyTree) -> PyTree:
        return jax.tree.map(lambda x: self.precision.astype(x.dtype) * x, theta)

    def squared_length(self, gradient: PyTree) -> Float[Array, ""]:
        return tree_dot(gradient, self._solve(self.precision, gradient))

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

    def _factor(self, what: str) -> Array:
        return self._require_proper(what, lambda: f"Its precision is {self.precision}.").precision

    def _solve(self, factor: Array, linear: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x / factor.astype(x.dtype), linear)

    def _log_determinant(self, factor: Array) -> Float[Array, ""]:
        return self.layout.size * jnp.log(factor)

    def _correlate(self, factor: Array, noise: PyTree) -> PyTree:
        return self._solve(jnp.sqrt(factor), noise)

    def _marginal_variance(self, factor: Array) -> PyTree:
        return self._solve(factor, jax.tree.map(jnp.ones_like, self.linear))

    def _spread_divergence(self, factor: Array, other: "IsotropicGaussian") -> Float[Array, ""]:
        return self.layout.size * _excess(other.precision / factor)


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
        precision = _require_positive(precision)
        linear = jax.tree.map(jnp.multiply, precision, mean)
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
        return all_finite(self.precision) & (self.smallest_precision() > 0)

    def multiply(self, theta: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, self.precision, theta)

    def squared_length(self, gradient: PyTree) -> Float[Array, ""]:
        return tree_dot(gradient, self._solve(self.precision, gradient))

    @over_batch
    def smallest_precision(self) -> Float[Array, "*batch"]:
        """The smallest entry of τ."""
        return jnp.min(jnp.stack([jnp.min(x) for x in jax.tree.leaves(self.precision)]))

    @over_batch
    def widen(self) -> "FullGaussian":
        precision = jnp.diag(self.layout.ravel(self.precision))
        return FullGaussian(linear=self.linear, precision=precision, layout=self.layout)

    def _factor(self, what: str) -> PyTree:
        def detail() -> str:
            return f"Its smallest precision is {self.smallest_precision()}."

        return self._require_proper(what, detail).precision

    def _solve(self, factor: PyTree, linear: PyTree) -> PyTree:
        return jax.tree.map(jnp.divide, linear, factor)

    def _log_determinant(self, factor: PyTree) -> Float[Array, ""]:
        return sum_leaves(jax.tree.map(lambda x: jnp.sum(jnp.log(x)), factor))

    def _correlate(self, factor: PyTree, noise: PyTree) -> PyTree:
        return jax.tree.map(lambda e, x: e / jnp.sqrt(x), noise, factor)

    def _marginal_variance(self, factor: PyTree) -> PyTree:
        return jax.tree.map(lambda x: 1 / x, factor)

    def _spread_divergence(self, factor: PyTree, other: "DiagonalGaussian") -> Float[Array, ""]:
        excess = jax.tree.map(lambda x, y: jnp.sum(_excess(y / x)), factor, other.precision)
        return sum_leaves(excess)


class FullGaussian(AbstractGaussian):
    """N(θ | μ, Λ⁻¹) with any positive-definite precision Λ over the flattened parameters.

    Natural parameters λ = (Λμ, Λ) with T(θ) = (θ, −½θθᵀ). Rows and columns of Λ follow
    `layout.ravel(theta)`. The mode is computed by one Cholesky factorisation, never an inverse; its
    relative error is about κ(Λ)·ε, κ the condition number after scaling Λ to a unit diagonal.

    - `linear`: Λμ, a pytree shaped as θ, floating point.
    - `precision`: Λ, shape (P, P).

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> Lambda = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> q = bm.FullGaussian.from_mean_precision({"a": jnp.array(1.0), "b": jnp.array(0.0)}, Lambda)
    >>> q.linear["a"], q.linear["b"]
    (Array(2., dtype=float32), Array(1., dtype=float32))

    ```
    """

    linear: PyTree
    precision: Float[Array, "*batch P P"]
    layout: Layout = eqx.field(static=True)
    breadth: ClassVar[int] = 2

    @classmethod
    def from_mean_precision(cls, mean: PyTree, precision: ArrayLike) -> "FullGaussian":
        """N(mean, precision⁻¹).

        - `mean`: μ, any pytree of floating-point arrays with P entries.
        - `precision`: Λ, shape (P, P), symmetric and positive definite.

        **Raises** `TypeError` for integer parameters, `ValueError` for a matrix of another shape,
        not symmetric, not positive definite or not finite.
        """
        mean, layout = as_arrays(mean, "mean")
        mean = require_finite(mean, "mean")
        precision = _symmetric(precision, layout)
        linear = layout.unravel(precision @ layout.ravel(mean))
        q = cls(linear=linear, precision=precision, layout=layout)
        message = "precision must be positive definite for a proper posterior, and it is not."
        return require(q, q.is_proper(), message, q._eigenvalue_detail)

    @classmethod
    def from_natural_parameters(cls, linear: PyTree, precision: ArrayLike) -> "FullGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½θᵀΛθ) with η = `linear`, Λ = `precision`."""
        linear, layout = as_arrays(linear, "linear")
        return cls(linear=linear, precision=_symmetric(precision, layout), layout=layout)

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(θ) = (θ, −½θθᵀ)."""
        vector = self.layout.ravel(theta)
        return theta, -0.5 * jnp.outer(vector, vector)

    @over_batch
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether Λ has a Cholesky factor."""
        return all_finite(jnp.linalg.cholesky(self.precision))

    def multiply(self, theta: PyTree) -> PyTree:
        return self.layout.unravel(self.precision @ self.layout.ravel(theta))

    def squared_length(self, gradient: PyTree) -> Float[Array, ""]:
        return tree_dot(gradient, self._solve(jnp.linalg.cholesky(self.precision), gradient))

    @over_batch
    def smallest_precision(self) -> Float[Array, "*batch"]:
        """The smallest eigenvalue of Λ."""
        return jnp.linalg.eigvalsh(self.precision)[0]

    def widen(self) -> AbstractGaussian:
        raise TypeError("a FullGaussian is already the widest Gaussian family.")

    @over_batch
    def covariance(self) -> Float[Array, "*batch P P"]:
        """Λ⁻¹, shape (P, P)."""
        return self._covariance(self._factor("covariance"))

    def _factor(self, what: str) -> Float[Array, "P P"]:
        factor = jnp.linalg.cholesky(self.precision)
        message = (
            f"this FullGaussian is improper and has no {what}: its precision is not positive "
            "definite. A quotient of posteriors, or negative weights, can take away more than "
            "there is: multiply by a prior, or use smaller weights."
        )
        return require(factor, all_finite(factor), message, self._eigenvalue_detail)

    def _eigenvalue_detail(self) -> str:
        return f"Its smallest eigenvalue is {self.smallest_precision()}."

    def _covariance(self, factor: Float[Array, "P P"]) -> Float[Array, "P P"]:
        return cho_solve((factor, True), jnp.eye(self.layout.size, dtype=factor.dtype))

    def _solve(self, factor: Float[Array, "P P"], linear: PyTree) -> PyTree:
        return self.layout.unravel(cho_solve((factor, True), self.layout.ravel(linear)))

    def _log_determinant(self, factor: Float[Array, "P P"]) -> Float[Array, ""]:
        return 2 * jnp.sum(jnp.log(jnp.diag(factor)))

    def _correlate(self, factor: Float[Array, "P P"], noise: PyTree) -> PyTree:
        vector = self.layout.ravel(noise)
        return self.layout.unravel(solve_triangular(factor, vector, trans=1, lower=True))

    def _marginal_variance(self, factor: Float[Array, "P P"]) -> PyTree:
        return self.layout.unravel(jnp.diag(self._covariance(factor)))

    def _spread_divergence(
        self, factor: Float[Array, "P P"], other: "FullGaussian"
    ) -> Float[Array, ""]:
        half = solve_triangular(factor, other._factor("divergence"), lower=True)
        log_ratio = other._log_determinant(other._factor("divergence"))
        log_ratio = log_ratio - self._log_determinant(factor)
        return jnp.sum(half**2) - self.layout.size - log_ratio


def _excess(ratio: Array) -> Array:
    """r − 1 − log r, accurate near r = 1."""
    return ratio - 1 - jnp.log1p(ratio - 1)


def _mean_and_diagonal(mean: PyTree, precision: PyTree) -> tuple[PyTree, PyTree, Layout]:
    mean, layout = as_arrays(mean, "mean")
    precision, precision_layout = as_arrays(precision, "precision")
    layout.require_same(precision_layout, "mean and precision")
    return require_finite(mean, "mean"), require_finite(precision, "precision"), layout


def _require_positive(precision: PyTree) -> PyTree:
    precision = require_finite(precision, "precision")
    smallest = jnp.min(jnp.stack([jnp.min(x) for x in jax.tree.leaves(precision)]))
    message = "precision must be positive in every entry for a proper posterior, and it is not."
    return require(precision, smallest > 0, message, lambda: f"The smallest entry is {smallest}.")


def _symmetric(precision: ArrayLike, layout: Layout) -> Float[Array, "P P"]:
    """`precision` with rounding errors of symmetry removed, or an error where it has more."""
    matrix = jnp.asarray(precision, jnp.result_type(*layout.dtypes))
    if matrix.shape != (layout.size, layout.size):
        raise ValueError(
            f"precision has shape {matrix.shape}, and a full precision over {layout.size} "
            f"parameters has shape {(layout.size, layout.size)}."
        )
    matrix = require_finite(matrix, "precision")
    asymmetry = jnp.max(jnp.abs(matrix - matrix.T))
    allowed = jnp.sqrt(jnp.finfo(matrix.dtype).eps) * jnp.max(jnp.abs(matrix))
    message = "precision must be symmetric, and it is not."
    matrix = require(
        matrix,
        asymmetry <= allowed,
        message,
        lambda: f"The largest difference of mirrored entries is {asymmetry}.",
    )
    return 0.5 * (matrix + matrix.T)
