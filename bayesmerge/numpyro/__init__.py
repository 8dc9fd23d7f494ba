"""Models and guides of NumPyro in; its distributions, draws by site, and ArviZ data out."""

from bayesmerge.numpyro.model import Model
from bayesmerge.numpyro.outputs import Summary
from bayesmerge.numpyro.priors import replace_prior, to_numpyro, with_factor
from bayesmerge.numpyro.targets import ModelTarget, prior, target

__all__ = [
    "Model",
    "ModelTarget",
    "Summary",
    "prior",
    "replace_prior",
    "target",
    "to_numpyro",
    "with_factor",
]
