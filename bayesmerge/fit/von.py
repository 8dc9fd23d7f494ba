r"""Variational online Newton: the Gaussian that is best everywhere, not only at the mode.

In natural parameters a step is a merge of the posterior with a fresh expansion of the loss,
q ← q^{1−ρ}(p_0 e^{−ℓ̂})^ρ, where ℓ̂ is `expand` with gradient and curvature averaged over q:
S ← (1−ρ)S + ρ(E_q[∇²ℓ] + H_0), m ← m − ρS⁻¹(E_q[∇ℓ] + H_0(m − θ_0)).
"""

import os
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import require
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import as_arrays
from bayesmerge.families.precision import (
    AbstractPrecision,
    AbstractStructure,
    Full,
    Structure,
    as_structure,
    join,
)
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.absorb import absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.convergence import (
    compared,
    fresh_draws,
    kept_draws,
    left_of_start,
    settled,
)
from bayesmerge.fit.curvature import Kind, curvature_product, require_known
from bayesmerge.fit.expand import quadratic
from bayesmerge.fit.expectation import Estimator, expectation, loss_at
from bayesmerge.fit.laplace import laplace
from bayesmerge.fit.optimise import as_fitted_prior
from bayesmerge.fit.run import AbstractMethod, Schedule, run
from bayesmerge.keys import as_key
from bayesmerge.origins import Origin, remember
from bayesmerge.priors import AbstractPrior, Prior

NEVER_INDEFINITE = ("ggn", "fisher", "squared_gradients")


class RobbinsMonro(eqx.Module):
    """ρ_t = (t + 2)^{−0.6}: steps that average Monte-Carlo noise away."""

    def __call__(self, t: Int[Array, ""]) -> Float[Array, ""]:
        return (jnp.asarray(t, float) + 2.0) ** -0.6


