"""Merging schemes by name: each a choice of q_t and p_0, and then their product as in `merge`.

Where no factor has any precision, nothing is known of an entry (a blank pixel, a dead unit): it
keeps the plain average of the parameters, or the base.
"""

import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import is_concrete, require_finite
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.isotropic import IsotropicGaussian
from bayesmerge.lora import warn_of_factors
from bayesmerge.merging import Weights, require_feasible
from bayesmerge.points import Factor, Named, multiplied
from bayesmerge.tasks import as_weights, matched, named

ONE = Named("one", 1.0)


def average(params: Any, weights: Weights) -> IsotropicGaussian:
    r"""Simple averaging, $\bar\theta = \sum_t \alpha_t\theta_t$: q_t = N(θ_t, I), p_0 = N(0, I).

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `weights`: α, as in `merge`.

    **Returns** the merged posterior N(θ̄, I); its `mode()` is θ̄.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> bm.schemes.average([jnp.array([0.0, 2.0]), jnp.array([4.0, 2.0])], [0.5, 0.5]).mode()
    Array([2., 2.], dtype=float32)

    ```

    Source: FP equations 2 and 9; GM §2 (model soups, Wortsman et al. 2022).
    """
    names, points = _points(params)
    alpha = as_weights(weights, names)
    warn_of_factors(_values(points), alpha)
    return _with_precisionNamed(points, alpha)


def task_arithmetic(params: Any, weights: Weights, base: PyTree) -> IsotropicGaussian:
    r"""Task arithmetic, $\theta_0 + \sum_t \alpha_t(\theta_t - \theta_0)$.

    q_t = N(θ_t, I) and p_0 = N(θ_0, I).

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `weights`: α, as in `merge`.
    - `base`: θ_0, the model that the θ_t were fine-tuned from.

    **Returns** the merged posterior; its `mode()` is the merged model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> base = jnp.array([1.0, 1.0])
    >>> theta = [jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0])]
    >>> bm.schemes.task_arithmetic(theta, [1.0, 0.5], base).mode()
    Array([2., 2.], dtype=float32)

    ```

    Source: FP equation 3; GM §2 (Ilharco et al. 2023).
    """
    names, points = _points(params)
    alpha = as_weights(weights, names)
    points = [*points, Named("base", base)]
    exponents = _with_gamma(alpha)
    warn_of_factors(_values(points), exponents)
    return _with_precisionNamed(points, exponents)


def fisher_average(params: Any, fishers: Any, weights: Weights) -> AbstractGaussian:
    r"""Fisher averaging, $\sum_t \alpha_t \bar F^{-1} F_t\theta_t$, $\bar F = \sum_t \alpha_t F_t$.

    q_t = N(θ_t, F_t⁻¹) and no prior.

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `fishers`: F_t ≥ 0, likewise: pytrees shaped as θ (diagonal), matrices (P, P), or scalars.
      Entries of which no task knows anything, F_t = 0 for all, keep the plain average
      Σα_tθ_t/Σα_t, with next to no precision (2⁻⁶³ in float32); so do the directions in which all
      matrices are singular, with the cube root of the machine epsilon in units of the others.
    - `weights`: α, as in `merge`.

    **Returns** the merged posterior; its `mode()` is the merged model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> theta = [jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0])]
    >>> fisher = [jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])]
    >>> bm.schemes.fisher_average(theta, fisher, [0.5, 0.5]).mode()
    Array([0.5 , 0.25], dtype=float32)

    ```

    Source: GM §2 and equation 10 with H_0 = 0 (Matena & Raffel 2022).
    """
    names, points = _points(params)
    alpha = as_weights(weights, names)
    precisions = _named("fishers", fishers, names)
    warn_of_factors(_values(points), alpha)
    merge = functools.partial(_weighted, points, precisions)
    return _feasible(merge, alpha)


