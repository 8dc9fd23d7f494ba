"""A prior that is no Gaussian is one more loss, R_0(θ) = −log p_0(θ)."""

from typing import Any

from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.target import JointTarget


def absorb(target: AbstractTarget, prior: Any) -> tuple[Any, Any]:
    """ℓ and p_0, or ℓ + R_0 and a flat prior: the same posterior, with no prior but a Gaussian one.
    Without a prior that of the target."""
    prior = target.prior if prior is None else prior
    if isinstance(prior, AbstractTarget):
        return JointTarget([target, prior], [1.0, 1.0]), None
    return target, prior
