"""Merging models is multiplying posteriors: p_α(θ) ∝ p_0(θ)^γ Π_t q_t(θ)^{α_t} (FP-5).

`merge` is that line, and `remove` undoes a part of it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesmerge.families.base import AbstractExponentialFamily, AbstractPosterior
from bayesmerge.families.checks import all_finite, is_concrete, require, require_finite, smallest
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.fit.tilted import likelihood_factor, product, tilt
from bayesmerge.mixtures.product import AbstractLazyPosterior, Product
from bayesmerge.origins import Origin, differ, is_flat, origin_of, parts_of, remember
from bayesmerge.priors import Prior, as_prior
from bayesmerge.tasks import as_weights, named

Q = TypeVar("Q", bound=AbstractPosterior)
Posteriors: TypeAlias = Any
"""A sequence of T posteriors, a mapping or pandas Series from task names, or a batch."""
Weights: TypeAlias = Any
"""An array, (T,) or (A, T), or what labels it with the tasks: a mapping, a Series, a data frame,
a DataArray."""

ROUNDING = 2e-3
"""How far weights that should sum to one may be from it without a warning: ⅓ written as 0.333."""


def merge(posteriors: Posteriors, weights: Weights, prior: Prior = None) -> Any:
    r"""Multiply task posteriors, each to the power of its weight.

    $$p_\alpha(\theta) \propto p_0(\theta)^\gamma \prod_t q_t(\theta)^{\alpha_t}, \qquad
    \gamma = 1 - \sum_t \alpha_t,$$

    which is addition of natural parameters, λ_α = γλ_0 + Σ α_t λ_t. The merged model is
    `merge(…).mode()`.

    - `posteriors`: q_t, **with** the prior in them; a sequence of T, a mapping from task names, or
      a batch of T (such as a vmapped `laplace` returns).
      Gaussians of all structures may be mixed.
      With a `Mixture` among them the result is a lazy `Product`, and its mode is found by EM.
    - `weights`: α, shape (T,), or (A, T) for a batch of A merged posteriors; with named tasks also
      what has the same names in any order: a mapping to scalars or to arrays (A,), a Series or
      data frame, a DataArray. Negative weights and Σα > 1 are legitimate while the result stays
      proper.
    - `prior`: p_0. `None` is a flat prior (γ plays no role): right when Σα = 1. Where it is not
      Gaussian, an `ExactPrior` (as `bayesmerge.numpyro.prior` makes): it stays exact,
      and its expansion at the mode of q_t is divided out of each q_t.

    **Returns** the merged posterior, a batch of A if the weights are: of the same family, a
    `Product` of mixtures, or with an exact prior a `bayesmerge.fit.Tilted`.

    **Warns** where posteriors that were fitted in this process are known to hold a prior that
    `prior` leaves counted another number of times than once.

    **Raises** `ValueError` for posteriors or weights that are not finite, weights of another
    length, or (for a negative weight or γ) so far out that the result is improper: then with the
    smallest eigenvalue or entry of the precision and the largest feasible scale of α. Under
    `jit` that last error comes from `mode()`.

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
    merged = combined(posteriors, weights, prior)
    origin = _origin(posteriors, names, qs, alpha, prior)
    warn_of_priors(posteriors, qs, alpha, prior)
    return remember(merged, origin)


def combined(posteriors: Posteriors, weights: Weights, prior: Any = None) -> Any:
    """`merge`, without a warning that concerns the prior, and with nothing remembered."""
    names, qs = named(posteriors, "posteriors")
    alpha = as_weights(weights, names)
    for q in qs:
        if not isinstance(q, AbstractPosterior):
            raise TypeError(
                f"posteriors must be posteriors, such as those of `laplace`, and one is a "
                f"{type(q).__name__}. To merge bare parameters use `schemes.average`, "
                "`schemes.task_arithmetic` or `schemes.fisher_average`."
            )
    for q in qs[1:]:
        qs[0].layout.require_same(q.layout, "the posteriors to merge")
    held = as_prior(prior)
    held.require_layout(qs[0].layout, "posteriors")
    if not held.is_closed:
        _require_finite_parts(names, qs, None)
        return tilt(qs, alpha, prior)
    if not all(isinstance(q, AbstractExponentialFamily) for q in (*qs, prior) if q is not None):
        _require_finite_parts(names, qs, prior)
        return _lazy_product(qs, alpha, prior)
    merged = _weighted_product(qs, alpha, prior)
    if not is_concrete((merged, alpha)):
        message = "the merged natural parameters hold NaN or infinite values."
        return require(merged, all_finite(merged), message)
    if not all_finite(merged):
        _require_finite_parts(names, qs, prior)
        raise ValueError(
            "the merged natural parameters overflow, and those of all posteriors are finite: "
            f"weights of size {float(jnp.max(jnp.abs(alpha))):.3g} are too large for "
            f"{jnp.result_type(*jax.tree.leaves(merged))}."
        )
    require_feasible(merged, lambda a: _weighted_product(qs, a, prior), alpha, prior)
    return merged


