"""Ways of finding the modes of many merges: a file and a line in `WAYS` for each."""

from bayesmerge.previews.modes.base import AbstractModes, Found, Group, Obstacle, Start, Sweep
from bayesmerge.previews.modes.basis import Basis
from bayesmerge.previews.modes.choose import WAYS, sweep_of
from bayesmerge.previews.modes.climbs import Climbs
from bayesmerge.previews.modes.each import Each
from bayesmerge.previews.modes.line import Line
from bayesmerge.previews.modes.merges import Merges

__all__ = [
    "WAYS",
    "AbstractModes",
    "Basis",
    "Climbs",
    "Each",
    "Found",
    "Group",
    "Line",
    "Merges",
    "Obstacle",
    "Start",
    "Sweep",
    "sweep_of",
]