def hessian_weighted(
    params: Any, precisions: Any, weights: Weights, prior: AbstractGaussian | None = None
) -> AbstractGaussian:
    r"""Hessian-weighted merging, $(\sum_t\alpha_t H_t)^{-1}\sum_t \alpha_t H_t\theta_t$.

    q_t = N(θ_t, H_t⁻¹) where H_t is the precision of q_t itself, prior included. With `prior`
    N(θ_0, H_0⁻¹) it is (γH_0 + Σα_tH_t)⁻¹(γH_0θ_0 + Σα_tH_tθ_t) (misprint 11).

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `precisions`: H_t, likewise: pytrees shaped as θ (diagonal), matrices (P, P), or scalars.
      What neither they nor the prior know anything of keeps the plain average, as in
      `fisher_average`.
    - `weights`: α, as in `merge`.
    - `prior`: p_0, or `None`.

    **Returns** the merged posterior; its `mode()` is the merged model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> theta = [jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0])]
    >>> H = [jnp.array([[4.0, 0.0], [0.0, 4.0]]), jnp.array([[4.0, 0.0], [0.0, 28.0]])]
    >>> bm.schemes.hessian_weighted(theta, H, [0.5, 0.5]).mode()
    Array([0.5  , 0.875], dtype=float32)

    ```

    Source: FP equation 10.
    """
    names, points = _points(params)
    alpha = as_weights(weights, names)
    matrices = _named("precisions", precisions, names)
    if prior is not None and not isinstance(prior, AbstractGaussian):
        raise TypeError(
            f"prior is a {type(prior).__name__}, and it must be a Gaussian. `merge` takes priors "
            "of other kinds, with posteriors such as those of `laplace`."
        )
    if prior is not None:
        prior = require_finite(prior, "prior")
    warn_of_factors(_values(points), alpha)
    return _feasible(functools.partial(_weighted, points, matrices, prior=prior), alpha, prior)


def gradient_matching(
    params: Any, curvatures: Any, weights: Weights, base: PyTree, base_precision: Any
) -> AbstractGaussian:
    r"""Gradient-matching merging (GM-10),
    $\theta_0 + \sum_t\alpha_t \bar H^{-1}(H_0 + H_t)(\theta_t - \theta_0)$,
    $\bar H = H_0 + \sum_t\alpha_t H_t$.

    p_0 = N(θ_0, H_0⁻¹) and q_t = N(θ_t, (H_0 + H_t)⁻¹), merged with γ = 1 − Σα.

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `curvatures`: H_t, **without** the prior, for losses that are **sums** over examples:
      pytrees shaped as θ (diagonal), matrices (P, P), or scalars.
    - `weights`: α, as in `merge`.
    - `base`, `base_precision`: θ_0 and H_0. What no precision knows anything of stays at θ_0.

    **Returns** the merged posterior; its `mode()` is the merged model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> theta, H = [jnp.array([1.0]), jnp.array([2.0])], [jnp.array([1.0]), jnp.array([3.0])]
    >>> base, H_0 = jnp.array([0.0]), jnp.array([1.0])
    >>> bm.schemes.gradient_matching(theta, H, [1.0, 1.0], base, H_0).mode()
    Array([2.], dtype=float32)

    ```

    Source: GM equation 10; GMA equation 18 and Theorem 1.
    """
    names, points = _points(params)
    alpha = as_weights(weights, names)
    precisions = [*_named("curvatures", curvatures, names), Named("base_precision", base_precision)]
    points = [*points, Named("base", base)]
    warn_of_factors(_values(points), _with_gamma(alpha))
    return _feasible(functools.partial(_matched, points, precisions), alpha, base)


def task_removal(
    params: PyTree,
    curvature: Any,
    base: PyTree,
    *,
    tuning_precision: Any,
    remaining_precision: Any,
    weight: float = 1.0,
) -> AbstractGaussian:
    r"""Removal of a task by fine-tuning on it (GMA-13),
    $\theta_0 - \alpha_t \bar H_{\setminus t}^{-1}(H_0 + H_t)(\theta_t - \theta_0)$.

    q_0 / (q_t/p_t)^α with q_0 = N(θ_0, (H̄_∖t + α_tH_t)⁻¹), p_t = N(θ_0, H_0⁻¹) and
    q_t = N(θ_t, (H_0 + H_t)⁻¹). With identities for all precisions but H_t = 0 it is the negation
    of task arithmetic, θ_0 − α_t(θ_t − θ_0).

    - `params`: θ_t, the base model fine-tuned on what is to be removed,
      argmin ℓ_t(θ) + ½‖θ − θ_0‖²_{H_0}.
    - `curvature`: H_t, **without** a prior, for a loss that is a **sum** over examples: a pytree
      shaped as θ (diagonal), a matrix (P, P), or a scalar.
    - `base`: θ_0, trained on all data.
    - `tuning_precision`: H_0.
    - `remaining_precision`: H̄_∖t = δI + ∇²ℓ_∖t(θ_0), the precision of the base without the task.
    - `weight`: α_t.

    **Returns** N(θ̂_∖t, H̄_∖t⁻¹); its `mode()` is the model without the task.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> bm.schemes.task_removal(
    ...     jnp.array([2.0]), jnp.array([3.0]), jnp.array([1.0]),
    ...     tuning_precision=jnp.array([1.0]), remaining_precision=jnp.array([4.0]),
    ... ).mode()
    Array([0.], dtype=float32)

    ```

    Source: GMA equation 13.
    """
    alpha = require_finite(jnp.asarray(weight, float), "weight")
    if alpha.ndim:
        raise ValueError(f"weight has shape {alpha.shape}, and it is one number.")
    points = [Named("params", params), Named("base", base)]
    precisions = [
        Named("curvature", curvature),
        Named("tuning_precision", tuning_precision),
        Named("remaining_precision", remaining_precision),
    ]
    factors = [Factor(1, 0), Factor(0, 0), Factor(1, 1), Factor(0, 1), Factor(1, 2)]
    exponents = jnp.stack([alpha, -alpha, alpha, -alpha, jnp.ones_like(alpha)])
    shares = jnp.array([0.0, 1.0])
    signed = ("curvature", "remaining_precision")
    return multiplied(points, precisions, factors, exponents, shares, signed=signed)


