"""Laplace's approximation: N(θ_t, (H_0 + H_t)⁻¹) at the mode θ_t."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.families.checks import (
    ConvergenceWarning,
    all_finite,
    require,
    require_finite,
    tell,
)
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.fit.absorb import absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind, Structure, curvature
from bayesmerge.fit.expand import expand, quadratic
from bayesmerge.fit.optimise import (
    Method,
    Mode,
    Objective,
    require_kinds,
    search,
)

NEGLIGIBLE = 0.01
"""Distance from the mode, in posterior standard deviations, that goes without saying."""


def laplace(
    target: AbstractTarget,
    prior: AbstractGaussian | AbstractTarget | None = None,
    *,
    structure: Structure = "full",
    curvature: Kind | None = None,
    params: PyTree | None = None,
    start: PyTree | None = None,
    include_prior: bool = True,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
    block_size: int | None = None,
    max_steps: int = 2000,
) -> Any:
    r"""The Laplace posterior of a task,
    $q_t = \mathcal N(\theta_t, (H_0 + H_t)^{-1})$ with
    $\theta_t = \arg\min_\theta \ell_t(\theta) + \tfrac12\|\theta-\theta_0\|^2_{H_0}$.

    - `target`: ℓ_t, with per-example losses that are summed.
    - `prior`: p_0 = N(θ_0, H_0⁻¹), or a target with the loss −log p_0, whose Hessian at θ_t is
      then H_0; `None` for that of the target, or else a flat one. With a flat
      prior, data that leave θ undetermined (separable classes) have no mode: the search drifts
      until the loss is flat, and the variance found is as large as the drift.
    - `structure`: of H_t, `"full"`, `"diagonal"` or `"isotropic"`. The posterior is of the smallest
      family that also holds the prior.
    - `curvature`: H_t, `"hessian"`, `"ggn"`, `"fisher"` or `"squared_gradients"` (see
      `bayesmerge.curvature`). By default the GGN for supervised targets, which is never
      indefinite, and the Hessian for others.
    - `params`: θ_t, where you have trained already; it is then taken as the mode.
    - `start`: where to start the search for θ_t otherwise; by default at θ_0.
    - `include_prior`: `False` for the likelihood factor alone, q_t/p_0, with precision H_t and
      linear term H_tθ_t + H_0(θ_t − θ_0) = H_tθ_t − ∇ℓ_t(θ_t), which is not H_tθ_t (misprint 5).
    - `num_samples`, `key`, `block_size`: as in `bayesmerge.curvature`.
    - `max_steps`: of the optimiser.

    **Returns** an `IsotropicGaussian`, `DiagonalGaussian` or `FullGaussian`.

    Not differentiable: gradients through the search for θ_t are not defined.

    **Warns** when θ_t is further than 0.01 posterior standard deviations (root mean square over the
    parameters, by the curvature used) from the mode, and says how far.

    **Raises** `ValueError` for a loss that is not per example, data or parameters that are not
    finite, and a Hessian that with the prior is not positive definite at the mode.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, batch):
    ...     x, y = batch
    ...     return 0.5 * (x @ theta - y) ** 2
    >>> target = bm.Target(loss, (jnp.array([[1.0], [2.0]]), jnp.array([1.0, 3.0])))
    >>> prior = bm.FullGaussian.from_mean_precision(jnp.zeros(1), jnp.eye(1))
    >>> q = bm.laplace(target, prior)
    >>> q.mode().round(6), q.precision
    (Array([1.166667], dtype=float32), Array([[6.]], dtype=float32))

    ```

    Source: GM equations 6 and 9; GMA Theorem 1; FP §3.
    """
    require_kinds(target, prior)
    loss, gaussian = absorb(target, prior)
    kind: Kind = curvature or ("ggn" if loss.has_model else "hessian")
    if params is None:
        method: Method = "newton" if structure == "full" else "lbfgs"
        found = search(loss, gaussian, start, method, max_steps)
    else:
        found = _trained(loss, gaussian, params)
    fit = _posterior_at if loss.is_streamed else _posterior_at_compiled
    posterior, likelihood, proper, distance = fit(
        loss, gaussian, found, kind, structure, num_samples, key, block_size
    )
    message = (
        f"the posterior precision, {kind} plus prior, is not positive definite at the mode, so "
        "there is no Laplace approximation there. The Hessian of a trained network often is not: "
        "use curvature='ggn' (with Target.supervised), 'fisher' or 'squared_gradients', which "
        "cannot be indefinite. Otherwise give a prior (directions the data do not determine need "
        "one, such as the scale of a single observation), a more informative one, or train "
        "further: an indefinite Hessian also means that this is not a minimum."
    )

    def smallest() -> str:
        return f"The smallest eigenvalue or entry is {posterior.smallest_precision():.6g}{where()}."

    def where() -> str:
        if not isinstance(posterior, FullGaussian) or not all_finite(posterior.precision):
            return ""
        layout = posterior.layout
        weakest = jnp.abs(jnp.linalg.eigh(posterior.precision)[1][:, 0])
        sizes = [jnp.max(x).item() for x in jax.tree.leaves(layout.unravel(weakest))]
        name = layout.names[sizes.index(max(sizes))] or "theta"
        return f", in a direction of mostly {name}"

    posterior, likelihood = require((posterior, likelihood), proper, message, smallest)
    tell(_warn_if_far, (distance, found.gradient_norm, found.steps))
    if include_prior:
        return posterior
    if loss is target:
        return likelihood
    return posterior / expand(loss.targets[1], found.params, structure=structure)


def _warn_if_far(distance: Any, gradient_norm: Any, steps: Any) -> None:
    if distance > NEGLIGIBLE:
        warnings.warn(
            f"these parameters are {float(distance):.2g} posterior standard deviations (root mean "
            f"square) from the mode, after {int(steps)} steps, with gradient norm "
            f"{float(gradient_norm):.2g}. The posterior is centred on them all the same. Allow "
            "more `max_steps`, start closer, scale the inputs, or train to a minimum of the summed "
            "loss plus prior.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _trained(target: AbstractTarget, prior: AbstractGaussian | None, params: PyTree) -> Mode:
    params, layout = as_arrays(params, "params")
    if prior is not None:
        prior.layout.require_same(layout, "prior and params")
    params = require_finite(params, "params")
    target.check(params)
    loss, gradient = Objective(target, prior).value_and_gradient(params)
    return Mode(params, loss, gradient, jnp.array(0), jnp.array(True))


def _posterior_at(
    target: AbstractTarget,
    prior: AbstractGaussian | None,
    mode: Mode,
    kind: Kind,
    structure: Structure,
    num_samples: int | None,
    key: PRNGKeyArray | None,
    block_size: int | None,
) -> tuple[AbstractGaussian, AbstractGaussian, Bool[Array, ""], Float[Array, ""]]:
    """q_t, q_t/p_0, whether q_t is proper, and √(∇ᵀ(H_0 + H_t)⁻¹∇ / P)."""
    theta, layout = mode.params, Layout.of(mode.params)
    H = curvature(
        target, theta, kind, structure, num_samples=num_samples, key=key, block_size=block_size
    )
    if prior is None:
        posterior = likelihood = quadratic(theta, jax.tree.map(jnp.zeros_like, theta), H, structure)
    else:
        gradient = prior.multiply(jax.tree.map(jnp.subtract, prior.mode(), theta))
        likelihood = quadratic(theta, gradient, H, structure)
        posterior = likelihood * prior
    distance = jnp.sqrt(posterior.squared_length(mode.gradient) / layout.size)
    return posterior, likelihood, posterior.is_proper(), distance


_posterior_at_compiled = eqx.filter_jit(_posterior_at)
