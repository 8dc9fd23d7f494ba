"""Merging models is multiplying posteriors: p_α(θ) ∝ p_0(θ)^γ Π_t q_t(θ)^{α_t}."""

from bayesmerge.families import (
    Beta,
    DiagonalGaussian,
    Dirichlet,
    FullGaussian,
    Gamma,
    IsotropicGaussian,
)
from bayesmerge.fit import (
    ConvergenceWarning,
    JointTarget,
    Target,
    curvature,
    find_mode,
    laplace,
)
from bayesmerge.grid import simplex_grid
from bayesmerge.merging import (
    average,
    fisher_average,
    gradient_matching,
    hessian_weighted,
    merge,
    remove,
    task_arithmetic,
)
from bayesmerge.preview import joint_training, preview
from bayesmerge.result import Preview

__all__ = [
    "Beta",
    "ConvergenceWarning",
    "DiagonalGaussian",
    "Dirichlet",
    "FullGaussian",
    "Gamma",
    "IsotropicGaussian",
    "JointTarget",
    "Preview",
    "Target",
    "average",
    "curvature",
    "find_mode",
    "fisher_average",
    "gradient_matching",
    "hessian_weighted",
    "joint_training",
    "laplace",
    "merge",
    "preview",
    "remove",
    "simplex_grid",
    "task_arithmetic",
]
