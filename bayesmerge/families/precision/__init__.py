"""Precisions as objects: a file for each structure, and one table of what their sums are."""

from bayesmerge.families.precision.abstract import (
    AbstractFactor,
    AbstractPrecision,
    AbstractStructure,
)
from bayesmerge.families.precision.blocks import BlockPrecision, Blocks
from bayesmerge.families.precision.dense import DensePrecision, Full
from bayesmerge.families.precision.diagonal import Diagonal, DiagonalPrecision
from bayesmerge.families.precision.promotion import Structure, as_structure, holds, join
from bayesmerge.families.precision.scalar import Isotropic, ScalarPrecision

__all__ = [
    "AbstractFactor",
    "AbstractPrecision",
    "AbstractStructure",
    "BlockPrecision",
    "Blocks",
    "DensePrecision",
    "Diagonal",
    "DiagonalPrecision",
    "Full",
    "Isotropic",
    "ScalarPrecision",
    "Structure",
    "as_structure",
    "holds",
    "join",
]
