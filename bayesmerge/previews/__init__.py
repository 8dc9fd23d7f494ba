"""Previews: metrics of the merged models of many weightings, and of their joint training.

`preview` takes objects for how modes are found (`Fastest`, `Each`, `Basis`, `Line`, `Climbs`), how
they are refined (`Refinement`), drawn from (`Spread`) and where all is computed (`Compute`).
"""

from bayesmerge.previews.comparison import Comparison
from bayesmerge.previews.executors import Compute
from bayesmerge.previews.joint import joint_training
from bayesmerge.previews.measure import Uncompiled
from bayesmerge.previews.modes import (
    AbstractModes,
    Basis,
    Climbs,
    Each,
    Fastest,
    Group,
    Line,
    Merges,
    Obstacle,
    Start,
    Sweep,
)
from bayesmerge.previews.pareto import Front
from bayesmerge.previews.refinement import Refinement
from bayesmerge.previews.result import Best, Preview
from bayesmerge.previews.spread import Spread
from bayesmerge.previews.weightings import preview

__all__ = [
    "AbstractModes",
    "Basis",
    "Best",
    "Climbs",
    "Comparison",
    "Compute",
    "Each",
    "Fastest",
    "Front",
    "Group",
    "Line",
    "Merges",
    "Obstacle",
    "Preview",
    "Refinement",
    "Spread",
    "Start",
    "Sweep",
    "Uncompiled",
    "joint_training",
    "preview",
]
