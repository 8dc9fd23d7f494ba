r"""Variational inference in any exponential family, by natural gradients.

The optimum satisfies λ = λ_0 − ∇_μE_q[ℓ], μ = E_q[T(θ)] (the Bayesian learning rule), and
∇_μE_q[ℓ] = Cov_q[T]⁻¹Cov_q[T, ℓ] are the coefficients of the linear regression of ℓ on T(θ). Where
ℓ is linear in T, that is where the likelihood is conjugate, draws give them without error.
"""

import os
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.fit.abstract_target import AbstractTarget, Loss
from bayesmerge.fit.convergence import LAST, Evidence, Words, left_of_start, settled
from bayesmerge.fit.run import AbstractMethod, Schedule, run
from bayesmerge.fit.von import RobbinsMonro, at_step, require_step_size
from bayesmerge.linear_algebra import lstsq

MANY = 1000
HALVINGS = 20
SETS = 8
"""Regressions at the end, from which the noise of one is known."""


class NaturalGradient(AbstractMethod):
    """λ ← (1 − ρ)λ + ρ(λ_0 − ∇_μE_q[ℓ]) as a method of `run`; see `natural_gradient_vi`. The state
    is q."""

    shown: ClassVar[str] = "elbo"
    prior: AbstractExponentialFamily
    num_samples: int
    step_size: float | Schedule = RobbinsMonro()

    def step(
        self, inner: Any, target: AbstractTarget, t: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """q after a step, and the evidence lower bound before it."""
        q = inner
        draws = q.sample(key, (self.num_samples,))
        losses = jax.lax.map(target.total, draws)
        statistics = jax.vmap(lambda theta: ravel_pytree(q.sufficient_statistics(theta))[0])(draws)
        slope = _regression(statistics, losses)
        fresh = self.prior * _factor(q, -slope)
        rho = _largest_proper(q, fresh, at_step(self.step_size, t))
        bound = -jnp.mean(losses) - q.kl_divergence(self.prior)
        return q ** (1 - rho) * fresh**rho, {"elbo": bound}

    def posterior(self, inner: Any) -> Any:
        """q."""
        return inner


def natural_gradient_vi(
    target: AbstractTarget,
    prior: Any,
    *,
    key: PRNGKeyArray,
    start: Any = None,
    num_samples: int | None = None,
    step_size: float | Schedule | None = None,
    num_steps: int = 100,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Any:
    r"""The variational posterior in the family of the prior, whichever it is,

    $$\lambda \leftarrow (1-\rho)\lambda + \rho(\lambda_0 - \nabla_\mu E_q[\ell]), \qquad
    \nabla_\mu E_q[\ell] = \mathrm{Cov}_q[T]^{-1}\mathrm{Cov}_q[T, \ell].$$

    For Beta, Gamma and Dirichlet posteriors of few parameters (the regression has one coefficient
    for each natural parameter); for Gaussians of many, use `von`. Exact for conjugate likelihoods.

    - `target`: ℓ(θ), θ in the support of the prior.
    - `prior`: p_0, a `Beta`, `Gamma`, `Dirichlet` or Gaussian.
    - `key`: of all randomness.
    - `start`: q to start from, of the prior's family; by default the prior.
    - `num_samples`: draws a step; by default eight for each natural parameter, at least 64.
    - `step_size`: ρ in (0, 1], or a schedule; by default (t + 2)^−0.6. It is halved where a step
      would make q improper.
    - `num_steps`, `batch_size`, `checkpoint`, `progress`: as in `von`.

    **Returns** a posterior of the prior's family, the start where that has the higher evidence
    lower bound.

    **Warns** with a `ConvergenceWarning` as `von`, where the fit has not converged.

    **Raises** `TypeError` for a prior that is no exponential family, `ValueError` for more than
    1000 natural parameters, too few samples, or a step size outside (0, 1].

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import natural_gradient_vi
    >>> def loss(p, heads):  # three heads and a tail
    ...     return -heads * jnp.log(p) - (1 - heads) * jnp.log1p(-p)
    >>> flips = bm.Target(loss, jnp.array([1.0, 1.0, 0.0, 1.0]))
    >>> prior = bm.Beta.from_concentrations(2.0, 2.0)
    >>> q = natural_gradient_vi(flips, prior, key=jax.random.key(0), step_size=1.0, num_steps=1,
    ...                         progress=False)
    >>> [x.round(2).item() for x in q.concentrations]
    [5.0, 3.0]

    ```

    Source: FP equation 7; Khan & Rue (2023), equation 3; Salimans & Knowles (2013) for the
    regression.
    """
    if not isinstance(prior, AbstractExponentialFamily) or prior.batch_shape:
        raise TypeError(
            f"prior is a {type(prior).__name__}, and it must be one posterior of an exponential "
            "family, e.g. `Beta.from_concentrations(1.0, 1.0)`: q will be of its family."
        )
    count = sum(leaf.size for leaf in jax.tree.leaves(prior))
    if count > MANY:
        raise ValueError(
            f"prior has {count} natural parameters, and a regression on more than {MANY} is not "
            "what this is for: use `von` or `ivon` for Gaussians of many parameters."
        )
    samples = max(64, 8 * count) if num_samples is None else num_samples
    if samples <= count:
        raise ValueError(
            f"num_samples is {samples}, and a regression on {count} natural parameters needs more."
        )
    step_size = RobbinsMonro() if step_size is None else step_size
    require_step_size("step_size", step_size)
    first = prior if start is None else start * prior**0.0
    target.check(first.mean())
    last = run(
        NaturalGradient(prior, samples, step_size),
        target,
        first,
        num_steps=num_steps,
        key=key,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    ).posterior
    words = Words.of(jax.random.fold_in(key, LAST))
    look = _look if target.is_streamed else _look_compiled
    seen = [look(target, prior, q, words, samples) for q in (last, first)]
    ends, begins = (
        Evidence(np.asarray(b, float), np.asarray(p, float), np.zeros(SETS)) for b, p in seen
    )
    left = left_of_start(step_size, num_steps)
    return settled(last, first, ends, begins, num_steps=num_steps, left=left, by_price=True)


def _look(
    target: AbstractTarget, prior: Any, q: Any, words: Words, samples: int
) -> tuple[Float[Array, " J"], Float[Array, "J J"]]:
    """The bound, and the natural-gradient steps that remain in units of q, by each of J sets of
    draws."""
    draws = q.sample(words.keys(), (SETS * samples,))
    losses = target.accumulate(_losses_at, draws).reshape(SETS, samples)
    statistics = jax.vmap(lambda theta: ravel_pytree(q.sufficient_statistics(theta))[0])(draws)
    sets = statistics.reshape(SETS, samples, -1)
    slopes = jax.lax.map(lambda one: _regression(*one), (sets, losses))
    gap = ravel_pytree(prior.natural_parameters)[0] - ravel_pytree(q.natural_parameters)[0]
    away = statistics - jnp.mean(statistics, axis=0)[None]
    moved = (gap[None] - slopes) @ away.T
    products = moved @ moved.T / (len(away) * q.layout.size)
    return -jnp.mean(losses, axis=1) - q.kl_divergence(prior), products


_look_compiled = eqx.filter_jit(_look)


def _losses_at(
    loss: Loss, draws: PyTree, batch: PyTree, index: Int[ArrayLike, ""]
) -> Float[Array, " S"]:
    return jax.lax.map(lambda theta: jnp.sum(loss(theta, batch)), draws)


def _regression(T: Float[Array, "S D"], losses: Float[Array, " S"]) -> Float[Array, " D"]:
    """Cov[T]⁻¹Cov[T, ℓ] over draws, of the smallest norm where T repeats itself."""
    T = T - jnp.mean(T, axis=0)[None]
    scale = jnp.sqrt(jnp.mean(T**2, axis=0))
    coefficients = lstsq(T / scale[None], losses - jnp.mean(losses))
    return coefficients / scale


def _factor(like: Any, natural: Float[Array, " D"]) -> Any:
    """The member of the family of `like` with these natural parameters, flattened."""
    _, unravel = ravel_pytree(like.natural_parameters)
    leaves = jax.tree.leaves(unravel(natural))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _largest_proper(q: Any, fresh: Any, rho: Float[Array, ""]) -> Float[Array, ""]:
    """ρ halved until q^{1−ρ}·fresh^ρ is proper."""

    def improper(state: tuple[Array, Array]) -> Array:
        rho, halvings = state
        moved: PyTree = q ** (1 - rho) * fresh**rho
        return ~moved.is_proper() & (halvings < HALVINGS)

    halve = lambda state: (state[0] / 2, state[1] + 1)  # noqa: E731
    return jax.lax.while_loop(improper, halve, (rho, jnp.array(0)))[0]
