"""Combinations of logarithms and Γ functions in which large numbers cancel, with the cancellation
done on paper.

With Stirling's series, log Γ(a) = (a − ½) log a − a + ½ log 2π + r(a) and
ψ(a) = log a − 1/(2a) − s(a), where r and s vanish as a grows.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LARGE = 16.0
NEAR = 0.1


def log_peak(a: Array) -> Array:
    """a log a − a − log Γ(a) = ½ log a − ½ log 2π − r(a)."""
    return 0.5 * jnp.log(a) - HALF_LOG_2PI - _log_gamma_remainder(a)


def gamma_remainders(a: Array, b: Array) -> Array:
    """r(b) − r(a) + (b − a) s(a)."""
    change = (b - a) * _digamma_remainder(a)
    return _log_gamma_remainder(b) - _log_gamma_remainder(a) + change


def gamma_entropy(a: Array) -> Array:
    """log Γ(a) + (1 − a) ψ(a) + a, the entropy of a Gamma(a, 1)."""
    large = jnp.maximum(a, LARGE)
    leading = 0.5 * jnp.log(large) + HALF_LOG_2PI + 0.5 - 0.5 / large
    remainders = _log_gamma_remainder(large) + (large - 1) * _digamma_remainder(large)
    direct = gammaln(a) + (1 - a) * digamma(a) + a
    return jnp.where(a < LARGE, direct, leading + remainders)


def excess(x: Array, y: Array) -> Array:
    """x/y − 1 − log(x/y) ≥ 0."""
    return ratio_excess(x / y, (x - y) / y)


def ratio_excess(ratio: Array, change: Array) -> Array:
    """ρ − 1 − log ρ ≥ 0 of a ratio ρ, given ρ − 1 too: neither tells the other, ρ − 1 where ρ is
    nearly 1, and ρ where it is nearly 0.

    Near 1 by log ρ = 2 artanh s with s = (ρ − 1)/(ρ + 1).
    """
    s = jnp.where(jnp.abs(change) < NEAR, change, 0) / (2 + change)
    series = sum(s ** (2 * n) / (2 * n + 3) for n in range(8))
    return jnp.where(
        jnp.abs(change) < NEAR, s * change - 2 * s**3 * series, change - jnp.log(ratio)
    )


def log_ratio(x: Array, y: Array) -> Array:
    """log x/y, to all digits also where x is nearly y."""
    is_near = jnp.abs(x - y) < 0.5 * y
    change = jnp.where(is_near, x - y, 0) / jnp.where(is_near, y, 1)
    return jnp.where(is_near, jnp.log1p(change), jnp.log(x) - jnp.log(y))


def smaller_difference(one: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
    """x − y of two pairs (x, y) with the same difference: that of the pair with smaller terms."""
    sizes = [jnp.abs(x) + jnp.abs(y) for x, y in (one, other)]
    return jnp.where(sizes[0] < sizes[1], one[0] - one[1], other[0] - other[1])


def sum_of_others(x: Any) -> Any:
    """Σ_{j≠k} x_j along the last axis, by addition alone: Σx − x_k loses all digits where x_k is
    nearly all of it."""
    xp = np if isinstance(x, np.ndarray) else jnp
    nothing = xp.zeros_like(x[..., :1])
    before = xp.cumsum(xp.concatenate([nothing, x[..., :-1]], -1), -1)
    after = xp.cumsum(xp.concatenate([nothing, x[..., :0:-1]], -1), -1)
    return before + after[..., ::-1]


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
