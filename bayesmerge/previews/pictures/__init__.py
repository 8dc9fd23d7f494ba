"""Pictures of metrics over task weights, from plain arrays into matplotlib axes."""

from bayesmerge.previews.pictures.compare import front, histogram
from bayesmerge.previews.pictures.curves import curve, curves, pairs
from bayesmerge.previews.pictures.many import parallel_coordinates, profiles, slices
from bayesmerge.previews.pictures.marginals import densities
from bayesmerge.previews.pictures.style import COLOURS
from bayesmerge.previews.pictures.surface import draw
from bayesmerge.previews.pictures.triangle import CORNERS, ternaries, ternary

__all__ = [
    "COLOURS",
    "CORNERS",
    "curve",
    "curves",
    "densities",
    "draw",
    "front",
    "histogram",
    "pairs",
    "parallel_coordinates",
    "profiles",
    "slices",
    "ternaries",
    "ternary",
]
