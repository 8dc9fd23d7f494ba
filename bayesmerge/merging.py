"""Merging models is multiplying posteriors: p_α(θ) ∝ p_0(θ)^γ Π_t q_t(θ)^{α_t} (FP-5).

`merge` is that line, and `remove` undoes a part of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bayesmerge.families.base import AbstractExponentialFamily, AbstractPosterior
from bayesmerge.families.checks import is_concrete
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.tilted import product, tilt
from bayesmerge.mixtures.product import Product
from bayesmerge.tasks import as_weights, named

Q = TypeVar("Q", bound=AbstractExponentialFamily)
Posteriors: TypeAlias = Sequence[Any] | Mapping[str, Any] | AbstractExponentialFamily
Weights: TypeAlias = ArrayLike | Sequence[Any] | Mapping[str, Any]


def merge(posteriors: Posteriors, weights: Weights, prior: Any = None) -> Any:
    r"""Multiply task posteriors, each to the power of its weight.

    $$p_\alpha(\theta) \propto p_0(\theta)^\gamma \prod_t q_t(\theta)^{\alpha_t}, \qquad
    \gamma = 1 - \sum_t \alpha_t,$$

    which is addition of natural parameters, λ_α = γλ_0 + Σ α_t λ_t. The merged model is
    `merge(…).mode()`.

    - `posteriors`: q_t, **with** the prior in them; a sequence of T, a mapping from task names, or
      a batch of T (such as a vmapped `laplace` returns).
      Isotropic, diagonal and full Gaussians may be mixed.
      With a `Mixture` among them the result is a lazy `Product`, and its mode is found by EM.
    - `weights`: α, shape (T,), or (A, T) for a batch of A merged posteriors; with named tasks also
      a mapping from the same names to scalars or to arrays (A,). Negative weights and Σα > 1 are
      legitimate while the result stays proper.
    - `prior`: p_0. `None` is a flat prior (γ plays no role): right when Σα = 1. Where it is not
      Gaussian, a target whose loss is −log p_0 (as that of `Target.from_numpyro`): it stays exact,
      and its expansion at the mode of q_t is divided out of each q_t.

    **Returns** the merged posterior, a batch of A if the weights are: of the same family, a
    `Product` of mixtures, or with an exact prior a `bayesmerge.fit.Tilted`.

    **Raises** `ValueError` for weights of another length, not finite, or (for a negative weight or
    γ) so far out that the result is improper: then with the smallest eigenvalue or entry of the
    precision and the largest feasible scale of α. Under `jit` that last error comes from `mode()`.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> p0 = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> q = {"a": bm.IsotropicGaussian.from_mean_precision(jnp.array(1.0), 3.0),
    ...      "b": bm.IsotropicGaussian.from_mean_precision(jnp.array(2.0), 5.0)}
    >>> bm.merge(q, {"a": 1.0, "b": 1.0}, prior=p0).mode()
    Array(1.8571428, dtype=float32)

    ```

    Source: FP equation 5; GMA equation 20 (Theorem 1) and §1.6.
    """
    names, qs = named(posteriors, "posteriors")
    alpha = as_weights(weights, names)
    for q in (*qs, *([] if prior is None or isinstance(prior, AbstractTarget) else [prior])):
        if not isinstance(q, AbstractPosterior):
            raise TypeError(
                f"posteriors and prior must be posteriors, such as those of `laplace`, and one is "
                f"a {type(q).__name__}. To merge bare parameters use `average`, "
                "`task_arithmetic`, `fisher_average` or `gradient_matching`."
            )
    for q in qs[1:]:
        qs[0].layout.require_same(q.layout, "the posteriors to merge")
    if isinstance(prior, AbstractTarget):
        prior.check(qs[0].layout.unravel(jnp.zeros(qs[0].layout.size)))
        return tilt(qs, alpha, prior)
    if prior is not None:
        prior.layout.require_same(qs[0].layout, "prior and posteriors")
    if not all(isinstance(q, AbstractExponentialFamily) for q in (*qs, prior) if q is not None):
        return _lazy_product(qs, alpha, prior)
    merged = _weighted_product(qs, alpha, prior)
    if is_concrete((merged, alpha)):
        require_feasible(merged, lambda a: _weighted_product(qs, a, prior), alpha, prior)
    return merged


def remove(posterior: Q, part: Any, weight: float = 1.0) -> Q:
    """The posterior without the data of `part`: posterior / part^weight.

    - `posterior`: p(θ | all data).
    - `part`: the likelihood factor of the data to remove, **without** the prior:
      `expand(part, posterior.mode())`, `laplace(…, include_prior=False)`, or q_t / p_0.
    - `weight`: how much of it to remove; 1 removes all.

    **Returns** the quotient; improper, and an error when asked for its mode, if more is taken away
    than there was.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> all_flips = bm.Beta.from_concentrations(6.0, 4.0)
    >>> some_flips = bm.Beta.from_concentrations(3.0, 2.0)  # two heads and a tail, flat prior
    >>> bm.remove(all_flips, some_flips).mode()
    Array(0.6, dtype=float32)

    ```

    **Raises** `TypeError` where `part` is not a factor.

    Source: GMA equations 13 and 14 as quotients of posteriors.
    """
    if not isinstance(part, AbstractExponentialFamily):
        raise TypeError(
            f"part is a {type(part).__name__}, and it must be a likelihood factor, such as "
            "`expand(target, posterior.mode())` of a target that holds the data to remove."
        )
    return posterior / part**weight


@eqx.filter_jit
def _weighted_product(qs: list[Any], alpha: Array, prior: Any) -> Any:
    if alpha.ndim == 2:
        return jax.vmap(lambda a: _product(qs, a, prior))(alpha)
    return _product(qs, alpha, prior)


def _product(qs: list[Any], alpha: Float[Array, " T"], prior: Any) -> Any:
    merged = product(qs, alpha)
    return merged if prior is None else prior ** (1 - jnp.sum(alpha)) * merged


def _lazy_product(qs: list[Any], alpha: Array, prior: Any) -> Product:
    if prior is None:
        return Product(qs, alpha)
    gamma = 1 - jnp.sum(alpha, axis=-1, keepdims=True)
    gamma = jnp.where(jnp.abs(gamma) < 1e-6, 0, gamma)
    return Product([prior, *qs], jnp.concatenate([gamma, alpha], axis=-1))


def require_feasible(
    merged: Any, again: Callable[[Array], Any], alpha: Float[Array, "*A T"], prior: Any
) -> None:
    """An error that names the first weighting α whose product, `again(α)`, is improper."""
    gamma = 1 - jnp.sum(alpha, -1)
    takes_away = jnp.any(alpha < 0, -1) | ((gamma < -1e-6) & (prior is not None))
    if not jnp.any(takes_away):
        return
    proper = merged.is_proper()
    proper = jnp.all(proper, axis=tuple(range(alpha.ndim - 1, proper.ndim)))
    improper = jnp.atleast_1d(takes_away & ~proper)
    if not jnp.any(improper):
        return
    row = int(jnp.argmax(improper))
    first = jnp.atleast_2d(alpha)[row]
    shown = [float(f"{a:.6g}") for a in first.tolist()]
    which = f"weights {shown}" + (f" (row {row})" if alpha.ndim == 2 else "")
    raise ValueError(
        f"{which} take away more than there is: the merged posterior is improper, "
        f"{_smallest(again(first))}. {_remedy(again, first, prior)}"
    )


def _smallest(merged: Any) -> str:
    if isinstance(merged, AbstractGaussian):
        kind = "eigenvalue" if isinstance(merged, FullGaussian) else "entry"
        smallest = float(jnp.min(merged.smallest_precision()))
        return f"the smallest {kind} of its precision is {smallest:.6g}"
    smallest = min(jnp.min(leaf).item() for leaf in jax.tree.leaves(merged))
    return f"its smallest natural parameter is {smallest:.6g}"


def _remedy(again: Callable[[Array], Any], alpha: Array, prior: Any) -> str:
    if prior is None:
        return "Without a prior no scaling of the weights helps; pass `prior`."
    scale = feasible_scale(again, alpha)
    if scale == 0:
        return "The prior is improper itself: use a proper one, or weights ≥ 0 that sum to 1."
    return f"With this prior, scaling all weights by less than {scale:.6g} keeps it proper."


def feasible_scale(again: Callable[[Array], Any], alpha: Float[Array, " T"]) -> float:
    """The largest s ≤ 1 for which p_0^{1−sΣα} Π q_t^{sα_t}, `again(sα)`, is proper, found by
    bisection: the natural parameters are affine in s and proper ones form a convex set."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        proper = bool(jnp.all(again(middle * alpha).is_proper()))
        low, high = (middle, high) if proper else (low, middle)
    return low
