"""Draws of a posterior with importance weights to the exact one, and Pareto's k."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bayesmerge.families.show import number
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.priors import AbstractPrior, Prior, as_prior
from bayesmerge.refinement import warn_if_left_out

TIED = 16
"""Units of rounding of the log densities within which log weights are equal."""

UNRELIABLE = 0.7
"""Pareto's k from which no number of draws makes importance weights reliable."""

FEWEST = 25
"""Draws that arviz-stats takes five largest weights from."""


class Reweighted(eqx.Module):
    r"""Draws θ_s ~ q with importance weights w_s ∝ p(θ_s)/q(θ_s).

    - `k`: Pareto's k of the weights' tail, −∞ where all are equal within the rounding of the log
      densities, NaN where no tail can be fitted.
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

    @property
    def is_reliable(self) -> bool:
        """Whether k < min(1 − 1/log₁₀S, 0.7) for S draws; never where k is NaN."""
        return bool(self.k < min(1 - 1 / np.log10(len(self.log_weights)), UNRELIABLE))

    @property
    def k_error(self) -> float:
        """The standard error of k, (1 + k)/√M for the M largest weights that it is fitted to."""
        return float((1 + max(self.k, 0.0)) / tail_size(len(self.log_weights)) ** 0.5)

    def mean(self) -> PyTree:
        """Σ w_sθ_s, the mean of p."""
        w = jnp.exp(self.log_weights)
        return jax.tree.map(lambda x: jnp.tensordot(w.astype(x.dtype), x, 1), self.draws)


def reweighted(
    posterior: Any,
    target: AbstractTarget,
    prior: Prior = None,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Reweighted:
    r"""Draws from a posterior q with importance weights to the exact $p \propto p_0 e^{-\ell}$,
    smoothed as Pareto's k says.

    - `posterior`: q, with `sample` and `log_prob`.
    - `target`: ℓ, e.g. `JointTarget(targets, weights)`.
    - `prior`: p_0, of any kind; `None` for a flat one.
    - `key`, `num_samples`: of the draws.

    **Returns** `Reweighted` draws.

    **Raises** `ImportError` without `arviz-stats`, which smooths the weights; `ValueError` for
    fewer than 25 draws, and where the log density of p is NaN or +∞ at a draw, or −∞ at all.

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
    held = as_prior(prior)
    warn_if_left_out(posterior, held)
    draws = posterior.sample(jax.random.key(0) if key is None else key, (num_samples,))
    log_p, log_q, scale = (
        np.asarray(x, float) for x in _log_densities(posterior, target, held, draws)
    )
    ratios = log_p - log_q
    _require_weights(ratios)
    eps = np.finfo(jnp.result_type(*jax.tree.leaves(draws))).eps
    rounding = eps * np.where(np.isfinite(scale), scale, 0.0)
    log_weights, k = _smoothed(array_stats.psislw, ratios, rounding)
    log_weights = log_weights - np.logaddexp.reduce(log_weights)
    return Reweighted(k, float(1 / np.sum(np.exp(2 * log_weights))), draws, log_weights)


def _smoothed(
    psis: Any, ratios: Float[np.ndarray, " S"], rounding: Float[np.ndarray, " S"]
) -> tuple[Float[np.ndarray, " S"], float]:
    """Log weights and Pareto's k: −∞ where the largest are equal within rounding, and NaN where no
    tail can be fitted, with the weights as they are. Ties that rounding makes are broken at
    random, since the fit divides by differences."""
    raw = ratios - np.max(ratios)
    tail = np.sort(raw)[-tail_size(len(raw)) - 1 :]
    if not np.all(np.isfinite(tail)):
        return raw, np.nan
    if np.ptp(tail) <= TIED * np.max(rounding):
        return raw, -np.inf
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, len(raw))
    with np.errstate(all="ignore"):
        smoothed, k = psis(-(ratios + noise * rounding))
    return (np.asarray(smoothed), float(k)) if np.all(smoothed < np.inf) else (raw, np.nan)


def tail_size(draws: int) -> int:
    """How many of the largest weights are the tail."""
    return int(min(draws / 5, 3 * draws**0.5))


def _require_weights(ratios: Float[np.ndarray, " S"]) -> None:
    wrong = int(np.sum(np.isnan(ratios) | (ratios == np.inf)))
    if wrong or np.all(ratios == -np.inf):
        what = f"NaN or infinite at {wrong}" if wrong else "zero at all"
        raise ValueError(
            f"the density of the target is {what} of {len(ratios)} draws from the posterior, so "
            "that they have no importance weights. Look for log(0), logarithms of negative numbers "
            "and overflow in the loss, or use coordinates in which every value is possible."
        )


@eqx.filter_jit
def _log_densities(
    posterior: Any, target: Any, prior: AbstractPrior, draws: PyTree
) -> tuple[Float[Array, " S"], Float[Array, " S"], Float[Array, " S"]]:
    """log p, log q, and the size of what they are sums of."""

    def one(theta: PyTree) -> tuple[Array, Array, Array]:
        prior_part, loss = -prior.energy(theta), target.total(theta)
        log_q = posterior.log_prob(theta)
        return prior_part - loss, log_q, jnp.abs(prior_part) + jnp.abs(loss) + jnp.abs(log_q)

    return jax.lax.map(one, draws)
