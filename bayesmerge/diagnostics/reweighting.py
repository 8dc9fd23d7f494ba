"""Draws of a posterior with importance weights to the exact one, and Pareto's k."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bayesmerge.families.show import number
from bayesmerge.fit.abstract_target import AbstractTarget

EQUAL = 1e-8
"""A range of log weights within which they have no tail."""


FEWEST = 25
"""Draws that arviz-stats takes five largest weights from."""


class Reweighted(eqx.Module):
    r"""Draws θ_s ~ q with importance weights w_s ∝ p(θ_s)/q(θ_s).

    - `k`: Pareto's k of the weights' tail, −∞ where all are equal. Below 0.7 the weights are
      reliable, and q not far from p.
    - `effective_samples`: 1 / Σ w_s², of smoothed weights.
    - `draws`: θ_s, with a leading axis.
    - `log_weights`: log w_s, smoothed and normalised.
    """

    def __repr__(self) -> str:
        """k, and how many draws these are worth."""
        count = len(self.log_weights)
        samples = number(self.effective_samples)
        return f"Reweighted: k = {number(self.k)}, effective samples {samples} of {count}"

    k: float
    effective_samples: float
    draws: PyTree
    log_weights: Float[np.ndarray, " S"]

    def mean(self) -> PyTree:
        """Σ w_sθ_s, the mean of p."""
        w = jnp.exp(self.log_weights)
        return jax.tree.map(lambda x: jnp.tensordot(w.astype(x.dtype), x, 1), self.draws)


def reweighted(
    posterior: Any,
    target: AbstractTarget,
    prior: Any = None,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Reweighted:
    r"""Draws from a posterior q with importance weights to the exact $p \propto p_0 e^{-\ell}$,
    smoothed as Pareto's k says.

    - `posterior`: q, with `sample` and `log_prob`.
    - `target`: ℓ, e.g. `JointTarget(targets, weights)`.
    - `prior`: p_0; by default that of the target, or else flat.
    - `key`, `num_samples`: of the draws.

    **Returns** `Reweighted` draws.

    **Raises** `ImportError` without `arviz-stats`, which smooths the weights.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto Smoothed Importance Sampling*.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError as error:
        raise ImportError(
            "Pareto-smoothed importance weights need arviz-stats: pip install "
            "'bayesmerge[numpyro]'."
        ) from error
    if num_samples < FEWEST:
        raise ValueError(
            f"num_samples is {num_samples}, and a tail is fitted to at least {FEWEST} draws."
        )
    prior = target.prior if prior is None else prior
    draws = posterior.sample(jax.random.key(0) if key is None else key, (num_samples,))
    ratios = np.asarray(_log_ratios(posterior, target, prior, draws), float)
    if np.ptp(ratios) < EQUAL:
        log_weights, k = np.zeros(num_samples), -np.inf
    else:
        log_weights, k = array_stats.psislw(-ratios)
    log_weights = np.asarray(log_weights) - np.logaddexp.reduce(log_weights)
    return Reweighted(float(k), float(1 / np.sum(np.exp(2 * log_weights))), draws, log_weights)


@eqx.filter_jit
def _log_ratios(posterior: Any, target: Any, prior: Any, draws: PyTree) -> Float[Array, " S"]:
    def one(theta: PyTree) -> Array:
        log_p = log_prior(prior, theta) - target.total(theta)
        return log_p - posterior.log_prob(theta)

    return jax.lax.map(one, draws)


def log_prior(prior: Any, theta: PyTree) -> Any:
    if prior is None:
        return 0.0
    return -prior.total(theta) if isinstance(prior, AbstractTarget) else prior.log_prob(theta)