def _require_finite_parts(names: Sequence[str], qs: list[Any], prior: Any) -> None:
    """An error that names the first posterior with a NaN or an infinity in it, also where its
    weight is 0. Logarithms of weights of a mixture may be −∞."""
    named_parts = [(f"posteriors['{name}']", q) for name, q in zip(names, qs, strict=True)]
    for what, q in [*named_parts, ("prior", prior)]:
        arrays = eqx.filter(getattr(q, "components", q), eqx.is_inexact_array)
        if q is not None and is_concrete(arrays):
            require_finite(arrays, what)


def warn_of_priors(
    posteriors: Any, qs: list[Any], alpha: Float[Array, "*A T"], prior: Any, stacklevel: int = 3
) -> None:
    """A warning where posteriors of which the prior is known are merged as if they held it another
    number of times."""
    if not is_concrete((alpha, prior)):
        return
    rows, origins = np.atleast_2d(np.asarray(alpha)), _origins_of(posteriors, qs)
    holds = np.array([o is not None and o.has_prior for o in origins])
    free = np.array([o is not None and o.has_no_prior for o in origins])
    message = None
    if is_flat(prior):
        counts = rows[:, holds].sum(axis=1)
        worst = counts[np.argmax(np.abs(counts - 1))]
        if holds.any() and abs(worst - 1) > ROUNDING:
            message = (
                f"every posterior holds its prior, and without `prior` the product holds it "
                f"{worst:.4g} times, the sum of the weights. Pass the `prior` that the posteriors "
                "were fitted with, and it is counted once; or weights that sum to 1."
            )
    else:
        gamma = 1 - rows.sum(axis=1)
        worst = gamma[np.argmax(np.abs(gamma))]
        if (free & np.any(rows != 0, axis=0)).any() and abs(worst) > ROUNDING:
            message = (
                f"posteriors were fitted without a prior, and merging counts `prior` {worst:.4g} "
                "times, as if they held it. Multiply it in afterwards: `prior * merge(posteriors, "
                "weights)`; or fit them with the prior."
            )
        elif any(holds[t] and differ(origins[t].prior, prior) for t in range(len(qs))):
            message = (
                "`prior` is not the prior that the posteriors were fitted with, which thus stays "
                "in the product: pass that one. To change it multiply afterwards by new / old."
            )
    if message is not None:
        warnings.warn(message, stacklevel=stacklevel)


def _origins_of(posteriors: Any, qs: list[Any]) -> list[Any]:
    batch = origin_of(posteriors)
    return [batch or origin_of(q) for q in qs]


def _origin(
    posteriors: Any, names: tuple[str, ...], qs: list[Any], alpha: Float[Array, "*A T"], prior: Any
) -> Origin:
    """That of a merge."""
    weights = {name: alpha[..., t] for t, name in enumerate(names)}
    parts = parts_of(posteriors, names, qs)
    if prior is not None:
        return Origin(prior, parts, weights)
    origins = _origins_of(posteriors, qs)
    if not is_concrete(alpha) or any(o is None or not o.knows_prior for o in origins):
        return Origin(None, parts, weights, knows_prior=False)
    holders = [t for t, o in enumerate(origins) if o.has_prior]
    if not holders:
        return Origin(None, parts, weights)
    counts, first = np.asarray(alpha)[..., holders].sum(-1), origins[holders[0]].prior
    once = np.all(np.abs(counts - 1) <= ROUNDING)
    same = not any(differ(origins[t].prior, first) for t in holders)
    return Origin(first if once and same else None, parts, weights, knows_prior=bool(once and same))