def _points(params: Any) -> tuple[tuple[str, ...], list[Named]]:
    names, thetas = named(params, "params")
    pairs = zip(names, thetas, strict=True)
    return names, [Named(f"params['{name}']", theta) for name, theta in pairs]


def _named(what: str, values: Any, names: tuple[str, ...]) -> list[Named]:
    pairs = zip(names, matched(values, names, what), strict=True)
    return [Named(f"{what}['{name}']", value) for name, value in pairs]


def _values(points: list[Named]) -> list[PyTree]:
    return [point.value for point in points]


def _with_gamma(alpha: Float[Array, "*A T"]) -> Float[Array, "*A T+1"]:
    """α and γ = 1 − Σα."""
    return jnp.concatenate([alpha, _gamma(alpha)[..., None]], axis=-1)


def _gamma(alpha: Float[Array, "*A T"]) -> Float[Array, "*A"]:
    """1 − Σα, and 0 where it is so but for rounding."""
    gamma = 1 - jnp.sum(alpha, -1)
    rounding = 8 * jnp.finfo(alpha.dtype).eps * jnp.sum(jnp.abs(alpha), -1)
    return jnp.where(jnp.abs(gamma) <= rounding, 0, gamma)


def _average(alpha: Float[Array, "*A T"]) -> Float[Array, "*A T"]:
    """The share of each task in the plain average."""
    return alpha / jnp.sum(alpha, axis=-1, keepdims=True)


def _with_precisionNamed(points: list[Named], exponents: Float[Array, "*A F"]) -> IsotropicGaussian:
    """N(Σe_fθ_f, I)."""
    factors = [Factor(i, 0) for i in range(len(points))]
    merged = multiplied(points, [ONE], factors, exponents, jnp.zeros_like(exponents))
    return eqx.tree_at(lambda q: q.precision.value, merged, jnp.ones_like(merged.precision.value))


def _weighted(
    points: list[Named],
    precisions: list[Named],
    alpha: Float[Array, "*A T"],
    prior: AbstractGaussian | None = None,
) -> AbstractGaussian:
    """p_0^γ Π N(θ_t, H_t⁻¹)^{α_t}."""
    factors = [Factor(t, t) for t in range(len(points))]
    power = None if prior is None else _gamma(alpha)
    return multiplied(points, precisions, factors, alpha, _average(alpha), prior, power)


def _matched(
    points: list[Named], precisions: list[Named], alpha: Float[Array, "*A T"]
) -> AbstractGaussian:
    """p_0^γ Π N(θ_t, (H_0 + H_t)⁻¹)^{α_t}, with θ_0 and H_0 last."""
    base = len(points) - 1
    factors = [Factor(t, t) for t in range(base)] + [Factor(t, base) for t in range(base + 1)]
    exponents = jnp.concatenate([alpha, _with_gamma(alpha)], axis=-1)
    shares = jnp.zeros((*alpha.shape[:-1], base + 1)).at[..., -1].set(1)
    signed = [p.name for p in precisions[:-1]]
    return multiplied(points, precisions, factors, exponents, shares, signed=signed)


def _feasible(merge: Any, alpha: Float[Array, "*A T"], prior: Any = None) -> AbstractGaussian:
    merged = merge(alpha)
    if is_concrete((merged, alpha)):
        require_feasible(merged, merge, alpha, prior)
    return merged