class VON(AbstractMethod):
    r"""Variational online Newton as a method of `run`; `von` says what its options mean.

    The state is the Gaussian q itself.

    Source: Khan & Rue (2023), §1.3.2; Lin, Schmidt & Khan (2020) for the improved step.
    """

    shown: ClassVar[str] = "elbo"
    prior: AbstractGaussian | None
    structure: AbstractStructure = eqx.field(converter=as_structure, default="full")
    curvature: Estimator = "ggn"
    num_samples: int = 8
    resample: bool = True
    step_size: float | Schedule = RobbinsMonro()

    def __check_init__(self) -> None:
        require_known("curvature", self.curvature, Estimator)
        require_even("num_samples", self.num_samples)
        require_step_size("step_size", self.step_size)

    def step(
        self, inner: Any, target: AbstractTarget, t: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """q after a step, and the evidence lower bound before it."""
        q, mean = inner, inner.solve(inner.linear)
        deviations = q.deviations(
            key if self.resample else jax.random.key(0), self.num_samples // 2
        )
        loss = expectation(q, mean, deviations, loss_at(target, self.curvature, self.structure))
        fresh = quadratic(mean, loss.gradient, loss.curvature)
        bound = -loss.value + q.entropy()
        if self.prior is not None:
            fresh = fresh * self.prior
            bound = -loss.value - q.kl_divergence(self.prior)
        rho = at_step(self.step_size, t)
        fresh = fresh.structured(q.precision.structure)
        gradient = jax.tree.map(jnp.subtract, fresh.multiply(mean), fresh.linear)
        G = fresh.precision.plus(q.precision, -1.0)
        is_safe = self.curvature in NEVER_INDEFINITE and not any(
            part.has_own_curvature for _, part in target.parts()
        )
        step = plain_step if is_safe else improved_step
        new, down = step(q, gradient, G, rho)
        if not isinstance(self.structure, Full) or not is_safe:
            rho = stable(rho, target, self.prior, mean, gradient, down, self.curvature)
        return moved_to(new, mean, down, rho), {"elbo": bound}

    def posterior(self, inner: Any) -> Any:
        """q."""
        return inner


def von(
    target: AbstractTarget,
    prior: Prior = None,
    *,
    key: PRNGKeyArray,
    structure: Structure = "full",
    curvature: Estimator | None = None,
    start: Any = None,
    num_samples: int = 8,
    resample: bool = True,
    step_size: float | Schedule | None = None,
    num_steps: int = 100,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> AbstractGaussian:
    r"""The variational Gaussian posterior of a task,
    $q_t = \arg\min_q E_q[\ell_t] + \mathrm{KL}(q \,\|\, p_0)$, by variational online Newton.

    Each step averages gradient and curvature over q, $g = E_q[\nabla\ell] + H_0(m - \theta_0)$ and
    $G = E_q[\nabla^2\ell] + H_0 - S$, and moves the precision S and the mean m,

    $$S \leftarrow S + \rho G, \quad m \leftarrow m - \rho S^{-1}g,$$

    until $g = 0$ and $S = E_q[\nabla^2\ell] + H_0$. Where G can be indefinite the step is
    $S \leftarrow S + \rho G + \tfrac12\rho^2 GS^{-1}G$ with the old S in that of m, which keeps S
    positive definite whatever G is; for the other kinds of curvature S + ρG is an average of
    positive-definite matrices. Where S is not full, or that of the last step, the step of m
    goes no further than to the minimum along its direction, for one product with the curvature.

    - `target`: ℓ_t, with per-example losses that are summed.
    - `prior`: p_0 = N(θ_0, H_0⁻¹), an `ExactPrior`, or `None` for a flat one.
    - `key`: of all randomness.
    - `structure`: of q, `"full"`, `"diagonal"`, `"isotropic"` or `Blocks()`; the posterior is of
      the smallest family that also holds the prior.
    - `curvature`: what stands for ∇²ℓ: a kind of `bayesmerge.curvature`, or `"price"` for none at
      all, E_q[∇²ℓ] being estimated from gradients by Price's theorem. By default the GGN for
      supervised targets and the Hessian for others.
    - `start`: q to start from; by default the Laplace posterior. Or θ, from which that posterior is
      searched for instead of from θ_0.
    - `num_samples`: draws a step, even: they come as m + d and m − d, which makes E_q[∇ℓ] exact
      where ℓ is quadratic.
    - `resample`: `False` to use the same standard normal draws at every step, whatever the `key`.
      The fit is then deterministic and converges to the fixed point of these draws.
    - `step_size`: ρ in (0, 1], or a schedule of the step's number (optax's serve). By default
      (t + 2)^−0.6, or 0.5 where draws are kept.
    - `num_steps`: how many steps.
    - `batch_size`: examples a step; by default all.
    - `checkpoint`, `progress`: as in `bayesmerge.fit.run`, which also returns the history of the
      evidence lower bound and a state to continue from.

    **Returns** a Gaussian: q after the last step, or the start where that has the higher evidence
    lower bound.

    **Warns** with a `ConvergenceWarning` where the next step of natural gradients would move q by
    more than a tenth of its standard deviations (root mean square over parameters) beyond the noise
    of the draws that this is estimated from, where its standard deviations have more than a tenth
    to go, and where the bound has fallen.

    **Raises** `ValueError` for a step size outside (0, 1], an odd or too small `num_samples`, and
    as `laplace`; `bayesmerge.fit.DivergenceError` where a step is not finite.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> x, y = jnp.array([[1.0], [2.0], [-1.0]]), jnp.array([1, 1, 0])
    >>> target = bm.Target.supervised(lambda w, x: x @ w, "bernoulli", (x, y))
    >>> prior = bm.FullGaussian.from_mean_precision(jnp.zeros(1), jnp.eye(1))
    >>> q = bm.von(target, prior, key=jax.random.key(0), num_samples=200, progress=False)
    >>> q.mean().round(1), q.precision.value.round(1)
    (Array([1.], dtype=float32), Array([[1.9]], dtype=float32))

    ```

    Source: FP equation 7; Khan & Rue (2023), §1.3.2; Lin, Schmidt & Khan (2020).
    """
    held = as_fitted_prior(target, prior)
    key = as_key(key)
    kind = curvature or ("ggn" if target.has_model else "hessian")
    loss, gaussian = absorb(target, held)
    method = VON(
        prior=gaussian,
        structure=as_structure(structure),
        curvature=kind,
        num_samples=num_samples,
        resample=resample,
        step_size=(RobbinsMonro() if resample else 0.5) if step_size is None else step_size,
    )
    first = starting_gaussian(target, held, method.structure, method.curvature, start)
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
    draws = fresh_draws(key, 1, loss.is_streamed or batch_size is not None)
    if not resample:
        draws = kept_draws(jax.random.key(0)[None], num_samples)
    posterior = settled(
        last,
        first,
        *compared(loss, gaussian, last, first, draws),
        num_steps=num_steps,
        left=left_of_start(method.step_size, num_steps),
        by_price=method.curvature in ("hessian", "price"),
    )
    return remember(posterior, Origin(prior))


def plain_step(
    q: Any, gradient: PyTree, G: AbstractPrecision, rho: Float[Array, ""]
) -> tuple[Any, PyTree]:
    """Λ ← Λ + ρG, and Λ⁻¹g with the new Λ."""
    new = eqx.tree_at(lambda q: q.precision, q, q.precision.plus(G, rho))
    return new, new.solve(gradient)


def improved_step(
    q: Any, gradient: PyTree, G: AbstractPrecision, rho: Float[Array, ""]
) -> tuple[Any, PyTree]:
    """Λ ← Λ + ρG + ½ρ²GΛ⁻¹G = ½[Λ + (Λ + ρG)Λ⁻¹(Λ + ρG)], positive definite for every G, and
    Λ⁻¹g with the old Λ (Lin, Schmidt & Khan 2020)."""
    precision = q.precision.plus(G, rho).plus(q.precision.sandwich(G), 0.5 * rho**2)
    return eqx.tree_at(lambda q: q.precision, q, precision), q.solve(gradient)


def stable(
    rho: Float[Array, ""],
    target: AbstractTarget,
    prior: AbstractGaussian | None,
    mean: PyTree,
    gradient: PyTree,
    down: PyTree,
    curvature: Estimator,
) -> Float[Array, ""]:
    """ρ, or where it is smaller the step gᵀd/‖d‖²_{H + H_0} to the minimum along d = Λ⁻¹g: a Λ
    without correlations goes up to P times too far, and one that is too small by as much."""
    kind: Kind = "hessian" if curvature == "price" else curvature
    bend = tree_dot(down, curvature_product(target, mean, down, kind))
    if prior is not None:
        bend = bend + tree_dot(down, prior.multiply(down))
    best = tree_dot(gradient, down) / bend
    return jnp.where(bend > 0, jnp.minimum(rho, best), rho)


def moved_to(q: Any, mean: PyTree, down: PyTree, rho: Float[Array, ""]) -> Any:
    """q with the mean m − ρd."""
    return eqx.tree_at(lambda q: q.linear, q, q.multiply(add_scaled(mean, -rho, down)))


def add_scaled(x: PyTree, scale: Float[Array, ""], y: PyTree) -> PyTree:
    """x + scale·y, leaf by leaf."""
    return jax.tree.map(lambda x, y: x + scale.astype(x.dtype) * y, x, y)


def starting_gaussian(
    target: AbstractTarget,
    prior: AbstractPrior,
    structure: AbstractStructure,
    curvature: Estimator,
    start: Any,
) -> AbstractGaussian:
    """`start` where it is a Gaussian, or else the Laplace posterior, found from `start`."""
    if not isinstance(start, AbstractGaussian):
        kind: Kind = "squared_gradients" if curvature == "price" else curvature
        if start is not None:
            start = as_arrays(start, "start")[0]
        start = laplace(target, prior.given, structure=structure, curvature=kind, start=start)
    start._factor("mode to start from")
    target.check(start.mode())
    prior.require_layout(start.layout, "start")
    if prior.gaussian is not None:
        wider = join(start.precision.structure, prior.gaussian.precision.structure)
        start = start.structured(wider)
    own = start.precision.structure
    return start.structured(join(own, structure.over(start.layout)))


def at_step(size: float | Schedule, t: Int[Array, ""], most: float = 1.0) -> Float[Array, ""]:
    """The size of step t, in [0, most]."""
    if not callable(size):
        return jnp.asarray(size, float)
    value = jnp.asarray(size(t), float)
    message = f"a schedule of step sizes left [0, {most:g}]: scale what it returns."
    return require(value, (value >= 0) & (value <= most), message, lambda: f"It gave {value}.")


def require_step_size(name: str, size: Any, most: float = 1.0) -> None:
    if not callable(size) and not 0 < size <= most:
        raise ValueError(
            f"{name} is {size}, and it must be in (0, {most:g}], or a schedule (a function of the "
            "step's number)."
        )


def require_even(name: str, number: int) -> None:
    if number < 2 or number % 2:
        raise ValueError(
            f"{name} is {number}, and it must be even and at least 2: draws come in pairs m ± d."
        )
