r"""Expanding every task again at the merged mode, until merging is joint training (GMA §1.5)."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import ConvergenceWarning, require, require_finite
from bayesmerge.families.layout import as_arrays
from bayesmerge.families.precision import AbstractStructure, Full, Structure, as_structure
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.absorb import PriorTarget, absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind
from bayesmerge.fit.expand import expand
from bayesmerge.fit.optimise import Objective, as_fitted_prior, require_target, search
from bayesmerge.fit.target import JointTarget
from bayesmerge.fit.tilted import Tilted, product
from bayesmerge.origins import Origin, prior_of, remember
from bayesmerge.priors import AbstractPrior, Prior
from bayesmerge.tasks import as_weights, named

HALVINGS = 20
ROUNDING = 4
"""Units of rounding by which the joint objective may seem to rise."""

MOST_STEPS = 2000
STILL_MOVING = 0.01
"""The last Newton step, in posterior standard deviations, that needs no warning."""

NO_MAXIMUM = (
    "the joint Hessian is not positive definite where the tasks were expanded last, so that there "
    "is no Gaussian there. Allow more `steps`, use curvature='ggn', or look for the mode first and "
    "pass it for `merged`: `find_mode(JointTarget(targets, weights), prior).params`."
)


def refine(
    targets: Any,
    merged: Any,
    weights: Any,
    prior: Prior = None,
    *,
    steps: int = 1,
    structure: Structure = "full",
    curvature: Kind | None = None,
) -> Any:
    r"""The merged posterior with every task expanded at the merged mode instead of its own,

    $$p_\alpha \propto p_0 \prod_t e^{-\alpha_t\hat\ell_t}, \qquad \hat\ell_t \text{ the second
    order of } \ell_t \text{ at } \hat\theta_\alpha,$$

    and again at the mode of that. Each step costs one gradient and one Hessian of every task, needs
    no data to leave its task, and is a step of Newton's method on the joint objective
    Σα_tℓ_t − log p_0: it converges to the Laplace posterior of all data at once, quadratically.

    No step, the last included, raises the joint objective. A step that would is halved until it
    does not (its linear term is shortened, so that the mode is where the shorter step ends), and
    it is turned uphill where the objective is not convex. So by the joint objective the mode is
    never worse than that of `merged`, nor than after fewer steps.

    - `targets`: ℓ_t, T targets or a mapping from task names to them.
    - `merged`: the posterior to start from, or its mode θ̂.
    - `weights`: α, shape (T,), or a mapping from the same names.
    - `prior`: p_0, a Gaussian or an `ExactPrior`; `None` for a flat one.
    - `steps`: how often to expand, at least 1.
    - `structure`, `curvature`: of the expansions, as in `expand`.

    **Returns** a Gaussian for a Gaussian prior, and a `bayesmerge.fit.Tilted` for an exact one,
    whose `laplace()` is the Gaussian.

    **Warns** with a `ConvergenceWarning` where the last Newton step is longer than 0.01 posterior
    standard deviations, and says which part of it was taken; and where `merged` is known to hold a
    prior, and none is passed.

    **Raises** `ValueError` where the joint Hessian is not positive definite at the last expansion,
    or the joint objective not finite at the mode of `merged`.

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
    ('0.0863', '0.0000')

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
        require_target(loss)
    held = as_fitted_prior(losses[0], prior)
    warn_if_left_out(merged, held)
    entries = as_structure(structure)
    theta, _ = as_arrays(merged.mode() if hasattr(merged, "mode") else merged, "merged")
    value = _objective(JointTarget(losses, alpha), held, theta)
    lowest = require_finite(value(theta), "the joint objective at the mode of merged")
    for _ in range(steps):
        factors = [expand(t, theta, structure=structure, curvature=curvature) for t in losses]
        factor = product(factors, alpha)
        gaussian = factor * held.site(theta, entries)
        step = _uphill(gaussian, theta)
        length = _length(gaussian, step)
        most = lowest + ROUNDING * jnp.finfo(lowest.dtype).eps * jnp.abs(lowest)
        whole = _mode(gaussian, factor, held)
        if whole is not None and value(whole) <= most:
            part, theta = 1.0, whole
        else:
            part, theta = _halved(value, most, theta, step)
            gaussian, factor = _centred(gaussian, theta), _centred(factor, theta)
            if not held.is_closed:
                pull = held.gradient(theta)
                factor = _with_linear(factor, jax.tree.map(jnp.add, factor.linear, pull))
        lowest = jnp.minimum(lowest, value(theta))
    refined: Any = gaussian
    if not held.is_closed:
        gaussian = Tilted(factor, held.given, gaussian).laplace(theta)
        refined = Tilted(factor, held.given, gaussian)
    gaussian = require(gaussian, gaussian.is_proper(), NO_MAXIMUM)
    if length > STILL_MOVING:
        warnings.warn(_unconverged(steps, float(length), part, entries), ConvergenceWarning, 2)
    return remember(refined, Origin(prior))


