"""What a prior is: an energy, its expansion at a point, and where to start from."""

from bayesmerge.priors.abstract import AbstractPrior
from bayesmerge.priors.closed import ClosedPrior
from bayesmerge.priors.exact import ExactPrior
from bayesmerge.priors.flat import FlatPrior
from bayesmerge.priors.resolve import Prior, as_prior

__all__ = ["AbstractPrior", "ClosedPrior", "ExactPrior", "FlatPrior", "Prior", "as_prior"]
