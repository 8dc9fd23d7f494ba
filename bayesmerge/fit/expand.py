"""The loss near a point as a Gaussian factor: the surrogate ℓ̂ of GM-9 and FP-8."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from bayesmerge.families.checks import require_finite
from bayesmerge.families.gaussian import AbstractGaussian, gaussian
from bayesmerge.families.layout import as_arrays
from bayesmerge.families.precision import (
    AbstractPrecision,
    AbstractStructure,
    Structure,
    as_structure,
)
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind, precision_of
from bayesmerge.fit.optimise import require_target


def expand(
    target: AbstractTarget,
    params: PyTree,
    *,
    structure: Structure = "full",
    curvature: Kind | None = None,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
    block_size: int | None = None,
) -> AbstractGaussian:
    r"""The loss around any point as a factor, $e^{-\hat\ell(\theta)}$ with
    $\hat\ell(\theta) = \ell(\bar\theta) + \nabla\ell(\bar\theta)^\top(\theta-\bar\theta)
    + \tfrac12\|\theta-\bar\theta\|^2_{H}$.

    Where `laplace` looks for the mode first, `expand` stays where it is told. So

    - `prior * expand(target, θ)` has its mode one Newton step from θ towards that of the target;
    - `remove(q, expand(part, q.mode()))` removes data without fine-tuning on them (GMA §1.4);
    - `merge([prior * expand(target, merged) for target in targets], weights, prior)` expands every
      task again at a merged model, and repeated converges to joint training (GMA §1.5).

    - `target`: ℓ.
    - `params`: θ̄, any point.
    - `structure`, `curvature`: of H, as in `laplace`.
    - `num_samples`, `key`, `block_size`: as in `bayesmerge.curvature`.

    **Returns** a Gaussian factor **without** a prior, with precision H and linear term
    Hθ̄ − ∇ℓ(θ̄). It is improper where the data leave θ undetermined, or H is indefinite.

    **Raises** `ValueError` for a loss that is not per example, or not finite at `params`.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> target = bm.Target(lambda theta, y: jnp.cosh(theta - y), jnp.array([0.0, 1.0]))
    >>> theta = jnp.array(3.0)
    >>> for _ in range(6):
    ...     theta = bm.expand(target, theta).mode()
    >>> theta.round(4)
    Array(0.5, dtype=float32)

    ```

    Source: GM equation 9; FP equations 4 and 8.
    """
    require_target(target)
    params = require_finite(as_arrays(params, "params")[0], "params")
    target.check(params)
    kind: Kind = curvature or ("ggn" if target.has_model else "hessian")
    look = _expand if target.is_streamed else _expand_compiled
    factor = look(target, params, kind, as_structure(structure), num_samples, key, block_size)
    return require_finite(factor, "the gradient and curvature of the loss at params")


def _expand(
    target: AbstractTarget,
    params: PyTree,
    kind: Kind,
    structure: AbstractStructure,
    num_samples: int | None,
    key: PRNGKeyArray | None,
    block_size: int | None,
) -> AbstractGaussian:
    H = precision_of(
        target, params, kind, structure, num_samples=num_samples, key=key, block_size=block_size
    )
    _, gradient = target.value_and_gradient(params)
    return quadratic(params, gradient, H)


_expand_compiled = eqx.filter_jit(_expand)


def quadratic(at: PyTree, gradient: PyTree, H: AbstractPrecision) -> AbstractGaussian:
    """exp(−gᵀ(θ − θ̄) − ½‖θ − θ̄‖²_H)."""
    return gaussian(jax.tree.map(jnp.subtract, H.multiply(at), gradient), H)
