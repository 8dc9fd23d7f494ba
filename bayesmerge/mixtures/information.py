r"""The curvature of a product of Gaussian mixtures: complete minus missing information,

$-\nabla^2 \sum_t \alpha_t \log q_t = \sum_{t,k} \alpha_t \hat\pi_{tk} \Lambda_{tk} -
\sum_t \alpha_t \mathrm{Cov}_{\hat\pi_t}[\nabla \log q_{tk}]$ (Louis 1982), the precision of the
minorizer less the disagreement of the components.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import require
from bayesmerge.families.gaussian import AbstractGaussian, from_mean_precision, gaussian
from bayesmerge.families.precision import Diagonal, Structure, as_structure, join
from bayesmerge.families.precision.rows import Rows
from bayesmerge.mixtures.climb import is_single, minorizer, repeat, split


def laplace_at(
    factors: list[Any], exponents: Float[Array, " T"], theta: PyTree, structure: Structure | None
) -> Any:
    """N(θ, H⁻¹), H the negative Hessian of log Π q_t^{α_t} at θ, or its diagonal."""
    for q in factors:
        components = q if is_single(q) else q.components
        if not isinstance(components, AbstractGaussian):
            raise TypeError(
                f"a factor has components of family {type(components).__name__}, and the Laplace "
                "approximation is made of products of Gaussians and mixtures of Gaussians. Draw "
                "with `sample` instead."
            )
    shares = [jnp.ones(1) if is_single(q) else q.responsibilities(theta) for q in factors]
    weights = repeat(factors, exponents) * jnp.concatenate(shares)
    peak = minorizer(factors, weights)
    own = peak.precision.structure
    entries = join(own, Diagonal()) if structure is None else as_structure(structure)
    rows = jnp.concatenate(
        [
            _deviations(q, w, theta)
            for q, w in zip(factors, split(factors, weights), strict=True)
            if not is_single(q)
        ]
    )
    layout = peak.layout
    missing = entries.of_matrix(Rows(rows, layout), layout)
    precision = entries.convert(peak.precision).plus(missing, -1.0)
    return _require_maximum(gaussian(precision.multiply(theta), precision), theta)


def _require_maximum(q: Any, theta: PyTree) -> Any:
    """N(θ, Λ⁻¹) with the precision of q, or an error where it is not positive definite."""
    message = (
        "the curvature is not positive definite at params, so these are no maximum: take those of "
        "`maxima().distinct()`."
    )
    q = require(
        q, q.is_proper(), message, lambda: f"Smallest: {float(q.smallest_precision()):.6g}."
    )
    return from_mean_precision(theta, q.precision)


def _deviations(mixture: Any, weights: Float[Array, " K"], theta: PyTree) -> Float[Array, "K P"]:
    """√w_k (∇log q_k − Σ_j ŵ_j ∇log q_j), ŵ = w/Σw."""

    def gradient(q: AbstractGaussian) -> Float[Array, " P"]:
        slope = jax.tree.map(jnp.subtract, q.linear, q.multiply(theta))
        return q.layout.ravel(slope)

    gradients = jax.vmap(gradient)(mixture.components)
    total = jnp.sum(weights)
    mean = weights @ gradients / jnp.where(total > 0, total, 1)
    return jnp.sqrt(weights)[:, None] * (gradients - mean[None])
