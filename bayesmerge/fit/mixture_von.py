r"""Variational mixtures: natural gradients for every component of q(θ) = Σ_c π_c N(θ|μ_c, P_c⁻¹).

With h = log q − log p_0 + ℓ, whose mean under q is minus the evidence lower bound, component c
moves by averages over its own draws: E_c[∇h], E_c[∇²h], and log π_c by E_c[h]. (Lin, Khan & Schmidt
write them as averages over draws of q weighted by N_c/q; drawing from N_c itself needs no weights.)
One component is VON.
"""

import math
import os
import warnings
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, logsumexp, softmax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.base import unstack
from bayesmerge.families.checks import ConvergenceWarning
from bayesmerge.families.gaussian import AbstractGaussian, gaussian
from bayesmerge.families.precision import (
    AbstractPrecision,
    AbstractStructure,
    Structure,
    as_structure,
)
from bayesmerge.fit.absorb import absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.convergence import (
    compared,
    fresh_draws,
    kept_draws,
    left_of_start,
    settled,
)
from bayesmerge.fit.curvature import require_known
from bayesmerge.fit.expectation import At, Estimator, expectation, loss_at
from bayesmerge.fit.optimise import as_fitted_prior
from bayesmerge.fit.run import AbstractMethod, Schedule, run
from bayesmerge.fit.von import (
    at_step,
    improved_step,
    moved_to,
    require_even,
    require_step_size,
    stable,
    starting_gaussian,
)
from bayesmerge.keys import as_key
from bayesmerge.mixtures.mixture import Mixture
from bayesmerge.origins import Origin, remember
from bayesmerge.priors import Prior

NEGLIGIBLE_WEIGHT = 1e-3
"""Weight, relative to 1/K, below which a component has collapsed."""

LEAST_LOG_WEIGHT = -50.0


class Components(NamedTuple):
    """π and N(μ_c, P_c⁻¹) on their way: the state of `MixtureVON`."""

    log_weights: Float[Array, " K"]
    gaussians: Any


