"""Merging schemes by name: each a choice of q_t and p_0, and then `merge` or `remove`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bayesmerge.arrays import as_array
from bayesmerge.families.checks import require, smallest
from bayesmerge.families.diagonal import DiagonalGaussian
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.isotropic import IsotropicGaussian
from bayesmerge.families.layout import as_arrays
from bayesmerge.merging import Weights, merge, remove
from bayesmerge.tasks import matched, named


def average(params: Any, weights: Weights) -> IsotropicGaussian:
    r"""Simple averaging, $\bar\theta = \sum_t \alpha_t\theta_t$: q_t = N(θ_t, I), p_0 = N(0, I).

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `weights`: α, as in `merge`.

    **Returns** the merged posterior N(θ̄, I); its `mode()` is θ̄.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> bm.average([jnp.array([0.0, 2.0]), jnp.array([4.0, 2.0])], [0.5, 0.5]).mode()
    Array([2., 2.], dtype=float32)

    ```

    Source: FP equations 2 and 9; GM §2 (model soups, Wortsman et al. 2022).
    """
    _, thetas = named(params, "params")
    zero = jax.tree.map(jnp.zeros_like, as_arrays(thetas[0], "params")[0])
    return task_arithmetic(params, weights, zero)


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
    >>> bm.task_arithmetic([jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0])], [1.0, 0.5], base).mode()
    Array([2., 2.], dtype=float32)

    ```

    Source: FP equation 3; GM §2 (Ilharco et al. 2023).
    """
    names, thetas = named(params, "params")
    qs = {name: _factor(theta, 1.0) for name, theta in zip(names, thetas, strict=True)}
    return merge(qs, weights, prior=_factor(base, 1.0))


def fisher_average(params: Any, fishers: Any, weights: Weights) -> AbstractGaussian:
    r"""Fisher averaging, $\sum_t \alpha_t \bar F^{-1} F_t\theta_t$, $\bar F = \sum_t \alpha_t F_t$.

    q_t = N(θ_t, F_t⁻¹) and no prior.

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `fishers`: F_t, likewise: pytrees shaped as θ (diagonal), matrices (P, P), or scalars.
      Entries may be zero for some tasks, not for all.
    - `weights`: α, as in `merge`.

    **Returns** the merged posterior; its `mode()` is the merged model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> theta = [jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0])]
    >>> fisher = [jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])]
    >>> bm.fisher_average(theta, fisher, [0.5, 0.5]).mode()
    Array([0.5 , 0.25], dtype=float32)

    ```

    Source: GM §2 and equation 10 with H_0 = 0 (Matena & Raffel 2022).
    """
    return merge(_factors(params, fishers), weights)


def hessian_weighted(
    params: Any, precisions: Any, weights: Weights, prior: AbstractGaussian | None = None
) -> AbstractGaussian:
    r"""Hessian-weighted merging, $(\sum_t\alpha_t H_t)^{-1}\sum_t \alpha_t H_t\theta_t$.

    q_t = N(θ_t, H_t⁻¹) where H_t is the precision of q_t itself, prior included. With `prior`
    N(θ_0, H_0⁻¹) it is (γH_0 + Σα_tH_t)⁻¹(γH_0θ_0 + Σα_tH_tθ_t) (misprint 11).

    - `params`: θ_t, a sequence or mapping of T parameter pytrees.
    - `precisions`: H_t, likewise: pytrees shaped as θ (diagonal), matrices (P, P), or scalars.
    - `weights`: α, as in `merge`.
    - `prior`: p_0, or `None`.

    **Returns** the merged posterior; its `mode()` is the merged model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> theta = [jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0])]
    >>> H = [jnp.array([[4.0, 0.0], [0.0, 4.0]]), jnp.array([[4.0, 0.0], [0.0, 28.0]])]
    >>> bm.hessian_weighted(theta, H, [0.5, 0.5]).mode()
    Array([0.5  , 0.875], dtype=float32)

    ```

    Source: FP equation 10.
    """
    return merge(_factors(params, precisions), weights, prior)


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
    - `base`, `base_precision`: θ_0 and H_0.

    **Returns** the merged posterior; its `mode()` is the merged model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> theta, H = [jnp.array([1.0]), jnp.array([2.0])], [jnp.array([1.0]), jnp.array([3.0])]
    >>> bm.gradient_matching(theta, H, [1.0, 1.0], jnp.array([0.0]), jnp.array([1.0])).mode()
    Array([2.], dtype=float32)

    ```

    Source: GM equation 10; GMA equation 18 and Theorem 1.
    """
    names, thetas = named(params, "params")
    hessians = matched(curvatures, names, "curvatures")
    qs = [
        _factor(theta, base_precision) * _factor(theta, H)
        for theta, H in zip(thetas, hessians, strict=True)
    ]
    return merge(dict(zip(names, qs, strict=True)), weights, _factor(base, base_precision))


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
    >>> bm.task_removal(
    ...     jnp.array([2.0]), jnp.array([3.0]), jnp.array([1.0]),
    ...     tuning_precision=jnp.array([1.0]), remaining_precision=jnp.array([4.0]),
    ... ).mode()
    Array([0.], dtype=float32)

    ```

    Source: GMA equation 13.
    """
    prior, loss = _factor(base, tuning_precision), _factor(params, curvature)
    tuned = _factor(params, tuning_precision) * loss
    there = _factor(base, remaining_precision) * _factor(base, curvature) ** weight
    return remove(there, tuned / prior, weight)


def _factor(mean: PyTree, precision: Any) -> AbstractGaussian:
    """exp(−½‖θ − mean‖²_precision), of the family that the shape of `precision` says."""
    mean, layout = as_arrays(mean, "params")
    if jax.tree_util.all_leaves([precision]):
        precision = as_array(precision, "precision", jnp.result_type(*layout.dtypes))
    shape = jnp.shape(precision) if jax.tree_util.all_leaves([precision]) else None
    family: type[IsotropicGaussian | DiagonalGaussian | FullGaussian] = DiagonalGaussian
    if shape == ():
        family = IsotropicGaussian
    elif shape == (layout.size, layout.size):
        family = FullGaussian
    flat = family.from_natural_parameters(jax.tree.map(jnp.zeros_like, mean), precision)
    return eqx.tree_at(lambda q: q.linear, flat, flat.multiply(mean))


def _factors(params: Any, precisions: Any) -> dict[str, AbstractGaussian]:
    names, thetas = named(params, "params")
    matrices = matched(precisions, names, "precisions")
    factors = {}
    for name, theta, matrix in zip(names, thetas, matrices, strict=True):
        factors[name] = factor = _factor(theta, matrix)
        _require_not_negative(name, factor)
    return factors


def _require_not_negative(name: str, factor: AbstractGaussian) -> None:
    precision = factor.precision
    diagonal = jnp.diag(precision) if isinstance(factor, FullGaussian) else precision
    least = smallest(diagonal)
    message = f"the precision or Fisher of task '{name}' must not be negative on its diagonal."
    require(least, least >= 0, message, lambda: f"Its smallest entry is {least:.6g}.")
