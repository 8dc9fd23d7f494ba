"""Fewer components: merging of pairs, and the member of a family that is nearest to a mixture."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.families.gaussian import AbstractGaussian, gaussian
from bayesmerge.families.precision.rows import Rows
from bayesmerge.linear_algebra import solve

NEWTON_STEPS = 50
HALVINGS = 40


def nearest_member(weights: Float[Array, " K"], components: Any) -> Any:
    """argmin_p KL(Σ_k π_k q_k ‖ p), the p with E_p[T] = Σ_k π_k E_k[T]."""
    if isinstance(components, AbstractGaussian):
        return _nearest_gaussian(weights, components)
    return _nearest_by_newton(weights, components)


def merge_pairs(
    weights: Float[Array, " K"], components: Any, count: int
) -> tuple[Float[Array, " k"], Any]:
    """`count` components, by replacing pairs (i, j) by p = `nearest_member` of the two, always the
    pair with the smallest bound on the divergence from the mixture before,
    (π_i + π_j) H(p) − π_i H(q_i) − π_j H(q_j)."""
    weights, alive = jnp.asarray(weights), np.ones(len(weights), bool)
    entropies = _entropies(components)
    rows = [_costs(weights, components, entropies, jnp.asarray(i)) for i in range(len(weights))]
    cost = np.array(rows)
    while alive.sum() > count:
        cost[~alive], cost[:, ~alive] = np.inf, np.inf
        np.fill_diagonal(cost, np.inf)
        i, j = np.unravel_index(np.argmin(cost), cost.shape)
        weights, components, entropies = _merge(
            weights, components, entropies, jnp.asarray(i), jnp.asarray(j)
        )
        alive[j] = False
        cost[i] = _costs(weights, components, entropies, jnp.asarray(i))
        cost[:, i] = cost[i]
    kept = np.flatnonzero(alive)
    return weights[kept], jax.tree.map(lambda x: x[kept], components)


@eqx.filter_jit
def _entropies(components: Any) -> Float[Array, " K"]:
    return jax.lax.map(lambda q: q.entropy(), components)


@eqx.filter_jit
def _costs(
    weights: Float[Array, " K"], components: Any, entropies: Float[Array, " K"], i: Int[Array, ""]
) -> Float[Array, " K"]:
    """The cost of merging component i with every other."""

    def with_other(j: Int[Array, ""]) -> Float[Array, ""]:
        pair, heights = jnp.stack([weights[i], weights[j]]), jnp.stack([entropies[i], entropies[j]])
        total = jnp.sum(pair)
        shares = jnp.where(total > 0, pair / jnp.where(total > 0, total, 1), 0.5)
        merged = nearest_member(shares, _pair(components, i, j))
        return total * merged.entropy() - jnp.sum(pair * heights)

    return jax.lax.map(with_other, jnp.arange(len(weights)))


@eqx.filter_jit
def _merge(
    weights: Float[Array, " K"],
    components: Any,
    entropies: Float[Array, " K"],
    i: Int[Array, ""],
    j: Int[Array, ""],
) -> tuple[Array, Any, Array]:
    total = weights[i] + weights[j]
    shares = jnp.stack([weights[i], weights[j]]) / jnp.where(total > 0, total, 1)
    merged = nearest_member(jnp.where(total > 0, shares, 0.5), _pair(components, i, j))
    components = jax.tree.map(lambda x, new: x.at[i].set(new), components, merged)
    weights = weights.at[i].set(total).at[j].set(0)
    return weights, components, entropies.at[i].set(merged.entropy())


def _pair(components: Any, i: Int[Array, ""], j: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x[i], x[j]]), components)


def _average(weights: Float[Array, " K"], x: Array) -> Array:
    return jnp.tensordot(weights.astype(x.dtype), x, axes=1)


def _nearest_gaussian(weights: Float[Array, " K"], components: AbstractGaussian) -> Any:
    """The Gaussian with the same mean and, as far as its structure keeps it, covariance."""
    structure, layout = components.precision.structure, components.layout
    means = components.mean()
    mean = jax.tree.map(lambda x: _average(weights, x), means)
    away = jax.tree.map(lambda x, m: x - m[None], means, mean)
    own = jax.vmap(lambda q: q.precision.factor().inverse())(components)
    within = jax.tree.map(lambda x: _average(weights, x), own)
    rows = jnp.sqrt(weights)[:, None] * jax.vmap(layout.ravel)(away)
    covariance = within.plus(structure.of_matrix(Rows(rows, layout), layout))
    precision = covariance.factor().inverse()
    return gaussian(precision.multiply(mean), precision)


@eqx.filter_jit
def _nearest_by_newton(weights: Float[Array, " K"], components: AbstractExponentialFamily) -> Any:
    """∇A(λ) = Σ_k π_k ∇A(λ_k), A convex, by Newton steps from Σ_k π_k λ_k, halved where λ would be
    improper or A(λ) − ⟨λ, s⟩ would rise."""
    start, unravel = ravel_pytree(jax.tree.map(lambda x: _average(weights, x), components))
    statistics = components.expected_statistics()
    target, _ = ravel_pytree(jax.tree.map(lambda x: _average(weights, x), statistics))

    def objective(natural: Float[Array, " D"]) -> Float[Array, ""]:
        q = unravel(natural)
        proper = q.is_proper()
        safe = jnp.where(proper, natural, start)
        return jnp.where(proper, unravel(safe).log_partition() - safe @ target, jnp.inf)

    def step(natural: Float[Array, " D"], _: None) -> tuple[Array, None]:
        gradient, hessian = jax.grad(objective)(natural), jax.hessian(objective)(natural)
        direction = -solve(hessian, gradient)
        here = objective(natural)
        scales = 0.5 ** jnp.arange(HALVINGS)
        heights = jax.vmap(lambda s: objective(natural + s * direction))(scales)
        better = heights <= here
        scale = jnp.where(jnp.any(better), scales[jnp.argmax(better)], 0)
        return natural + scale * direction, None

    natural, _ = jax.lax.scan(step, start, length=NEWTON_STEPS)
    return unravel(natural)