def remove(posterior: Q, part: Any, weight: float = 1.0) -> Q:
    """The posterior without the data of `part`: posterior / part^weight.

    - `posterior`: p(θ | all data).
    - `part`: the likelihood factor of the data to remove, **without** the prior:
      `expand(part, posterior.mode())`, `laplace(…, include_prior=False)`, or q_t / p_0. Or the name
      of a task, where `merge` returned `posterior` and the merged posteriors are still in memory:
      then it is (q_t / p_0)^α_t.
    - `weight`: how much of it to remove; 1 removes all.

    **Returns** the quotient; improper, and an error when asked for its mode, if it subtracts more
    precision than the posterior has.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> all_flips = bm.Beta.from_concentrations(6.0, 4.0)
    >>> some_flips = bm.Beta.from_concentrations(3.0, 2.0)  # two heads and a tail, flat prior
    >>> bm.remove(all_flips, some_flips).mode()
    Array(0.6, dtype=float32)
    >>> p0 = bm.Beta.from_concentrations(2.0, 2.0)
    >>> coins = {"a": bm.Beta.from_concentrations(4.0, 3.0),
    ...          "b": bm.Beta.from_concentrations(2.0, 7.0)}
    >>> merged = bm.merge(coins, [1.0, 1.0], p0)
    >>> bm.remove(merged, "b").mode(), coins["a"].mode()
    (Array(0.6, dtype=float32), Array(0.6, dtype=float32))

    ```

    **Warns** where `part` and `posterior` are known to hold their prior: dividing by it takes the
    prior away.

    **Raises** `TypeError` where `part` is not a factor; `ValueError` for a name that is not known,
    and for a posterior, part or weight that is not finite.

    Source: GMA equations 13 and 14 as quotients of posteriors.
    """
    if isinstance(weight, Mapping):
        raise TypeError(
            f"weight is a {type(weight).__name__}, and it is one number, how much of `part` to "
            "remove: remove one part after the other."
        )
    exponent = jnp.asarray(weight, float)
    if is_concrete(exponent):
        require_finite(exponent, "weight")
    origin = origin_of(posterior)
    if isinstance(part, (str, int)):
        return _without_task(posterior, origin, str(part), exponent)
    if not isinstance(part, AbstractExponentialFamily):
        raise TypeError(
            f"part is a {type(part).__name__}, and it must be a likelihood factor, such as "
            "`expand(target, posterior.mode())` of a target that holds the data to remove, or the "
            "name of a task."
        )
    known = origin_of(part)
    if origin is not None and origin.has_prior and known is not None and known.has_prior:
        warnings.warn(
            "part holds its prior, and dividing by it takes the prior out of the posterior. Divide "
            "by the likelihood alone: `remove(posterior, part / prior)`, or the name of the task, "
            "`remove(merged, 'name')`.",
            stacklevel=2,
        )
    quotient = _quotient(posterior, part, exponent)
    rest = Origin(None, knows_prior=False) if origin is None else origin._replace(parts={})
    return remember(quotient, rest)


def _without_task(posterior: Any, origin: Origin | None, name: str, weight: Array) -> Any:
    """The posterior divided by (q_t / p_0)^{wα_t}."""
    if origin is None or not origin.parts:
        raise ValueError(
            f"part is the name '{name}', and the parts of this posterior are not known: they are "
            "of what `merge` returned, but not of copies, of files, or of what was computed from "
            "it. Pass the likelihood factor, e.g. `remove(merged, q['"
            f"{name}'] / prior)`."
        )
    if name not in origin.parts:
        raise ValueError(f"part is '{name}', and the merged tasks are {tuple(origin.parts)}.")
    if isinstance(posterior, AbstractLazyPosterior):
        raise ValueError(
            f"a {type(posterior).__name__} of mixtures cannot be divided by one of them: merge the "
            f"posteriors without '{name}'."
        )
    q = origin.parts[name]()
    if q is None:
        raise ValueError(
            f"the posterior of '{name}' is no longer in memory: keep the posteriors that were "
            "merged as long as tasks are removed by name, or pass its likelihood factor, q / prior."
        )
    prior, own = origin.prior, origin_of(q)
    if prior is None and not (own is not None and own.knows_prior):
        raise ValueError(
            f"the posterior of '{name}' was merged without `prior`, and whether it holds one is "
            "not known. Pass its likelihood factor: q / prior, or q itself where it holds none."
        )
    prior = own.prior if prior is None and own is not None else prior
    factor = likelihood_factor(q, None if is_flat(prior) else prior)
    alpha = origin.weights[name]
    if is_concrete(alpha) and not np.any(np.asarray(alpha)):
        raise ValueError(
            f"part is '{name}', which has weight 0 in this posterior: it was removed before, or "
            "merged with weight 0."
        )
    quotient = _quotient(posterior, factor, weight * alpha)
    weights = {**origin.weights, name: alpha * (1 - weight)}
    return remember(quotient, origin._replace(weights=weights))


def _quotient(posterior: Any, part: Any, exponent: Float[Array, "*A"]) -> Any:
    """posterior / part^exponent, for every one of a batch of exponents."""
    if exponent.ndim and part.batch_shape != exponent.shape:
        quotient = posterior / jax.vmap(lambda e: part**e)(exponent)
    else:
        quotient = posterior / part**exponent
    arrays = eqx.filter(quotient, eqx.is_inexact_array)
    if is_concrete(arrays) and not all_finite(arrays):
        for what, q in (("posterior", posterior), ("part", part)):
            require_finite(eqx.filter(q, eqx.is_inexact_array), what)
        raise ValueError("the quotient overflows: weight is too large for these posteriors.")
    return quotient


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
        f"{which} subtract more than the posteriors have: the merged posterior is improper, "
        f"{_smallest(again(first))}. {_remedy(again, first, prior)}"
    )


def _smallest(merged: Any) -> str:
    if isinstance(merged, AbstractGaussian):
        kind = "entry" if merged.precision.structure.is_entrywise else "eigenvalue"
        least = float(jnp.min(merged.smallest_precision()))
        return f"the smallest {kind} of its precision is {least:.6g}"
    return f"its smallest natural parameter is {smallest(merged).item():.6g}"


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
