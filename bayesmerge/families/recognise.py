"""Which Gaussian a log-density is, where it is one."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bayesmerge.families.gaussian import gaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import DensePrecision, DiagonalPrecision

LogDensity: TypeAlias = Callable[[Any], Array]

MOST_PARAMETERS = 4096
"""Beyond which no matrix is written out to find a Gaussian that is not diagonal."""

REACH = (0.3, 1.0, 3.0, 10.0)
"""Standard deviations over which the score is compared with a straight line."""


def gaussian_of(log_density: LogDensity, layout: Layout) -> Any:
    r"""The Gaussian with $\log q(\theta)$ = `log_density` up to a constant, or `None`.

    A density is Gaussian where its score is affine, $\nabla\log q(\theta) = \eta - \Lambda\theta$:
    that is tried at random points up to ten standard deviations away, to half the digits. η is the
    score at zero, −Λ its derivative there.

    - `log_density`: log q, a JAX function of θ. Where it is a pytree (`equinox.Partial`, a method
      of a module), another one that differs in its arrays costs no compilation.
    - `layout`: of θ.

    **Returns** a `DiagonalGaussian` where Λ is diagonal, a `FullGaussian` for another Λ of at most
    4096 parameters, or `None`, also where Λ has a diagonal that is not positive.
    """
    linear, diagonals = _at_zero(log_density, layout)
    diagonal = diagonals[0]
    is_diagonal = np.allclose(diagonals[0], diagonals[1], rtol=_tolerance(linear), atol=0)
    if is_diagonal:
        precision = diagonal
    elif layout.size <= MOST_PARAMETERS:
        precision = _matrix_at_zero(log_density, layout)
        diagonal = jnp.diag(precision)
    else:
        return None
    if not np.all(diagonal > 0) or not _is_affine(log_density, layout, linear, precision):
        return None
    eta = layout.unravel(linear)
    if is_diagonal:
        return gaussian(eta, DiagonalPrecision(layout.unravel(precision), layout))
    return gaussian(eta, DensePrecision(precision, layout))


@eqx.filter_jit
def _at_zero(
    log_density: LogDensity, layout: Layout
) -> tuple[Float[Array, " P"], Float[Array, "2 P"]]:
    """η, and Λv / v for two random vectors v: twice the diagonal, where Λ is diagonal."""
    zero = jnp.zeros(layout.size, jnp.result_type(*layout.dtypes))
    linear, push = jax.linearize(_score(log_density, layout), zero)
    probes = jax.random.uniform(jax.random.key(0), (2, layout.size), zero.dtype, 0.5, 1.5)
    return linear, -jax.vmap(push)(probes) / probes


@eqx.filter_jit
def _matrix_at_zero(log_density: LogDensity, layout: Layout) -> Float[Array, "P P"]:
    zero = jnp.zeros(layout.size, jnp.result_type(*layout.dtypes))
    precision = -jax.jacfwd(_score(log_density, layout))(zero)
    return 0.5 * (precision + precision.T)


@eqx.filter_jit
def _is_affine(
    log_density: LogDensity,
    layout: Layout,
    linear: Float[Array, " P"],
    precision: Float[Array, "..."],
) -> Bool[Array, ""]:
    """Whether the score is η − Λθ at random θ, as far as rounding of its terms allows."""
    score = _score(log_density, layout)
    times = jnp.matmul if precision.ndim == 2 else jnp.multiply
    variance = 1 / (jnp.diag(precision) if precision.ndim == 2 else precision)

    def error(reach: Array, key: Array) -> Array:
        noise = jax.random.normal(key, variance.shape, variance.dtype)
        theta = reach * jnp.sqrt(variance) * noise
        gap = jnp.abs(score(theta) - (linear - times(precision, theta)))
        return jnp.max(gap / (times(jnp.abs(precision), jnp.abs(theta)) + jnp.abs(linear)))

    reaches = jnp.repeat(jnp.asarray(REACH, linear.dtype), 2)
    errors = jax.vmap(error)(reaches, jax.random.split(jax.random.key(1), reaches.size))
    return jnp.all(errors < _tolerance(linear))


def _score(log_density: LogDensity, layout: Layout) -> Callable[[Array], Array]:
    return jax.grad(lambda vector: log_density(layout.unravel(vector)))


def _tolerance(like: Array) -> float:
    return 10 * float(jnp.finfo(like.dtype).eps) ** 0.5
