r"""A few quasi-Newton steps from a merged mode towards joint training (GMA §1.5).

The merged posterior gives the start and the scales: in the coordinates u of θ = θ̂ + Λ^{-½}u, in
which it is a standard normal distribution, the joint objective is nearly ½‖u‖², and the first step
of L-BFGS nearly ends there. Every step costs one gradient, and one pass forward to see how far to
go: where tasks share little, a merge is flatter than joint training, and whole steps go too far.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.likelihood import SupervisedLoss
from bayesmerge.fit.optimise import Objective
from bayesmerge.previews.ray import bottom
from bayesmerge.previews.sweep import Start

AT_ONCE = 32
"""Weightings: those that need fewer gradients wait for the others of their batch."""

BYTES_OF_OUTPUTS = 2**29
MEMORY = 10
SUFFICIENT = 1e-4
SHORTER = 0.25


class Refined(NamedTuple):
    """Parameters, the gradients they cost, and the first and the last of these in posterior
    standard deviations, root mean square: the first is the mismatch of the merge."""

    params: PyTree
    gradients: Int[Array, ""]
    mismatch: Float[Array, ""]
    last_mismatch: Float[Array, ""]


class _Search(NamedTuple):
    """u and θ = θ̂ + Λ^{-½}u, the loss there and its gradient in u, what L-BFGS remembers, and the
    step to where to look next, in u and in θ."""

    u: PyTree
    theta: PyTree
    value: Float[Array, ""]
    gradient: PyTree
    memory: Any
    step: PyTree
    move: PyTree
    looked: Int[Array, ""]
    mismatch: Float[Array, ""]


def refined(
    objective: Objective, start: Start, most: Int[ArrayLike, ""], until: Float[ArrayLike, ""]
) -> Refined:
    """At most `most` gradients, and none after one of at most `until` posterior standard
    deviations, root mean square. A step after which the loss has not fallen is taken back, and a
    quarter of it tried; after the last the loss is computed once more, without its gradient."""
    import optax

    lbfgs = optax.scale_by_lbfgs(MEMORY, scale_init_precond=False)
    zero = jax.tree.map(jnp.zeros_like, start.theta)
    pull_back = jax.linear_transpose(start.colour, zero)

    def on(search: _Search) -> _Search:
        u, theta = _add(search.u, search.step), _add(search.theta, search.move)
        value, slope = objective.value_and_gradient(theta)
        gradient = pull_back(slope)[0]
        enough = SUFFICIENT * tree_dot(search.gradient, search.step)
        falls = value <= search.value + enough
        direction, memory = lbfgs.update(gradient, search.memory, u)
        downhill = tree_dot(direction, gradient) > 0
        step = jax.tree.map(lambda d, g: -jnp.where(downhill, d, g), direction, gradient)
        move = start.colour(step)
        ahead = bottom(objective, theta, move)
        first = search.looked == 0
        found = _Search(
            u,
            theta,
            value,
            gradient,
            memory,
            _scaled(ahead, step),
            _scaled(ahead, move),
            search.looked + 1,
            jnp.where(first, _length(gradient), search.mismatch),
        )
        back = search._replace(
            step=_scaled(SHORTER, search.step),
            move=_scaled(SHORTER, search.move),
            looked=search.looked + 1,
        )
        return jax.tree.map(lambda x, y: jnp.where(falls | first, x, y), found, back)

    def short(search: _Search) -> Array:
        arrived = (search.looked > 0) & (_length(search.gradient) <= until)
        return (search.looked < most) & ~arrived

    infinite = jnp.full((), jnp.inf, jax.eval_shape(objective.value, start.theta).dtype)
    begin = _Search(
        zero, start.theta, infinite, zero, lbfgs.init(zero), zero, zero, jnp.array(0), infinite
    )
    loop = _eager_loop if objective.target.is_streamed else jax.lax.while_loop
    end = loop(short, on, begin)
    last = _add(end.theta, end.move)
    falls = objective.value(last) <= end.value
    theta = jax.tree.map(lambda x, y: jnp.where(falls, x, y), last, end.theta)
    return Refined(theta, end.looked, end.mismatch, _length(end.gradient))


def refined_at_once(losses: list[Any], theta: PyTree) -> int:
    """Weightings whose outputs for all examples are held at once, with their change."""
    outputs = [_outputs(target, theta) for target in losses]
    each = 2 * sum(out.size * out.dtype.itemsize for out in outputs)
    return int(np.clip(BYTES_OF_OUTPUTS // max(each, 1), 1, AT_ONCE))


def _outputs(target: AbstractTarget, theta: PyTree) -> Any:
    loss, batch = target.first_batch()
    if isinstance(loss, SupervisedLoss):
        return jax.eval_shape(loss.model, theta, batch[0])
    return jax.eval_shape(loss, theta, batch)


def _eager_loop(condition: Any, step: Any, state: Any) -> Any:
    while condition(state):
        state = step(state)
    return state


def _length(gradient: PyTree) -> Float[Array, ""]:
    size = sum(x.size for x in jax.tree.leaves(gradient))
    return jnp.sqrt(tree_dot(gradient, gradient) / size)


def _add(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, x, y)


def _scaled(scale: Any, x: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: scale * leaf, x)