class MixtureVON(AbstractMethod):
    r"""Variational online Newton for mixtures as a method of `run`; see `mixture_von`.

    The state is `Components`.

    Source: Lin, Khan & Schmidt (2019), §4.1; Lin, Schmidt & Khan (2020) for the improved step.
    """

    shown: ClassVar[str] = "elbo"
    prior: AbstractGaussian | None
    structure: AbstractStructure = eqx.field(converter=as_structure, default="full")
    curvature: Estimator = "ggn"
    num_samples: int = 8
    resample: bool = True
    step_size: float | Schedule = 0.1
    weight_step_size: float | Schedule = 0.01

    def __check_init__(self) -> None:
        require_known("curvature", self.curvature, Estimator)
        require_even("num_samples", self.num_samples)
        require_step_size("step_size", self.step_size)
        require_step_size("weight_step_size", self.weight_step_size)

    def init(self, start: Mixture) -> Components:
        """From a mixture of Gaussians; weights of zero become small ones."""
        return Components(jnp.maximum(start.log_weights, LEAST_LOG_WEIGHT), start.components)

    def step(
        self, inner: Components, target: AbstractTarget, t: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Components, dict[str, Float[Array, ""]]]:
        """All components after a step; the evidence lower bound and the effective number of
        components, exp of the entropy of π, before it."""
        mixture = Mixture(jnp.exp(inner.log_weights), inner.gaussians)
        key = key if self.resample else jax.random.key(0)
        keys = jax.random.split(key, mixture.num_components)
        rho = at_step(self.step_size, t)
        h = self._h(mixture, target)

        def one(component: tuple[Any, PyTree, PRNGKeyArray]) -> tuple[Any, Float[Array, ""]]:
            q, mean, key = component
            found = expectation(q, mean, q.deviations(key, self.num_samples // 2), h)
            new, down = improved_step(q, found.gradient, found.curvature, rho)
            size = stable(rho, target, self.prior, mean, found.gradient, down, self.curvature)
            return moved_to(new, mean, down, size), found.value

        gaussians, values = jax.lax.map(one, (inner.gaussians, mixture.means, keys))
        moved = inner.log_weights - at_step(self.weight_step_size, t) * values
        pi = jnp.exp(inner.log_weights)
        told = {
            "elbo": -jnp.sum(pi * values),
            "components": jnp.exp(-jnp.sum(jnp.where(pi > 0, pi * inner.log_weights, 0.0))),
        }
        return Components(log_softmax(moved), gaussians), told

    def _h(self, mixture: Mixture, target: AbstractTarget) -> At:
        """θ ↦ h(θ) = log q − log p_0 + ℓ, its gradient and, of the kind that the components'
        precisions are, its curvature, none for `"price"`."""
        loss = loss_at(target, self.curvature, self.structure)
        structure = mixture.components.precision.structure
        prior = None if self.prior is None else self.prior.structured(structure)

        def h(theta: PyTree) -> tuple[Any, Any, Any]:
            value, gradient, H = loss(theta)
            log_q, slope, bend = _log_derivatives(mixture, theta)
            value, gradient = value + log_q, jax.tree.map(jnp.add, gradient, slope)
            if prior is not None:
                pull = jax.tree.map(jnp.subtract, prior.multiply(theta), prior.linear)
                value = value - prior.log_prob(theta)
                gradient = jax.tree.map(jnp.add, gradient, pull)
                bend = bend.plus(prior.precision)
            if H is None:
                return value, gradient, None
            return value, gradient, structure.convert(H).plus(bend)

        return h

    def posterior(self, inner: Components) -> Mixture:
        """q."""
        if inner.log_weights.ndim == 2:
            return jax.vmap(self.posterior)(inner)
        return Mixture(jnp.exp(inner.log_weights), inner.gaussians)


def mixture_von(
    target: AbstractTarget,
    prior: Prior = None,
    *,
    key: PRNGKeyArray,
    num_components: int = 10,
    structure: Structure = "full",
    curvature: Estimator | None = None,
    start: Any = None,
    spread: float = 1.0,
    num_samples: int = 8,
    resample: bool = True,
    step_size: float | Schedule = 0.1,
    weight_step_size: float | Schedule = 0.01,
    num_steps: int = 100,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Mixture:
    r"""The variational mixture of Gaussians of a task, by natural gradients,

    $$P_c \leftarrow P_c + \beta G_c + \tfrac12\beta^2 G_cP_c^{-1}G_c, \qquad
    \mu_c \leftarrow \mu_c - \beta P_c^{-1}E_c[\nabla h], \qquad
    \log\pi_c \leftarrow \log\pi_c - \beta_\pi E_c[h] + \mathrm{const},$$

    with $h = \log q - \log p_0 + \ell$, $G_c = E_c[\nabla^2 h]$, $E_c$ over component c, and
    the old P_c in the step of the mean. Precisions stay positive definite whatever the step size.

    - `target`, `prior`, `key`, `curvature`, `num_samples`, `resample`, `num_steps`, `batch_size`,
      `checkpoint`, `progress`: as in `von`; `num_samples` for each component. `"price"` for
      `curvature` is the Hessian-free variant, G_c = sym E_c[P_c(θ − μ_c)∇hᵀ].
    - `num_components`: K; that of `start` where it is a mixture.
    - `structure`: of the components.
    - `start`: a `Mixture` to start from; or q or θ as in `von`, and K components are drawn around.
    - `spread`: how far apart these are drawn, in standard deviations of q.
    - `step_size`, `weight_step_size`: β and β_π in (0, 1], or schedules.

    **Returns** a `Mixture` of K Gaussians, the start where that has the higher evidence lower
    bound.

    **Warns** with a `ConvergenceWarning` where components have collapsed (weights below 0.001/K),
    and as `von` where the fit has not converged; log-weights count as parameters, in units of one.

    **Raises** `ValueError` for no components, step sizes outside (0, 1], and as `von`.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> target = bm.Target(lambda theta, y: (theta**2 - y) ** 2, jnp.array([4.0]))  # ±2
    >>> start = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 4.0)
    >>> q = bm.mixture_von(target, key=jax.random.key(1), num_components=6, structure="isotropic",
    ...                    start=start, spread=4.0, num_samples=32, progress=False)
    >>> bool(jnp.min(q.means) < -1.9), bool(jnp.max(q.means) > 1.9)
    (True, True)

    ```

    Source: Lin, Khan & Schmidt (2019), §4.1; Lin, Schmidt & Khan (2020); used by FP §3.4.
    """
    held = as_fitted_prior(target, prior)
    if num_components < 1:
        raise ValueError(
            f"num_components is {num_components}, and a mixture needs at least one component."
        )
    if not 0 <= spread < math.inf:
        raise ValueError(f"spread is {spread}, and it must be finite and not negative.")
    loss, factor = absorb(target, held)
    method = MixtureVON(
        prior=factor,
        structure=as_structure(structure),
        curvature=curvature or ("ggn" if target.has_model else "hessian"),
        num_samples=num_samples,
        resample=resample,
        step_size=step_size,
        weight_step_size=weight_step_size,
    )
    key = as_key(key)
    if isinstance(start, Mixture):
        members = [
            starting_gaussian(target, held, method.structure, method.curvature, q)
            for q in unstack(start.components)
        ]
        gaussians = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        first = method.init(Mixture(start.weights, gaussians))
    else:
        q = starting_gaussian(target, held, method.structure, method.curvature, start)
        first = _around(q, num_components, spread, jax.random.fold_in(key, 1))
    last = run(
        method,
        loss,
        first,
        num_steps=num_steps,
        key=key,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    ).posterior
    began = method.posterior(first)
    K = began.num_components
    draws = fresh_draws(key, K, loss.is_streamed or batch_size is not None)
    if not resample:
        draws = kept_draws(jax.random.split(jax.random.key(0), K), num_samples)
    found = settled(
        last,
        began,
        *compared(loss, factor, last, began, draws),
        num_steps=num_steps,
        left=left_of_start(step_size, num_steps),
        step_name="step_size and weight_step_size",
    )
    _warn_if_collapsed(np.asarray(found.weights))
    return remember(found, Origin(prior))


def _around(q: Any, K: int, spread: float, key: PRNGKeyArray) -> Components:
    """K components of the precision of q, their means drawn from q widened by `spread`."""
    mean = q.mean()
    drawn = jax.tree.map(lambda x: x[::2], q.deviations(key, K))

    def shifted(deviation: PyTree) -> Any:
        centre = jax.tree.map(lambda m, d: m + spread * d, mean, deviation)
        return gaussian(q.multiply(centre), q.precision)

    return Components(jnp.full(K, -jnp.log(K)), jax.vmap(shifted)(drawn))


def _log_derivatives(mixture: Mixture, theta: PyTree) -> tuple[Array, PyTree, AbstractPrecision]:
    """log q, ∇log q = Σ r_k s_k =: s, and ∇²log q = Σ r_k (s_ks_kᵀ − P_k) − ssᵀ, of the kind that
    precisions are, with responsibilities r_k and s_k = P_k(μ_k − θ)."""
    log_joint = mixture.log_joint(theta)
    r = softmax(log_joint)
    average = lambda tree: jax.tree.map(  # noqa: E731
        lambda x: jnp.tensordot(r.astype(x.dtype), x, axes=1), tree
    )

    def pull(q: Any, mean: PyTree) -> PyTree:
        return q.multiply(jax.tree.map(jnp.subtract, mean, theta))

    components = mixture.components
    structure, layout = components.precision.structure, mixture.layout

    def square(q: Any, slope: PyTree) -> AbstractPrecision:
        return structure.outer(slope, slope, layout).plus(q.precision, -1.0)

    slopes = jax.vmap(pull)(components, mixture.means)
    slope = average(slopes)
    inner = average(jax.vmap(square)(components, slopes))
    outer = structure.outer(slope, slope, layout)
    return logsumexp(log_joint), slope, inner.plus(outer, -1.0)


def _warn_if_collapsed(weights: np.ndarray) -> None:
    collapsed = np.flatnonzero(weights < NEGLIGIBLE_WEIGHT / len(weights))
    if len(collapsed):
        warnings.warn(
            f"{len(collapsed)} of {len(weights)} components have collapsed: their weights are "
            f"below {NEGLIGIBLE_WEIGHT / len(weights):.2g}, and the mixture is one of "
            f"{len(weights) - len(collapsed)}. Use fewer components, a smaller weight_step_size, "
            "or a wider start.",
            ConvergenceWarning,
            stacklevel=3,
        )
