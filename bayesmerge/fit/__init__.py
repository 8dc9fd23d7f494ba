"""Where posteriors come from: a target in, a posterior out."""

from bayesmerge.fit.curvature import curvature, curvature_product
from bayesmerge.fit.expand import expand
from bayesmerge.fit.laplace import laplace
from bayesmerge.fit.likelihood import Likelihood
from bayesmerge.fit.optimise import ConvergenceWarning, Mode, find_mode
from bayesmerge.fit.target import JointTarget, Target

__all__ = [
    "ConvergenceWarning",
    "JointTarget",
    "Likelihood",
    "Mode",
    "Target",
    "curvature",
    "curvature_product",
    "expand",
    "find_mode",
    "laplace",
]
