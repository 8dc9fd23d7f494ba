"""Ways of finding the modes of many merges: each is a file, and an entry in `fastest.WAYS`."""

from bayesmerge.previews.modes.base import AbstractModes, Found, Group, Obstacle, Start, Sweep
from bayesmerge.previews.modes.basis import Basis
from bayesmerge.previews.modes.climbs import Climbs
from bayesmerge.previews.modes.each import Each
from bayesmerge.previews.modes.fastest import Fastest
from bayesmerge.previews.modes.line import Line
from bayesmerge.previews.modes.merges import Merges

__all__ = [
    "AbstractModes",
    "Basis",
    "Climbs",
    "Each",
    "Fastest",
    "Found",
    "Group",
    "Line",
    "Merges",
    "Obstacle",
    "Start",
    "Sweep",
]
