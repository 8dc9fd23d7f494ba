"""A prior that is no Gaussian is one more loss, R_0(θ) = −log p_0(θ)."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from bayesmerge.families.checks import is_concrete
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.target import JointTarget


def absorb(target: AbstractTarget, prior: Any) -> tuple[Any, Any]:
    """ℓ and p_0, or ℓ + R_0 and a flat prior: the same posterior, with no prior but a Gaussian one.
    Without a prior that of the target."""
    prior = target.prior if prior is None else prior
    if isinstance(prior, AbstractTarget):
        return JointTarget([target, prior], [1.0, 1.0]), None
    return target, prior


def shared_prior(targets: dict[str, Any]) -> Any:
    """The prior of all targets, or an error that names two which differ; `None` without one."""
    (first, target), *others = targets.items()
    for name, other in others:
        if is_concrete((target, other)) and not _is_same(target, other):
            raise ValueError(
                f"the targets '{first}' and '{name}' have different priors, and one is shared when "
                "posteriors are multiplied. Give them the same, which must not depend on a shard's "
                "data, or pass `prior`."
            )
    missing = any(other.prior is None for other in targets.values())
    return None if missing else target.prior


def _is_same(one: AbstractTarget, other: AbstractTarget) -> bool:
    p, q = one.prior, other.prior
    if p is q or p is None or q is None:
        return True
    if isinstance(p, AbstractTarget) != isinstance(q, AbstractTarget):
        return False
    if not isinstance(p, AbstractTarget):
        p, q = p.aligned_with(q)
        pairs = zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True)
        return all(np.allclose(x, y, rtol=1e-5, atol=1e-7) for x, y in pairs)
    points = [t.start for t in (one, other) if t.start is not None]
    return all(np.allclose(_total(p, x), _total(q, x), rtol=1e-5, atol=1e-5) for x in points)


@eqx.filter_jit
def _total(target: AbstractTarget, theta: Any) -> Any:
    return target.total(theta)
