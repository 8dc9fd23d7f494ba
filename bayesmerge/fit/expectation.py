"""Expectations of a loss under a Gaussian, E_q[ℓ], E_q[∇ℓ], E_q[∇²ℓ], from samples in antithetic
pairs, and the evidence lower bound made of them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.precision import AbstractStructure
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import precision_of
from bayesmerge.fit.optimise import require_target
from bayesmerge.priors import AbstractPrior, Prior, as_prior

Estimator: TypeAlias = Literal["hessian", "ggn", "fisher", "squared_gradients", "price"]
At: TypeAlias = Callable[[PyTree], tuple[Any, Any, Any]]


class Expectation(NamedTuple):
    """E_q of a function of θ, of its gradient, and of its curvature."""

    value: Float[Array, ""]
    gradient: PyTree
    curvature: Any


def expectation(q: AbstractGaussian, mean: PyTree, deviations: PyTree, at: At) -> Expectation:
    r"""Averages over θ = m + d, d the rows of `deviations`, of the value, the gradient g and the
    curvature that `at(θ)` returns; or, where it returns no curvature, of Λdgᵀ, symmetrised: by
    Price's theorem $E_q[\nabla^2 f] = E_q[\Lambda(\theta - m)\nabla f^\top]$."""

    def one(deviation: PyTree) -> tuple[Any, Any, Any]:
        value, gradient, H = at(jax.tree.map(jnp.add, mean, deviation))
        if H is None:
            structure = q.precision.structure
            H = structure.outer(q.multiply(deviation), gradient, q.layout)
        return value, gradient, H

    first = jax.tree.map(lambda x: x[0], deviations)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, first))
    count = jax.tree.leaves(deviations)[0].shape[0]
    add = lambda sum, deviation: (jax.tree.map(jnp.add, sum, one(deviation)), None)  # noqa: E731
    total, _ = jax.lax.scan(add, zero, deviations)
    return Expectation(*jax.tree.map(lambda x: x / count, total))


def loss_at(target: AbstractTarget, kind: Estimator, structure: AbstractStructure) -> At:
    """θ ↦ ℓ(θ), ∇ℓ(θ) and the curvature of the kind, none for `"price"`."""

    def at(theta: PyTree) -> tuple[Any, Any, Any]:
        value, gradient = target.value_and_gradient(theta)
        H = None if kind == "price" else precision_of(target, theta, kind, structure)
        return value, gradient, H

    return at


def elbo(
    target: AbstractTarget,
    posterior: Any,
    prior: Prior = None,
    *,
    key: PRNGKeyArray,
    num_samples: int = 100,
) -> Float[Array, ""]:
    r"""The evidence lower bound
    $\mathrm{ELBO}(q) = E_q[-\ell(\theta) + \log p_0(\theta) - \log q(\theta)] \le
    \log\int p_0 e^{-\ell}$, which the variational posterior maximises (FP-7).

    Of use to compare posteriors of one task, however they were made.

    - `target`: ℓ, in nats.
    - `posterior`: q, any with `sample` and `log_prob`: exponential families and mixtures.
    - `prior`: p_0, of any family, or an `ExactPrior`; `None` for a flat one.
    - `key`, `num_samples`: of the draws that the expectation is estimated from.

    **Returns** a scalar, in nats.

    **Raises** `ValueError` without samples, `TypeError` for a posterior that has none to give.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import elbo
    >>> target = bm.Target(lambda theta, y: 0.5 * (theta - y) ** 2, jnp.array([1.0]))
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> q = bm.laplace(target, prior)  # exact here, so that every draw gives the evidence
    >>> elbo(target, q, prior, key=jax.random.key(0))  # −½ log 2 − ¼
    Array(-0.59657..., dtype=float32)

    ```

    Source: FP equation 7.
    """
    require_target(target)
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, and it must be at least 1.")
    if not hasattr(posterior, "sample"):
        raise TypeError(
            f"posterior is a {type(posterior).__name__}, from which there are no draws: pass an "
            "exponential family or a `Mixture`."
        )
    held = as_prior(prior)
    draws = posterior.sample(key, (num_samples,))

    if target.is_streamed:
        rows = [jax.tree.map(lambda x, s=s: x[s], draws) for s in range(num_samples)]
        return jnp.mean(jnp.stack([_log_ratio(target, posterior, held, row) for row in rows]))
    return _mean_log_ratio(target, posterior, held, draws)


def _log_ratio(
    target: AbstractTarget, posterior: Any, prior: AbstractPrior, theta: PyTree
) -> Float[Array, ""]:
    return -target.total(theta) - posterior.log_prob(theta) - prior.energy(theta)


@eqx.filter_jit
def _mean_log_ratio(
    target: AbstractTarget, posterior: Any, prior: AbstractPrior, draws: PyTree
) -> Float[Array, ""]:
    return jnp.mean(jax.lax.map(lambda d: _log_ratio(target, posterior, prior, d), draws))
