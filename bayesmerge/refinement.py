r"""Expanding every task again at the merged mode, until merging is joint training (GMA §1.5)."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.base import tree_dot
from bayesmerge.families.checks import ConvergenceWarning, require
from bayesmerge.families.layout import as_arrays
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind, Structure
from bayesmerge.fit.expand import expand
from bayesmerge.fit.optimise import require_kinds
from bayesmerge.fit.target import JointTarget
from bayesmerge.fit.tilted import Tilted, product
from bayesmerge.tasks import as_weights, named

HALVINGS = 20
STILL_MOVING = 0.01
"""The last step, in posterior standard deviations, that goes without saying."""


def refine(
    targets: Any,
    merged: Any,
    weights: Any,
    prior: Any = None,
    *,
    steps: int = 1,
    structure: Structure = "full",
    curvature: Kind | None = None,
) -> Any:
    r"""The merged posterior with every task expanded at the merged mode instead of its own,

    $$p_\alpha \propto p_0 \prod_t e^{-\alpha_t\hat\ell_t}, \qquad \hat\ell_t \text{ the second
    order of } \ell_t \text{ at } \hat\theta_\alpha,$$

    and again at the mode of that. Each step costs one gradient and one Hessian of every task, needs
    no data to leave its task, and is a step of Newton's method on Σα_tℓ_t − log p_0 (halved while
    that does not fall): it converges to the Laplace posterior of all data at once, quadratically.

    - `targets`: ℓ_t, T targets or a mapping from task names to them.
    - `merged`: the posterior to start from, or its mode θ̂.
    - `weights`: α, shape (T,), or a mapping from the same names.
    - `prior`: p_0, a Gaussian or a target whose loss is −log p_0; by default that of the targets.
    - `steps`: how often to expand, at least 1.
    - `structure`, `curvature`: of the expansions, as in `expand`.

    **Returns** a Gaussian for a Gaussian prior, and a `bayesmerge.fit.Tilted` for an exact one,
    whose `laplace()` is the Gaussian.

    **Warns** with a `ConvergenceWarning` where the last step moved the mode by more than 0.01
    posterior standard deviations.

    **Raises** `ValueError` where the joint Hessian is not positive definite on the way.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, y):
    ...     return jnp.cosh(theta - y)
    >>> tasks = [bm.Target(loss, jnp.array([-1.0])), bm.Target(loss, jnp.array([3.0]))]
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> merged = bm.merge([bm.laplace(t, prior) for t in tasks], [1.0, 1.0], prior)
    >>> joint = bm.laplace(bm.JointTarget(tasks, [1.0, 1.0]), prior)
    >>> error = lambda q: f"{abs(q.mode() - joint.mode()):.4f}"
    >>> error(merged), error(bm.refine(tasks, merged, [1.0, 1.0], prior, steps=3))
    ('0.1837', '0.0000')

    ```

    Source: GMA §1.5; GM equation 9 at θ̂ in the place of θ_t.
    """
    names, losses = named(targets, "targets")
    alpha = as_weights(weights, names)
    if alpha.ndim != 1:
        raise ValueError(f"weights have shape {alpha.shape}: one merge is refined at a time.")
    if steps < 1:
        raise ValueError(f"steps is {steps}, and at least one expansion is needed to refine.")
    for loss in losses:
        require_kinds(loss, prior)
    joint = JointTarget(losses, alpha)
    prior = joint.prior if prior is None else prior
    theta, _ = as_arrays(_mode(merged), "merged")
    for _ in range(steps):
        posterior = _expanded(losses, alpha, prior, theta, structure, curvature)
        proposed = posterior.mode()
        moved = _distance(posterior, theta, proposed)
        theta = _downhill(joint, prior, theta, proposed)
    if moved > STILL_MOVING:
        warnings.warn(
            f"the last of {steps} steps moved the merged mode by {float(moved):.2g} posterior "
            "standard deviations (root mean square): it has not converged. Allow more `steps`.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return posterior


def _expanded(
    targets: list[AbstractTarget],
    alpha: Float[Array, " T"],
    prior: Any,
    theta: PyTree,
    structure: Structure,
    curvature: Kind | None,
) -> Any:
    factors = [expand(t, theta, structure=structure, curvature=curvature) for t in targets]
    factor = product(factors, alpha)
    if isinstance(prior, AbstractTarget):
        return Tilted(factor, prior, factor * expand(prior, theta, structure=structure))
    posterior = factor if prior is None else prior * factor
    message = (
        "the joint Hessian is not positive definite where the tasks were expanded, so that there "
        "is no maximum near. Use curvature='ggn', or look for the mode first: "
        "`find_mode(JointTarget(targets, weights), prior).params` for `merged`."
    )
    return require(posterior, posterior.is_proper(), message)


def _mode(posterior: Any) -> PyTree:
    return posterior.mode() if hasattr(posterior, "mode") else posterior


def _distance(posterior: Any, x: PyTree, y: PyTree) -> Float[Array, ""]:
    """‖x − y‖ in posterior standard deviations, root mean square."""
    gaussian = posterior.near if isinstance(posterior, Tilted) else posterior
    step = jax.tree.map(jnp.subtract, x, y)
    return jnp.sqrt(tree_dot(step, gaussian.multiply(step)) / posterior.layout.size)


def _downhill(joint: JointTarget, prior: Any, theta: PyTree, proposed: PyTree) -> PyTree:
    """θ + s(proposed − θ) with the first s of 1, ½, ¼, … at which the joint objective falls, as far
    as rounding lets one see."""
    look = _objective if joint.is_streamed else _objective_compiled
    before = look(joint, prior, theta)
    rounding = 10 * jnp.finfo(before.dtype).eps * jnp.abs(before)
    moved, step = proposed, 1.0
    while not look(joint, prior, moved) <= before + rounding and step > 0.5**HALVINGS:
        step /= 2
        moved = jax.tree.map(lambda x, y, s=step: x + s * (y - x), theta, proposed)
    return moved


def _objective(joint: JointTarget, prior: Any, theta: PyTree) -> Float[Array, ""]:
    """Σα_tℓ_t(θ) − log p_0(θ), up to a constant."""
    loss = joint.total(theta)
    if prior is None:
        return loss
    if isinstance(prior, AbstractTarget):
        return loss + prior.total(theta)
    return loss - prior.log_density(theta)


_objective_compiled = eqx.filter_jit(_objective)
