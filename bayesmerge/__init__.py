"""Merging models is multiplying posteriors: p_α(θ) ∝ p_0(θ)^γ Π_t q_t(θ)^{α_t}."""

from typing import Any

from bayesmerge import schemes
from bayesmerge.diagnostics import diagnose
from bayesmerge.families import (
    Beta,
    BlockGaussian,
    Blocks,
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
    expand,
    find_mode,
    ivon,
    laplace,
    mixture_von,
    von,
)
from bayesmerge.gradient_mismatch import mismatch
from bayesmerge.grid import simplex_grid
from bayesmerge.leverages import influence
from bayesmerge.merging import merge, remove
from bayesmerge.mixtures import Mixture, Product
from bayesmerge.previews import Preview, joint_training, preview
from bayesmerge.priors import ExactPrior
from bayesmerge.refinement import refine
from bayesmerge.removal import leave_out

__all__ = [
    "Beta",
    "BlockGaussian",
    "Blocks",
    "ConvergenceWarning",
    "DiagonalGaussian",
    "Dirichlet",
    "ExactPrior",
    "FullGaussian",
    "Gamma",
    "IsotropicGaussian",
    "JointTarget",
    "Mixture",
    "Preview",
    "Product",
    "Target",
    "curvature",
    "diagnose",
    "expand",
    "find_mode",
    "influence",
    "ivon",
    "joint_training",
    "laplace",
    "leave_out",
    "merge",
    "mismatch",
    "mixture_von",
    "preview",
    "refine",
    "remove",
    "schemes",
    "simplex_grid",
    "von",
]


NAMESPACES = {
    "checkpoints": "bayesmerge.checkpoints",
    "numpyro": "bayesmerge.numpyro",
    "plots": "bayesmerge.previews.plots",
}


def __getattr__(name: str) -> Any:
    """Namespaces, imported where they are used: NumPyro is optional."""
    if name in NAMESPACES:
        import importlib

        return importlib.import_module(NAMESPACES[name])
    raise AttributeError(f"module 'bayesmerge' has no attribute '{name}'")
