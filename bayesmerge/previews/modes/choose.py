"""Which way of finding modes is taken."""

from bayesmerge.previews.modes.base import AbstractModes, Obstacle, Sweep
from bayesmerge.previews.modes.basis import Basis
from bayesmerge.previews.modes.climbs import Climbs
from bayesmerge.previews.modes.each import Each
from bayesmerge.previews.modes.line import Line
from bayesmerge.previews.modes.merges import Merges

WAYS: tuple[AbstractModes, ...] = (Climbs(), Line(), Basis(largest=0.25), Each())
"""In the order in which they are asked whether they apply and pay."""


def sweep_of(merges: Merges, modes: AbstractModes | None, progress: bool | str) -> Sweep:
    """The modes of all merges, found in one way or in the fastest that applies."""
    if not isinstance(modes, (AbstractModes, type(None))):
        raise TypeError(
            f"modes is {modes!r}, and it must be an object that finds modes, such as "
            "`bm.previews.Each()` or `bm.previews.Basis(tolerance=1e-3)`, or None for the fastest "
            "that applies."
        )
    merges.require_gaussians()
    if modes is not None:
        found = _found(merges, modes, progress)
        if isinstance(found, Obstacle):
            raise ValueError(f"modes={modes!r} does not apply: {found.reason}")
        return found
    for way in WAYS:
        if way.pays(merges) and isinstance(found := _found(merges, way, progress), Sweep):
            return found
    raise ValueError(f"no way of finding the modes of a {type(merges.shape).__name__} applies.")


def _found(merges: Merges, way: AbstractModes, progress: bool | str) -> Sweep | Obstacle:
    reason = way.obstacle(merges)
    return way.sweep(merges, progress) if reason is None else Obstacle(reason)