def warn_if_left_out(posterior: Any, prior: AbstractPrior, stacklevel: int = 3) -> None:
    """A warning where a posterior is known to hold a prior and none is passed."""
    if prior.is_flat and prior_of(posterior) is not None:
        warnings.warn(
            "prior is None, a flat one, and the posterior is known to hold a prior, which is left "
            "out now: pass the prior that the posteriors were fitted with.",
            stacklevel=stacklevel,
        )


def _objective(
    joint: JointTarget, prior: AbstractPrior, near: PyTree
) -> Callable[[PyTree], Float[Array, ""]]:
    """θ ↦ Σα_tℓ_t(θ) − log p_0(θ), up to a constant."""
    target, gaussian = absorb(joint, prior)
    look = _value if target.is_streamed else _value_compiled
    return lambda theta: look(target, gaussian, near, theta)


def _value(target: AbstractTarget, prior: Any, near: PyTree, theta: PyTree) -> Float[Array, ""]:
    return Objective(target, prior, near).value(theta)


_value_compiled = eqx.filter_jit(_value)


def _mode(gaussian: Any, factor: Any, prior: AbstractPrior) -> PyTree | None:
    """The mode of the merge: that of the Gaussian, or with an exact prior that of factor times
    prior; `None` where there is none."""
    if not bool(gaussian.is_proper()):
        return None
    newton = gaussian.solve(gaussian.linear)
    if prior.is_closed:
        return newton
    try:
        return search(PriorTarget(prior), factor, newton, "newton", MOST_STEPS).params
    except ValueError:
        return None


def _halved(
    value: Callable[[PyTree], Float[Array, ""]],
    most: Float[Array, ""],
    theta: PyTree,
    step: PyTree,
) -> tuple[float, PyTree]:
    """The first s of 1, ½, ¼, … for which θ + s·step has at most the value `most`, and where that
    is; or 0 and θ."""
    for part in 0.5 ** np.arange(HALVINGS):
        there = jax.tree.map(lambda x, d, s=float(part): x + s * d, theta, step)
        if value(there) <= most:
            return float(part), there
    return 0.0, theta


def _centred(gaussian: Any, theta: PyTree) -> Any:
    """The same precision with the mode θ."""
    return _with_linear(gaussian, gaussian.multiply(theta))


def _with_linear(gaussian: Any, linear: PyTree) -> Any:
    return eqx.tree_at(lambda q: q.linear, gaussian, linear)


def _unconverged(steps: int, length: float, part: float, structure: AbstractStructure) -> str:
    taken = "" if part == 1 else (
        f", of which {part:.2g} was taken, since more of it raises the joint objective"
        if part > 0
        else ", of which nothing was taken, since any part of it raises the joint objective"
    )  # fmt: skip
    wider = "" if isinstance(structure, Full) or part == 1 else (
        f", or structure='full': {structure.name} curvature does not see all correlations, and its "
        "steps go too far"
    )  # fmt: skip
    return (
        f"the last of {steps} Newton steps was {length:.2g} posterior standard deviations long "
        f"(root mean square){taken}: the merged mode has not converged to that of all data. Allow "
        f"more `steps`{wider}."
    )


def _uphill(gaussian: Any, theta: PyTree) -> PyTree:
    """Newton's step Λ⁻¹(η − Λθ), with |Λ| for Λ where the density is not concave."""
    score = jax.tree.map(jnp.subtract, gaussian.linear, gaussian.multiply(theta))
    if bool(gaussian.is_proper()):
        return gaussian.solve(score)
    return gaussian.precision.absolute().factor().solve(score)


def _length(gaussian: Any, step: PyTree) -> Float[Array, ""]:
    """‖step‖ in posterior standard deviations, root mean square."""
    return jnp.sqrt(jnp.abs(tree_dot(step, gaussian.multiply(step))) / gaussian.layout.size)
