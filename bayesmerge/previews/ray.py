r"""How far along a ray θ + td a loss falls, its model linearised there, f(θ + td) ≈ f + t∂f·d:
exact where the model is linear in θ, and one pass over the data for all lengths t."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.abstract_target import Loss
from bayesmerge.fit.likelihood import SupervisedLoss
from bayesmerge.fit.optimise import Objective

LENGTHS = np.append(0.0, 2.0 ** np.arange(-10, 3))


def bottom(objective: Objective, theta: PyTree, direction: PyTree) -> Float[Array, ""]:
    """t where the slope of the objective is zero, by the chord between the two lengths around it;
    the largest of them where the objective still falls there.

    Losses without a model are their own parabola, from second derivatives along the ray.
    """
    dtype = jnp.result_type(*jax.tree.leaves(theta))
    lengths = jnp.asarray(LENGTHS, dtype)
    statistic = functools.partial(_slopes, direction=direction, lengths=lengths)
    slopes = objective.target.accumulate(statistic, theta)
    if objective.prior is not None:
        offset = jax.tree.map(jnp.subtract, theta, objective.centre)
        pull = objective.prior.multiply(direction)
        slopes += tree_dot(offset, pull) - tree_dot(objective.slope, direction)
        slopes += lengths * tree_dot(direction, pull)
    end = jnp.argmax(slopes > 0)
    left, right = slopes[end - 1], slopes[end]
    chord = lengths[end - 1] - left * (lengths[end] - lengths[end - 1]) / (right - left)
    return jnp.where(end > 0, chord, lengths[-1])


def _slopes(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    index: Int[ArrayLike, ""],
    *,
    direction: PyTree,
    lengths: Float[Array, " L"],
) -> Float[Array, " L"]:
    if isinstance(loss, SupervisedLoss):
        inputs, labels = batch
        likelihood = jax.vmap(loss.likelihood.loss)
        outputs, change = jax.jvp(lambda p: loss.model(p, inputs), (params,), (direction,))
        return jax.lax.map(
            jax.grad(lambda t: jnp.sum(likelihood(outputs + t * change, labels))), lengths
        )

    def along(t: Array) -> Array:
        return jnp.sum(loss(jax.tree.map(lambda x, d: x + t * d, params, direction), batch))

    def slope(t: Array) -> Array:
        return jax.jvp(along, (t,), (jnp.ones_like(t),))[1]

    here = jnp.zeros((), lengths.dtype)
    first, second = jax.jvp(slope, (here,), (jnp.ones_like(here),))
    return first + lengths * second
