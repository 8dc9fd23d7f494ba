r"""A few quasi-Newton steps from a merged mode towards joint training (GMA §1.5).

The merged posterior gives the start and the scales: in the coordinates u of θ = θ̂ + Λ^{-½}u, in
which it is a standard normal distribution, the joint objective is nearly ½‖u‖², and the first step
of L-BFGS nearly ends there. Every step costs one gradient, and one pass forward to see how far to
go: where tasks share little, a merge is flatter than joint training, and whole steps go too far.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.absorb import absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.likelihood import SupervisedLoss
from bayesmerge.fit.optimise import Objective
from bayesmerge.fit.target import JointTarget
from bayesmerge.previews.measure import Model
from bayesmerge.previews.modes import Start
from bayesmerge.previews.ray import bottom
from bayesmerge.priors import AbstractPrior, as_prior
from bayesmerge.tasks import matched, named

AT_ONCE = 32
"""Weightings: those that need fewer gradients wait for the others of their batch."""

BYTES_OF_OUTPUTS = 2**29
MEMORY = 10
SUFFICIENT = 1e-4
SHORTER = 0.25


class Refinement(eqx.Module):
    r"""A few steps from every merged mode towards that of the joint objective,
    $\arg\min_\theta \sum_t \alpha_t\ell_t(\theta) - \log p_0(\theta)$, by L-BFGS in the coordinates
    u of $\theta = \hat\theta + \Lambda^{-1/2}u$, in which the merged posterior is a standard normal
    distribution.

    - `targets`: ℓ_t, a mapping from task names to targets, or a sequence. Of large data let
      `bayesmerge.fit.subsampled` take a part.
    - `steps`: the most steps at every weighting, ≥ 1. Each costs one gradient of every task.
    - `until`: τ ≥ 0. Weightings of which the mismatch $\|\Lambda^{-1/2}\nabla\|/\sqrt P$, with the
      gradient ∇ of the joint objective, is at most τ posterior standard deviations take no further
      step.

    The preview's `details` then are the `gradients` taken, the `mismatch` at the merged mode, and
    that at the last gradient (`last mismatch`; one more step follows it).

    **Raises** `ValueError` for options outside these ranges, and `TypeError` for targets that are
    none.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, y):
    ...     return 0.25 * (y - theta) ** 4
    >>> tasks = {"a": bm.Target(loss, jnp.array([0.0])), "b": bm.Target(loss, jnp.array([4.0]))}
    >>> p0 = bm.IsotropicGaussian.from_mean_precision(jnp.array(1.0), 1.0)
    >>> q = {t: bm.laplace(task, p0) for t, task in tasks.items()}
    >>> options = {"refine": bm.previews.Refinement(tasks, steps=8), "progress": False}
    >>> seen = bm.preview(q, [[0.5, 0.5]], lambda x: x, p0, **options)
    >>> bool(seen.details["last mismatch"] < 1e-3 < seen.details["mismatch"])
    True

    ```

    Source: GMA §1.5.
    """

    targets: Any
    steps: int = 2
    until: float = 0.0

    def __check_init__(self) -> None:
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(
                f"steps is {self.steps}, and it is a number of gradients for each weighting, ≥ 1. "
                "For merges as they are leave out `refine`."
            )
        if not 0 <= self.until < np.inf:
            raise ValueError(
                f"until is {self.until}, and it is a number of posterior standard deviations, ≥ 0."
            )
        for name, target in zip(*named(self.targets, "targets"), strict=True):
            if not isinstance(target, AbstractTarget):
                raise TypeError(
                    f"the target of '{name}' is a {type(target).__name__}, and it must be a "
                    "`Target`."
                )

    def joint(self, tasks: Sequence[str], prior: Any) -> "Joint":
        """What is refined towards, for posteriors of these tasks with this prior."""
        losses = matched(self.targets, tasks, "targets")
        held = as_prior(prior)
        if held.is_flat:
            raise ValueError(
                "refinement goes to the mode of the tasks' losses and the prior: pass `prior`, "
                "that of the posteriors."
            )
        return Joint(losses, held, jnp.asarray(self.steps), jnp.asarray(float(self.until)))


class Joint(eqx.Module):
    """The joint objectives of all weightings, and how far to go towards their modes."""

    losses: list[AbstractTarget]
    prior: AbstractPrior
    steps: Int[Array, ""]
    until: Float[Array, ""]

    @property
    def is_streamed(self) -> bool:
        """Whether losses read their data from streams, so that no program is compiled of them."""
        return any(loss.is_streamed for loss in self.losses)

    def at_once(self, theta: PyTree) -> int:
        """Weightings whose outputs for all examples are held at once, with their change."""
        outputs = [_outputs(loss, theta) for loss in self.losses]
        each = 2 * sum(out.size * out.dtype.itemsize for out in outputs)
        return int(np.clip(BYTES_OF_OUTPUTS // max(each, 1), 1, AT_ONCE))

    def refined(self, start: Start, alpha: Float[Array, " T"]) -> Model:
        """The model refined for the weighting α."""
        loss, gaussian = absorb(JointTarget(self.losses, alpha), self.prior)
        return _refined(Objective(loss, gaussian, start.theta), start, self.steps, self.until)


class _Point(NamedTuple):
    """u and θ = θ̂ + Λ^{-½}u, the loss there, and its gradient in u."""

    u: PyTree
    theta: PyTree
    value: Float[Array, ""]
    gradient: PyTree


class _Step(NamedTuple):
    """The same step in u and in θ."""

    u: PyTree
    theta: PyTree

    def times(self, length: Any) -> "_Step":
        return jax.tree.map(lambda x: length * x, self)


class _Search(NamedTuple):
    """The best point so far, what L-BFGS remembers, the step to where to look next, how many
    gradients were taken, and the length of the first."""

    point: _Point
    memory: Any
    step: _Step
    gradients: Int[Array, ""]
    mismatch: Float[Array, ""]


def _refined(
    objective: Objective, start: Start, steps: Int[Array, ""], until: Float[Array, ""]
) -> Model:
    """At most `steps` gradients, and none after one of at most `until`. A step after which the
    loss has not fallen is taken back, and a quarter of it tried; after the last the loss is
    computed once more, without its gradient."""
    import optax

    colour: Any = start.colour
    lbfgs = optax.scale_by_lbfgs(MEMORY, scale_init_precond=False)
    zero = jax.tree.map(jnp.zeros_like, start.theta)
    pull_back = jax.linear_transpose(colour, zero)

    def ahead(point: _Point, memory: Any) -> tuple[Any, _Step]:
        direction, memory = lbfgs.update(point.gradient, memory, point.u)
        is_downhill = tree_dot(direction, point.gradient) > 0
        u = jax.tree.map(lambda d, g: -jnp.where(is_downhill, d, g), direction, point.gradient)
        whole = _Step(u, colour(u))
        return memory, whole.times(bottom(objective, point.theta, whole.theta))

    def look(search: _Search) -> _Search:
        u, theta = _add(search.point.u, search.step.u), _add(search.point.theta, search.step.theta)
        value, slope = objective.value_and_gradient(theta)
        point = _Point(u, theta, value, pull_back(slope)[0])
        is_first = search.gradients == 0
        enough = SUFFICIENT * tree_dot(search.point.gradient, search.step.u)
        falls = is_first | (value <= search.point.value + enough)
        memory, step = ahead(point, search.memory)
        on = search._replace(point=point, memory=memory, step=step)
        back = search._replace(step=search.step.times(SHORTER))
        taken = jax.tree.map(lambda x, y: jnp.where(falls, x, y), on, back)
        mismatch = jnp.where(is_first, _length(point.gradient), search.mismatch)
        return taken._replace(gradients=search.gradients + 1, mismatch=mismatch)

    def is_short(search: _Search) -> Array:
        arrived = (search.gradients > 0) & (_length(search.point.gradient) <= until)
        return (search.gradients < steps) & ~arrived

    infinite = jnp.full((), jnp.inf, jax.eval_shape(objective.value, start.theta).dtype)
    begin = _Search(
        point=_Point(u=zero, theta=start.theta, value=infinite, gradient=zero),
        memory=lbfgs.init(zero),
        step=_Step(u=zero, theta=zero),
        gradients=jnp.array(0),
        mismatch=infinite,
    )
    loop = _eager_loop if objective.target.is_streamed else jax.lax.while_loop
    end = loop(is_short, look, begin)
    last = _add(end.point.theta, end.step.theta)
    falls = objective.value(last) <= end.point.value
    theta = jax.tree.map(lambda x, y: jnp.where(falls, x, y), last, end.point.theta)
    details = {
        "gradients": end.gradients + 0.0,
        "mismatch": end.mismatch,
        "last mismatch": _length(end.point.gradient),
    }
    return Model(theta, details)


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
    """Root mean square."""
    size = sum(x.size for x in jax.tree.leaves(gradient))
    return jnp.sqrt(tree_dot(gradient, gradient) / size)


def _add(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, x, y)
