"""Combinations of Γ functions in which large numbers cancel, with the cancellation done on paper.

With Stirling's series, log Γ(a) = (a − ½) log a − a + ½ log 2π + r(a) and
ψ(a) = log a − 1/(2a) − s(a), where r and s vanish as a grows.
"""

import math

import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LARGE = 16.0


def log_peak(a: Array) -> Array:
    """a log a − a − log Γ(a) = ½ log a − ½ log 2π − r(a)."""
    return 0.5 * jnp.log(a) - HALF_LOG_2PI - _log_gamma_remainder(a)


def log_gamma_divergence(a: Array, b: Array) -> Array:
    """log Γ(b) − log Γ(a) − (b − a) ψ(a), the Bregman divergence of log Γ."""
    change = b - a
    x = change / a
    leading = change * x - (b - 0.5) * log1p_excess(x)
    remainders = _log_gamma_remainder(b) - _log_gamma_remainder(a) + change * _digamma_remainder(a)
    direct = gammaln(b) - gammaln(a) - change * digamma(a)
    return jnp.where(a < LARGE, direct, leading + remainders)


def gamma_entropy(a: Array) -> Array:
    """log Γ(a) + (1 − a) ψ(a) + a, the entropy of a Gamma(a, 1)."""
    large = jnp.maximum(a, LARGE)
    leading = 0.5 * jnp.log(large) + HALF_LOG_2PI + 0.5 - 0.5 / large
    remainders = _log_gamma_remainder(large) + (large - 1) * _digamma_remainder(large)
    direct = gammaln(a) + (1 - a) * digamma(a) + a
    return jnp.where(a < LARGE, direct, leading + remainders)


def log1p_excess(x: Array) -> Array:
    """x − log(1 + x) ≥ 0."""
    return x - jnp.log1p(x)


def _log_gamma_remainder(a: Array) -> Array:
    """r(a) = 1/(12a) − 1/(360a³) + …"""
    y = 1 / jnp.maximum(a, LARGE)
    series = y / 12 - y**3 / 360 + y**5 / 1260 - y**7 / 1680 + y**9 / 1188 - y**11 * 691 / 360360
    direct = gammaln(a) - (a - 0.5) * jnp.log(a) + a - HALF_LOG_2PI
    return jnp.where(a < LARGE, direct, series)


def _digamma_remainder(a: Array) -> Array:
    """s(a) = 1/(12a²) − 1/(120a⁴) + …"""
    y = 1 / jnp.maximum(a, LARGE) ** 2
    series = y / 12 - y**2 / 120 + y**3 / 252 - y**4 / 240 + y**5 / 132 - y**6 * 691 / 32760
    direct = jnp.log(a) - 0.5 / a - digamma(a)
    return jnp.where(a < LARGE, direct, series)
