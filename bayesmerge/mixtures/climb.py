r"""Uphill on a product of mixtures, by expectation-maximisation over the responsibilities.

Every stationary point of $\prod_t q_t^{\alpha_t}$, $q_t = \sum_k \pi_{tk} q_{tk}$, lies on the
ridge $\theta(r) = \arg\max \prod_{t,k} q_{tk}^{\alpha_t r_{tk}}$ (Ray & Lindsay 2005, for one
mixture), so a climb is a sequence of responsibilities r, and FP-12 and FP-14 are
$r \leftarrow \hat\pi(\theta(r))$.
Anderson's extrapolation of r is kept where it does not lead downhill.
"""

import functools
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp, softmax
from jaxtyping import Array, Bool, Float, Int, PyTree

from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.families.checks import unchecked
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.trees import tree_dot
from bayesmerge.mixtures import entrywise

MEMORY = 6
BYTES_AT_ONCE = 2**28
ENTRYWISE_AT_ONCE = 256


def is_single(factor: Any) -> bool:
    """Whether a factor is an exponential family, its own only component."""
    return isinstance(factor, AbstractExponentialFamily)


def sizes(factors: list[Any]) -> tuple[int, ...]:
    """K_t of every factor."""
    return tuple(1 if is_single(q) else q.num_components for q in factors)


def split(factors: list[Any], vector: Float[Array, " R"]) -> list[Array]:
    return jnp.split(vector, np.cumsum(sizes(factors))[:-1].tolist())


def repeat(factors: list[Any], exponents: Float[Array, " T"]) -> Float[Array, " R"]:
    """α_t for every component of factor t."""
    parts = [jnp.broadcast_to(a, (k,)) for a, k in zip(exponents, sizes(factors), strict=True)]
    return jnp.concatenate(parts).astype(jnp.result_type(*factors[0].layout.dtypes))


def default_tolerance(layout: Layout) -> float:
    """ε^{2/3}, of a gradient in posterior standard deviations."""
    return float(max(jnp.finfo(dtype).eps for dtype in layout.dtypes) ** (2 / 3))


def minorizer(factors: list[Any], weights: Float[Array, " R"]) -> Any:
    """Π_tk q_tk^{w_tk}: for w_tk = α_t π̂_tk(θ) it touches log p at θ from below."""
    parts = zip(factors, split(factors, weights), strict=True)
    members = [q ** w[0] if is_single(q) else q.geometric_mean(w) for q, w in parts]
    return functools.reduce(operator.mul, members)


class Climb(eqx.Module):
    """Where a climb is: r, π̂(θ(r)), log p(θ(r)), a bound on the gradient, and the steps taken."""

    responsibilities: Float[Array, "*N R"]
    updated: Float[Array, "*N R"]
    value: Float[Array, "*N"]
    gradient: Float[Array, "*N"]
    steps: Int[Array, "*N"]


class Secants(eqx.Module):
    """Changes of π̂(θ(r)) − r, orthonormal rows, and the changes of π̂(θ(r)) that came with them."""

    residuals: Float[Array, "M R"]
    updates: Float[Array, "M R"]

    @classmethod
    def none(cls, like: Float[Array, " R"]) -> "Secants":
        return cls(*2 * [jnp.zeros((MEMORY, like.shape[0]), like.dtype)])

    def extrapolate(self, climb: Climb) -> Float[Array, " R"]:
        """Anderson's step: from π̂(θ(r)) along the updates that would undo the residual."""
        residual = climb.updated - climb.responsibilities
        return climb.updated - (self.residuals @ residual) @ self.updates

    def add(self, old: Climb, new: Climb) -> "Secants":
        """With the latest change in the place of the oldest, by Gram–Schmidt, twice."""
        update = new.updated - old.updated
        residual = update - (new.responsibilities - old.responsibilities)
        kept, kept_updates = self.residuals[:-1], self.updates[:-1]
        length = jnp.linalg.norm(residual)
        for _ in range(2):
            along = kept @ residual
            residual, update = residual - along @ kept, update - along @ kept_updates
        rest, epsilon = jnp.linalg.norm(residual), jnp.finfo(residual.dtype).eps
        is_new = rest > 1e3 * epsilon + jnp.sqrt(epsilon) * length
        scale = jnp.where(is_new, 1 / jnp.where(is_new, rest, 1), 0)
        return Secants(
            jnp.concatenate([(scale * residual)[None], kept]),
            jnp.concatenate([(scale * update)[None], kept_updates]),
        )


