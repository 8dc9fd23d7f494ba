"""What a posterior is: the algebra, the families, the mode."""

from bayesmerge.families.base import AbstractExponentialFamily, AbstractPosterior
from bayesmerge.families.beta import Beta
from bayesmerge.families.block import BlockGaussian
from bayesmerge.families.conjugate import AbstractConjugateFamily
from bayesmerge.families.diagonal import DiagonalGaussian
from bayesmerge.families.dirichlet import Dirichlet
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.gamma import Gamma
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.isotropic import IsotropicGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import (
    AbstractPrecision,
    AbstractStructure,
    BlockPrecision,
    Blocks,
    DensePrecision,
    Diagonal,
    DiagonalPrecision,
    Full,
    Isotropic,
    ScalarPrecision,
)

__all__ = [
    "AbstractConjugateFamily",
    "AbstractExponentialFamily",
    "AbstractGaussian",
    "AbstractPosterior",
    "AbstractPrecision",
    "AbstractStructure",
    "Beta",
    "BlockGaussian",
    "BlockPrecision",
    "Blocks",
    "DensePrecision",
    "Diagonal",
    "DiagonalGaussian",
    "DiagonalPrecision",
    "Dirichlet",
    "Full",
    "FullGaussian",
    "Gamma",
    "Isotropic",
    "IsotropicGaussian",
    "Layout",
    "ScalarPrecision",
]
