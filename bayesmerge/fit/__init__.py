"""Where posteriors come from: a target in, a posterior out."""

from bayesmerge.families.checks import ConvergenceWarning
from bayesmerge.fit.curvature import curvature, curvature_product
from bayesmerge.fit.draws import kernel_density, moment_matched
from bayesmerge.fit.expand import expand
from bayesmerge.fit.expectation import elbo
from bayesmerge.fit.ivon import IVON, Trained, ivon, multi_ivon
from bayesmerge.fit.ivon_optimiser import ivon_noise, ivon_optimiser, ivon_posterior
from bayesmerge.fit.laplace import laplace
from bayesmerge.fit.likelihood import Likelihood
from bayesmerge.fit.mixture_von import Components, MixtureVON, mixture_von
from bayesmerge.fit.natural_gradient import NaturalGradient, natural_gradient_vi
from bayesmerge.fit.optimise import Mode, find_mode
from bayesmerge.fit.run import DivergenceError, Run, State, run
from bayesmerge.fit.shards import fit_shards
from bayesmerge.fit.subsample import subsampled
from bayesmerge.fit.target import JointTarget, Target
from bayesmerge.fit.tilted import Tilted, likelihood_factor
from bayesmerge.fit.train import Training, adamw_sg
from bayesmerge.fit.von import VON, von

__all__ = [
    "IVON",
    "VON",
    "Components",
    "ConvergenceWarning",
    "DivergenceError",
    "JointTarget",
    "Likelihood",
    "MixtureVON",
    "Mode",
    "NaturalGradient",
    "Run",
    "State",
    "Target",
    "Tilted",
    "Trained",
    "Training",
    "adamw_sg",
    "curvature",
    "curvature_product",
    "elbo",
    "expand",
    "find_mode",
    "fit_shards",
    "ivon",
    "ivon_noise",
    "ivon_optimiser",
    "ivon_posterior",
    "kernel_density",
    "laplace",
    "likelihood_factor",
    "mixture_von",
    "moment_matched",
    "multi_ivon",
    "natural_gradient_vi",
    "run",
    "subsampled",
    "von",
]
