"""What all Gaussians N(θ | μ, Λ⁻¹) share: a linear term and a precision.

λ = (Λμ, Λ) with T(θ) = (θ, −½θθᵀ): `linear` and `precision` here. Multiplying posteriors adds both,
which is FP-10: the mode of Π N(θ_t, H_t⁻¹)^{α_t} is (Σ α_t H_t)⁻¹ Σ α_t H_t θ_t.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.arrays import require_same_labels
from bayesmerge.families.base import (
    AbstractExponentialFamily,
    over_batch,
    over_batch_with_key,
    over_batches,
)
from bayesmerge.families.checks import require, require_finite
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.marginals import in_float64, normal_quantile
from bayesmerge.families.precision import (
    AbstractFactor,
    AbstractPrecision,
    AbstractStructure,
    Structure,
    as_structure,
    join,
)
from bayesmerge.families.show import IMPROPER, first
from bayesmerge.families.trees import keys_like, tree_dot

LOG_2PI = math.log(2 * math.pi)
MOST_PRINTED = 1000
"""Parameters of which `repr` factorises a precision that has correlations."""

G = TypeVar("G", bound="AbstractGaussian")
Named = TypeVar("Named", bound="type[AbstractGaussian]")

NAMES: dict[type[AbstractStructure], "type[AbstractGaussian]"] = {}
"""What Gaussians are called, by the structure of their precision."""


def named_by(structure: type[AbstractStructure]) -> Callable[[Named], Named]:
    """Enter a class into `NAMES`."""

    def enter(family: Named) -> Named:
        NAMES[structure] = family
        return family

    return enter


def gaussian(linear: PyTree, precision: AbstractPrecision) -> "AbstractGaussian":
    """exp(ηᵀθ − ½θᵀΛθ), proper or not, of the class that is named by the structure of Λ; nothing is
    checked."""
    return NAMES[type(precision.structure)](linear=linear, precision=precision)


def from_mean_precision(mean: PyTree, precision: AbstractPrecision) -> "AbstractGaussian":
    """N(mean, precision⁻¹), checked, of the class that is named by the structure of Λ."""
    structure = precision.structure
    return NAMES[type(structure)]._from_mean_precision(mean, precision, structure)


class AbstractGaussian(AbstractExponentialFamily):
    """A linear term Λμ and a precision Λ. Every density is computed from θ − μ, so that nothing
    cancels when means are large, and from one factor of Λ."""

    linear: eqx.AbstractVar[PyTree]
    precision: eqx.AbstractVar[AbstractPrecision]
    structure: eqx.AbstractClassVar[AbstractStructure]

    @classmethod
    def _from_mean_precision(
        cls: type[G], mean: PyTree, precision: Any, structure: AbstractStructure
    ) -> G:
        require_same_labels(mean, precision)
        mean, layout = as_arrays(mean, "mean")
        mean = require_finite(mean, "mean")
        found = structure.of(_value_of(precision, structure), layout)
        linear = require_finite(found.multiply(mean), "mean times precision")
        q = cls(linear=linear, precision=found)
        message = "precision must be positive definite for a proper posterior, and it is not."
        if structure.is_entrywise:
            message = message.replace("definite", "in every entry")
        return require(q, q.is_proper(), message, q._weakest)

    @classmethod
    def _from_natural_parameters(
        cls: type[G], linear: PyTree, precision: Any, structure: AbstractStructure
    ) -> G:
        require_same_labels(linear, precision)
        linear, layout = as_arrays(linear, "linear")
        linear = require_finite(linear, "linear")
        found = structure.of(_value_of(precision, structure), layout)
        return cls(linear=linear, precision=found)

    @property
    def layout(self) -> Layout:
        """The layout of θ."""
        return self.precision.layout

    @property
    def natural_parameters(self) -> PyTree:
        """λ = (Λμ, Λ), Λ as `precision.value` holds it."""
        return self.linear, self.precision.value

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(θ) = (θ, −½θθᵀ), as much of it as the structure of Λ keeps."""
        return theta, self.precision.statistic(theta)

    @over_batch
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether Λ is positive definite and finite."""
        return self.precision.factor().is_positive()

    def multiply(self, theta: PyTree) -> PyTree:
        """Λθ."""
        return self.precision.multiply(theta)

    def solve(self, vector: PyTree) -> PyTree:
        """Λ⁻¹v, of use where Λ is known to be positive definite: nothing is checked."""
        return self.precision.factor().solve(vector)

    @over_batch
    def smallest_precision(self) -> Float[Array, "*batch"]:
        """The smallest eigenvalue of Λ."""
        return self.precision.weakest()[0]

    @over_batch
    def covariance(self) -> Float[Array, "*batch P P"]:
        """Λ⁻¹, shape (P, P), in the order of `layout.ravel`."""
        return self._factor("covariance").inverse().dense()

    @over_batch
    def precision_matrix(self) -> Float[Array, "*batch P P"]:
        """Λ, shape (P, P), in the order of `layout.ravel`."""
        return self.precision.dense()

    def squared_length(self, gradient: PyTree) -> Float[Array, ""]:
        """gᵀΛ⁻¹g, the squared length of a gradient g in units of the posterior."""
        return tree_dot(gradient, self.solve(gradient))

    def _factor(self, what: str) -> AbstractFactor:
        """A factor of Λ, or an error that there is no `what`."""
        factor = self.precision.factor()
        message = (
            f"this {type(self).__name__} is improper and has no {what}: its precision is not "
            "positive definite. A quotient of posteriors, or negative weights, can subtract more "
            "precision than the posteriors have: multiply by a prior, or use smaller weights."
        )
        return require(factor, factor.is_positive(), message, self._weakest)

    def _weakest(self) -> str:
        kind = "entry" if self.precision.structure.is_entrywise else "eigenvalue"
        return f"Its smallest {kind} is {self.smallest_precision()}."

    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        precision, eta = self.precision, jax.tree.leaves(self.linear)
        large = self.layout.size > MOST_PRINTED and not precision.structure.is_entrywise
        moments = None if large else precision.shown(eta)
        if moments is not None:
            return {"mean": moments[0], "sd": moments[1]}, ""
        diagonal = [first(x) for x in jax.tree.leaves(precision.diagonal())]
        naturals = {"linear": [first(x) for x in eta], "precision": diagonal}
        if large:
            return naturals, f"mean and sd are not printed of more than {MOST_PRINTED} parameters"
        return naturals, IMPROPER

    @over_batch
    def log_density(self, theta: PyTree) -> Float[Array, "*batch"]:
        """⟨λ, T(θ)⟩ = ηᵀθ − ½θᵀΛθ, defined for improper objects too."""
        theta = self._theta(theta)
        return tree_dot(theta, self.linear) - 0.5 * tree_dot(theta, self.multiply(theta))

    @over_batch
    def mode(self) -> PyTree:
        """argmax_θ log q(θ) = μ = Λ⁻¹(Λμ), by one factorisation of Λ."""
        return self._factor("mode").solve(self.linear)

    @over_batch
    def mean(self) -> PyTree:
        """E_q[θ] = μ."""
        return self._factor("mean").solve(self.linear)

    @over_batch
    def variance(self) -> PyTree:
        """The diagonal of Λ⁻¹, in the shape of θ."""
        return self._factor("variance").inverse_diagonal()

    @over_batch
    def std(self) -> PyTree:
        return jax.tree.map(jnp.sqrt, self._factor("standard deviation").inverse_diagonal())

    @over_batch
    def quantile(self, p: ArrayLike | Sequence[Any]) -> PyTree:
        """μ + Φ⁻¹(p) √Var, as every family; within `jax.jit` too."""
        factor = self._factor("quantile")
        z = normal_quantile(p)
        mean, variance = factor.solve(self.linear), factor.inverse_diagonal()

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
        quadratic = tree_dot(self.linear, factor.solve(self.linear))
        return 0.5 * (quadratic - factor.log_determinant() + self.layout.size * LOG_2PI)

    @over_batch
    def log_prob(self, theta: PyTree) -> Float[Array, "*batch"]:
        """log N(θ | μ, Λ⁻¹)."""
        factor = self._factor("normalised density")
        log_determinant = factor.log_determinant()
        distance = self._distance(self._theta(theta), factor.solve(self.linear))
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
        log_determinant = self._factor("entropy").log_determinant()
        return 0.5 * (self.layout.size * (LOG_2PI + 1) - log_determinant)

    def kl_divergence(self, other: Any) -> Float[Array, "*batch"]:
        """½[Σ(r − 1 − log r) + ‖μ − μ_other‖²_{Λ_other}], r the eigenvalues of Λ⁻¹Λ_other."""
        self.layout.require_same(other.layout)
        return over_batches(lambda p, q: p._kl_divergence(q), *self.aligned_with(other))

    def _kl_divergence(self, other: Any) -> Float[Array, ""]:
        factor = self._factor("divergence")
        other_factor = other._factor("divergence")
        mean, other_mean = factor.solve(self.linear), other_factor.solve(other.linear)
        distance = other._distance(mean, other_mean)
        return 0.5 * (factor.excess(other_factor) + distance)

    @over_batch_with_key
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> PyTree:
        """θ = μ + Λ^{-½}ε, ε ~ N(0, I)."""
        factor = self._factor("sample")
        mean = factor.solve(self.linear)

        def draw(key: PRNGKeyArray) -> PyTree:
            noise = jax.tree.map(
                lambda k, m: jax.random.normal(k, m.shape, m.dtype), keys_like(key, mean), mean
            )
            return jax.tree.map(jnp.add, mean, factor.half_solve(noise))

        if shape == ():
            return draw(key)
        draws = jax.vmap(draw)(jax.random.split(key, math.prod(shape)))
        return jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[1:]), draws)

    def colouring(self) -> Callable[[PyTree], PyTree]:
        """u ↦ Λ^{-½}u, factorised once: draws of θ − μ where u is standard normal. Λ is not
        checked."""
        return self.precision.factor().half_solve

    def deviations(self, key: PRNGKeyArray, pairs: int) -> PyTree:
        """Draws of θ − μ ~ N(0, Λ⁻¹), each followed by its negative: 2 `pairs` in a leading axis.
        Λ is not checked."""
        factor = self.precision.factor()

        def draw(key: PRNGKeyArray) -> PyTree:
            noise = jax.tree.map(
                lambda k, m: jax.random.normal(k, m.shape, m.dtype),
                keys_like(key, self.linear),
                self.linear,
            )
            return factor.half_solve(noise)

        drawn = jax.vmap(draw)(jax.random.split(key, pairs))
        return jax.tree.map(lambda x: jnp.stack([x, -x], 1).reshape(2 * pairs, *x.shape[1:]), drawn)

    def aligned_with(self, other: AbstractExponentialFamily) -> tuple[Any, Any]:
        if not isinstance(other, AbstractGaussian):
            raise TypeError(
                f"a {type(self).__name__} and a {type(other).__name__} are not members of one "
                "exponential family, so their product has no closed form here."
            )
        structure = join(self.precision.structure, other.precision.structure)
        return self.structured(structure), other.structured(structure)

    def structured(self, structure: Structure) -> "AbstractGaussian":
        """exp(ηᵀθ − ½θᵀΛ'θ) with the entries of Λ that a structure keeps: the same Gaussian, where
        the structure holds that of Λ, as `"full"` does.

        - `structure`: `"isotropic"`, `"diagonal"`, `"full"` or `Blocks()`.
        """
        wanted = as_structure(structure).over(self.layout)
        return self if self.precision.structure == wanted else _converted(self, wanted)

    def _distance(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        """‖x − y‖²_Λ."""
        difference = jax.tree.map(jnp.subtract, x, y)
        return tree_dot(difference, self.multiply(difference))


@over_batch
def _converted(q: AbstractGaussian, structure: AbstractStructure) -> AbstractGaussian:
    return gaussian(q.linear, structure.convert(q.precision))


def _value_of(precision: Any, structure: AbstractStructure) -> Any:
    """What `structure.of` takes: numbers, or a precision of that structure."""
    if not isinstance(precision, AbstractPrecision):
        return precision
    if type(precision.structure) is not type(structure):
        raise TypeError(
            f"precision is {precision.structure.name}, and it must be {structure.name}: multiply "
            "Gaussians of different structures, and the result holds both."
        )
    return precision.value
