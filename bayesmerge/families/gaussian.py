"""What isotropic ⊂ diagonal ⊂ full Gaussians N(θ | μ, Λ⁻¹) share.

λ = (Λμ, Λ) pairs with T(θ) = (θ, −½θθᵀ): `linear` and `precision` here. Multiplying posteriors
adds both, which is FP-10: the mode of Π N(θ_t, H_t⁻¹)^{α_t} is (Σ α_t H_t)⁻¹ Σ α_t H_t θ_t.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from bayesmerge.families.base import (
    AbstractExponentialFamily,
    keys_like,
    over_batch,
    over_batch_with_key,
    over_batches,
    tree_dot,
)
from bayesmerge.families.checks import require, require_finite, smallest
from bayesmerge.families.marginals import in_float64, normal_quantile
from bayesmerge.families.show import IMPROPER, first

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
    def solve(self, vector: PyTree) -> PyTree:
        """Λ⁻¹v, of use where Λ is known to be positive definite: nothing is checked."""

    @abc.abstractmethod
    def sandwich(self, G: PyTree) -> PyTree:
        """GΛ⁻¹G, for G of the kind that `precision` is."""

    @abc.abstractmethod
    def entries(self, x: PyTree, y: PyTree) -> PyTree:
        """½(xyᵀ + yxᵀ), of which the kind that `precision` is keeps: the matrix, its diagonal, or
        its mean diagonal entry."""

    @abc.abstractmethod
    def widen(self) -> "AbstractGaussian":
        """The same density in the next larger family."""

    @abc.abstractmethod
    def smallest_precision(self) -> Float[Array, "*batch"]:
        """The smallest eigenvalue of Λ."""

    @abc.abstractmethod
    def _unchecked_factor(self) -> PyTree:
        """A factor of Λ."""

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

    def squared_length(self, gradient: PyTree) -> Float[Array, ""]:
        """gᵀΛ⁻¹g, the squared length of a gradient g in units of the posterior."""
        return tree_dot(gradient, self.solve(gradient))

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
    def std(self) -> PyTree:
        return jax.tree.map(jnp.sqrt, self._marginal_variance(self._factor("standard deviation")))

    @over_batch
    def quantile(self, p: ArrayLike | Sequence[Any]) -> PyTree:
        """μ + Φ⁻¹(p) √Var, as every family; within `jax.jit` too."""
        factor = self._factor("quantile")
        z = normal_quantile(p)
        mean, variance = self._solve(factor, self.linear), self._marginal_variance(factor)

        def of(m: Array, v: Array) -> Array:
            steps = jnp.asarray(z, m.dtype).reshape(z.shape + (1,) * m.ndim)
            return m[(None,) * z.ndim] + steps * jnp.sqrt(v)[(None,) * z.ndim]

        return jax.tree.map(of, mean, variance)

    def _marginals(self) -> list[Any]:
        import scipy.stats

        moments = zip(in_float64(self.mean()), in_float64(self.std()), strict=True)
        return [scipy.stats.norm(mean, std) for mean, std in moments]

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

    def log_ratio(self, theta: PyTree, reference: PyTree) -> Float[Array, ""]:
        """(θ − θ')ᵀ(η − ½Λ(θ + θ'))."""
        middle = jax.tree.map(lambda x, y: 0.5 * (x + y), theta, reference)
        slope = jax.tree.map(jnp.subtract, self.linear, self.multiply(middle))
        return tree_dot(jax.tree.map(jnp.subtract, theta, reference), slope)

    def log_ratio_to_mean(self, theta: PyTree, mean: PyTree) -> Float[Array, ""]:
        """−½‖θ − μ‖²_Λ."""
        return -0.5 * self._distance(theta, mean)

    @over_batch
    def entropy(self) -> Float[Array, "*batch"]:
        """½P log 2πe − ½log|Λ|."""
        log_determinant = self._log_determinant(self._factor("entropy"))
        return 0.5 * (self.layout.size * (LOG_2PI + 1) - log_determinant)

    def kl_divergence(self, other: Any) -> Float[Array, "*batch"]:
        """½[Σ(r − 1 − log r) + ‖μ − μ_other‖²_{Λ_other}], r the eigenvalues of Λ⁻¹Λ_other."""
        self.layout.require_same(other.layout)
        return over_batches(lambda p, q: p._kl_divergence(q), *self.aligned_with(other))

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

    def colouring(self) -> Callable[[PyTree], PyTree]:
        """u ↦ Λ^{-½}u, factorised once: draws of θ − μ where u is standard normal. Λ is not
        checked."""
        return eqx.Partial(type(self)._correlate, self, self._unchecked_factor())

    def deviations(self, key: PRNGKeyArray, pairs: int) -> PyTree:
        """Draws of θ − μ ~ N(0, Λ⁻¹), each followed by its negative: 2 `pairs` in a leading axis.
        Λ is not checked."""
        factor = self._unchecked_factor()

        def draw(key: PRNGKeyArray) -> PyTree:
            noise = jax.tree.map(
                lambda k, m: jax.random.normal(k, m.shape, m.dtype),
                keys_like(key, self.linear),
                self.linear,
            )
            return self._correlate(factor, noise)

        drawn = jax.vmap(draw)(jax.random.split(key, pairs))
        return jax.tree.map(lambda x: jnp.stack([x, -x], 1).reshape(2 * pairs, *x.shape[1:]), drawn)

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


def require_positive(precision: PyTree) -> PyTree:
    precision = require_finite(precision, "precision")
    least = smallest(precision)
    message = "precision must be positive in every entry for a proper posterior, and it is not."
    return require(precision, least > 0, message, lambda: f"The smallest entry is {least}.")


def entrywise_numbers(
    linear: list[Any], precision: list[Any], proper: bool
) -> tuple[dict[str, list[Any]], str]:
    """`_numbers` of a Gaussian with independent entries, `precision` as `linear` or scalars."""
    eta, tau = ([first(x) for x in leaves] for leaves in (linear, precision))
    if not proper:
        return {"linear": eta, "precision": tau}, IMPROPER
    mean = [e / t for e, t in zip(eta, tau, strict=True)]
    return {"mean": mean, "sd": [0 * m + t**-0.5 for m, t in zip(mean, tau, strict=True)]}, ""
