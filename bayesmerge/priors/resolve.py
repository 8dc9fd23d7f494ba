"""A prior from what users pass for it: a posterior, an exact prior, or `None`."""

from typing import Any, TypeAlias

from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.priors.abstract import AbstractPrior
from bayesmerge.priors.closed import ClosedPrior
from bayesmerge.priors.exact import ExactPrior
from bayesmerge.priors.flat import FlatPrior

Prior: TypeAlias = AbstractExponentialFamily | ExactPrior | None
"""A Gaussian or another exponential family, an exact prior, or `None` for a flat one."""


def as_prior(prior: Any) -> AbstractPrior:
    """An `AbstractPrior`.

    **Raises** `TypeError` for what is no prior.
    """
    if prior is None:
        return FlatPrior()
    if isinstance(prior, AbstractPrior):
        return prior
    if isinstance(prior, AbstractExponentialFamily):
        return ClosedPrior(prior)
    raise TypeError(
        f"prior is a {type(prior).__name__}, and it must be a posterior such as "
        "`IsotropicGaussian.from_mean_precision(params, 1.0)`, an `ExactPrior`, or None for a flat "
        "one."
    )