class Ridge(eqx.Module):
    """θ(r) of a product of `factors`, and the log-densities of all components there.

    The components of all factors follow one another in vectors of length R; an exponential family
    is a factor of one component. Densities are measured from a `centre`.
    """

    factors: list[Any]
    centre: PyTree
    at_centre: Float[Array, " R"]

    @classmethod
    def of(cls, factors: list[Any]) -> "Ridge":
        mixture = next(q for q in factors if not is_single(q))
        centre = mixture.mean()
        at_centre = [jnp.zeros(1) if is_single(q) else q.log_joint(centre) for q in factors]
        dtype = jnp.result_type(*mixture.layout.dtypes)
        return cls(factors, centre, jnp.concatenate(at_centre).astype(dtype))

    def log_joint(self, theta: PyTree) -> Float[Array, " R"]:
        """log π_tk q_tk(θ); for an exponential family log q_t(θ)/q_t(centre)."""
        parts = [
            q.log_ratio(theta, self.centre)[None] if is_single(q) else q.log_joint(theta)
            for q in self.factors
        ]
        return jnp.concatenate(parts).astype(self.at_centre.dtype)

    def log_joint_at(self, weights: Float[Array, " R"]) -> Float[Array, " R"]:
        """`log_joint` at θ = argmax Π q_tk^{w_tk}; not finite where there is no maximum."""
        if self.is_entrywise():
            return self.at_centre + entrywise.log_ratios(self._components(), self.centre, weights)
        with unchecked():
            return self.log_joint(minorizer(self.factors, weights).mode())

    def responsibilities(self, log_joint: Float[Array, " R"]) -> Float[Array, " R"]:
        return jnp.concatenate([softmax(part) for part in split(self.factors, log_joint)])

    def log_factors(self, log_joint: Float[Array, " R"]) -> Float[Array, " T"]:
        """log q_t(θ) for every factor."""
        return jnp.stack([logsumexp(part) for part in split(self.factors, log_joint)])

    def distance(
        self, exponents: Float[Array, " T"], r: Float[Array, " R"], updated: Float[Array, " R"]
    ) -> Float[Array, ""]:
        """√(‖θ(r') − θ(r)‖²_Λ/P), Λ = Σ α_t r'_tk Λ_tk. For r' = π̂(θ(r)) it is √(gᵀΛ⁻¹g/P), the
        length of the gradient g = ∇log p(θ(r)) = Λ(θ(r') − θ(r))."""
        alpha = repeat(self.factors, exponents)
        if self.is_entrywise():
            squared = entrywise.squared_distance(
                self._components(), self.centre, alpha * r, alpha * updated
            )
        else:
            with unchecked():
                theta = minorizer(self.factors, alpha * r).mode()
                above = minorizer(self.factors, alpha * updated)
                step = jax.tree.map(jnp.subtract, above.mode(), theta)
                if isinstance(above, AbstractGaussian):
                    scaled = above.multiply(step)
                else:
                    scaled = jax.tree.map(jnp.divide, step, above.variance())
            squared = tree_dot(step, scaled)
        return jnp.sqrt(jnp.maximum(squared, 0) / self._layout.size)

    def visit(self, exponents: Float[Array, " T"], r: Float[Array, " R"]) -> Climb:
        """The climb at θ(r)."""
        alpha, size = repeat(self.factors, exponents), self._layout.size
        log_joint = self.log_joint_at(alpha * r)
        updated = self.responsibilities(log_joint)
        below = jnp.where(jnp.isfinite(log_joint), self._peaks() - log_joint, 0)
        distance = jnp.sqrt(1 + 2 * jnp.maximum(below, 0) / size)
        gradient = jnp.sum(alpha * jnp.abs(updated - r) * distance)
        value = jnp.sum(exponents * self.log_factors(log_joint))
        return Climb(r, updated, value, gradient, jnp.array(1))

    def is_entrywise(self) -> bool:
        """Whether all components are isotropic or diagonal Gaussians."""
        return entrywise.are_entrywise(self._components())

    def size(self) -> int:
        """The number of natural parameters of a minorizer."""
        shapes = jax.eval_shape(lambda w: minorizer(self.factors, w), self.at_centre)
        return sum(x.size for x in jax.tree.leaves(shapes))

    def batch_size(self) -> int:
        """How many θ(r) to compute at once."""
        if self.is_entrywise():
            return ENTRYWISE_AT_ONCE
        size = self.size() * self.at_centre.dtype.itemsize
        return max(1, BYTES_AT_ONCE // (size * (1 + len(self.factors))))

    def _components(self) -> list[Any]:
        return [
            jax.tree.map(lambda x: x[None], q) if is_single(q) else q.components
            for q in self.factors
        ]

    def _peaks(self) -> Float[Array, " R"]:
        parts = [
            jnp.full(1, -jnp.inf) if is_single(q) else q.log_weights + q.heights
            for q in self.factors
        ]
        return jnp.concatenate(parts).astype(self.at_centre.dtype)

    @property
    def _layout(self) -> Any:
        return self.factors[0].layout


def climb(
    ridge: Ridge,
    exponents: Float[Array, " T"],
    r: Float[Array, " R"],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
    accelerate: bool,
) -> Climb:
    """From θ(r) to a stationary point; log p never falls."""

    def unfinished(state: tuple[Climb, Secants]) -> Bool[Array, ""]:
        here, _ = state
        is_short = ~(here.gradient <= tolerance) & (here.steps < max_steps)
        return is_short & jnp.isfinite(here.value)

    def step(state: tuple[Climb, Secants]) -> tuple[Climb, Secants]:
        here, secants = state
        trial = ridge.visit(exponents, on_simplices(ridge, secants.extrapolate(here)))
        noise = 8 * jnp.finfo(here.value.dtype).eps * (1 + jnp.abs(here.value))
        is_level = jnp.abs(trial.value - here.value) <= noise
        is_uphill = jnp.where(is_level, trial.gradient < here.gradient, trial.value > here.value)
        is_plain = ~jnp.any(secants.residuals)
        learned = secants.add(here, trial) if accelerate else secants
        moved, forgotten = (trial, learned), (here, Secants.none(r))
        moved, forgotten = (_with_steps(x, here.steps + 1) for x in (moved, forgotten))
        return jax.tree.map(lambda x, y: jnp.where(is_uphill | is_plain, x, y), moved, forgotten)

    end, _ = jax.lax.while_loop(unfinished, step, (ridge.visit(exponents, r), Secants.none(r)))
    return end


def on_simplices(ridge: Ridge, r: Float[Array, " R"]) -> Float[Array, " R"]:
    """r without negative entries, each factor's normalised."""
    parts = [jnp.maximum(part, 0) for part in split(ridge.factors, r)]
    return jnp.concatenate([part / jnp.sum(part) for part in parts])


def _with_steps(state: tuple[Climb, Secants], steps: Array) -> tuple[Climb, Secants]:
    return eqx.tree_at(lambda s: s[0].steps, state, steps)


@eqx.filter_jit
def climbs(
    ridge: Ridge,
    exponents: Float[Array, "N T"],
    r: Float[Array, "N R"],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
    accelerate: bool,
) -> Climb:
    """`climb` for N products of the same factors, with the length of the gradient at the end."""

    def one(start: tuple[Array, Array]) -> Climb:
        end = climb(ridge, *start, tolerance, max_steps, accelerate)
        gradient = ridge.distance(start[0], end.responsibilities, end.updated)
        return eqx.tree_at(lambda c: c.gradient, end, gradient)

    return in_batches(ridge, one, (exponents, r))


@eqx.filter_jit
def values(
    ridge: Ridge, exponents: Float[Array, "N T"], r: Float[Array, "N R"]
) -> Float[Array, " N"]:
    """log p(θ(r)), −∞ where the product has no maximum."""

    def one(start: tuple[Array, Array]) -> Array:
        value = ridge.visit(*start).value
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    return in_batches(ridge, one, (exponents, r))


def in_batches(ridge: Ridge, function: Any, arguments: tuple[Array, ...]) -> Any:
    """`function` mapped over a leading axis, as many at once as keep minorizers within memory."""
    size = ridge.batch_size()
    count = len(arguments[0])
    if count <= size:
        return jax.vmap(function)(arguments)
    index = np.minimum(np.arange(-(-count // size) * size), count - 1)
    padded = jax.tree.map(lambda x: x[index].reshape(-1, size, *x.shape[1:]), arguments)
    mapped = jax.lax.map(jax.vmap(function), padded)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], mapped)
