"""Where climbs start: the blend, the component means, and merged combinations of components."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import one_hot
from jaxtyping import Array, Float, PyTree

from bayesmerge.mixtures.climb import Ridge, in_batches, is_single, on_simplices, sizes, values

BEAM = 16
CLIMBS = 16
TILT = 1e-3


def tilted(ridge: Ridge, r: Float[Array, "S R"]) -> Float[Array, "S R"]:
    """r, unevenly moved by a thousandth: no start is exactly at a saddle point or a minimum, where
    expectation-maximisation would stay."""
    golden = (0.5 + np.sqrt(5) / 2) * np.arange(1, r.shape[-1] + 1) % 1
    uneven = on_simplices(ridge, jnp.asarray(golden, r.dtype))
    return (1 - TILT) * r + TILT * uneven[None]


def every(ridge: Ridge, exponents: Float[Array, " T"]) -> Float[Array, "S R"]:
    """All below."""
    return jnp.concatenate([blend(ridge), means(ridge), merged(ridge, exponents)])


def highest(ridge: Ridge, exponents: Float[Array, " T"]) -> Float[Array, "S R"]:
    """Of all below the `CLIMBS` highest."""
    return _highest(ridge, exponents, every(ridge, exponents), CLIMBS)


def blend(ridge: Ridge) -> Float[Array, "1 R"]:
    """r = π: the geometric mean of the components of every factor."""
    parts = [jnp.ones(1) if is_single(q) else q.weights for q in ridge.factors]
    return jnp.concatenate(parts).astype(ridge.at_centre.dtype)[None]


def means(ridge: Ridge) -> Float[Array, "S R"]:
    """r = π̂(μ_tk), at the mean of every component."""
    return jax.vmap(ridge.responsibilities)(log_joint_at_means(ridge))


def log_joint_at_means(ridge: Ridge) -> Float[Array, "S R"]:
    """log π_tk q_tk of all components at the mean of every one: where r picks a single Gaussian,
    θ(r) is its mean."""
    if not ridge.is_entrywise():
        means = [q.means for q in ridge.factors if not is_single(q)]
        return jnp.concatenate([jax.lax.map(ridge.log_joint, at) for at in means])
    counts = sizes(ridge.factors)
    of_mixtures = np.repeat([not is_single(q) for q in ridge.factors], counts)
    alone = jnp.eye(len(of_mixtures), dtype=ridge.at_centre.dtype)[of_mixtures]
    return in_batches(ridge, lambda w: ridge.log_joint_at(w[0]), (alone,))


def merged(ridge: Ridge, exponents: Float[Array, " T"]) -> Float[Array, "S R"]:
    """r ∈ {0, 1}, one component of every mixture: of all combinations those whose merged means are
    highest, grown factor by factor from the `BEAM` highest so far."""
    counts = sizes(ridge.factors)
    first = np.cumsum((0, *counts))
    singles = [t for t, q in enumerate(ridge.factors) if is_single(q)]
    count = int(first[-1])
    combinations = jnp.zeros((1, count), ridge.at_centre.dtype).at[:, first[singles]].set(1)
    included = jnp.zeros(len(counts)).at[jnp.asarray(singles, int)].set(1)
    for t in sorted(set(range(len(counts))) - set(singles)):
        added = one_hot(first[t] + np.arange(counts[t]), count, dtype=combinations.dtype)
        grown = (combinations[:, None] + added[None]).reshape(-1, count)
        included = included.at[t].set(1)
        combinations = _highest(ridge, exponents * included, grown, BEAM)
    return combinations


def points(ridge: Ridge, theta: PyTree) -> Float[Array, "S R"]:
    """r = π̂(θ), at given θ with a leading axis."""
    return jax.lax.map(lambda x: ridge.responsibilities(ridge.log_joint(x)), theta)


def _highest(
    ridge: Ridge, exponents: Float[Array, " T"], r: Float[Array, "S R"], count: int
) -> Float[Array, "N R"]:
    height = values(ridge, jnp.broadcast_to(exponents, (len(r), *exponents.shape)), r)
    return r[jax.lax.top_k(height, min(count, len(r)))[1]]
