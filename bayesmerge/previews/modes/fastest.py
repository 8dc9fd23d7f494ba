"""The fastest way of finding modes that applies."""

from bayesmerge.previews.modes.base import AbstractModes, Found, Obstacle, Sweep
from bayesmerge.previews.modes.basis import Basis
from bayesmerge.previews.modes.climbs import Climbs
from bayesmerge.previews.modes.each import Each
from bayesmerge.previews.modes.line import Line
from bayesmerge.previews.modes.merges import Merges

WAYS: tuple[AbstractModes, ...] = (Climbs(), Line(), Basis(largest=0.25), Each())
"""All there are."""


class Fastest(AbstractModes):
    """The first of several ways that applies to the merges and is fast for them: what `preview`
    takes where `modes` is left out.

    - `ways`: objects of other classes; by default all of this library, a basis with a tolerance of
      1e-3 and at most a quarter of the dimensions among them.

    **Raises** `ValueError` without any way.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = [bm.IsotropicGaussian.from_mean_precision(jnp.array(x), 1.0) for x in (0.0, 4.0)]
    >>> ways = bm.previews.Line(), bm.previews.Each()
    >>> options = {"modes": bm.previews.Fastest(ways), "progress": False}
    >>> bm.preview(q, [[0.5, 0.5]], lambda x: x, **options).values()
    array([2.])

    ```
    """

    ways: tuple[AbstractModes, ...] = WAYS

    def __check_init__(self) -> None:
        if not self.ways:
            raise ValueError("ways is empty: give at least one, such as `bm.previews.Each()`.")

    def obstacle(self, merges: Merges) -> str | None:
        reasons = [way.obstacle(merges) for way in self.ways]
        return None if None in reasons else " ".join(map(str, reasons))

    def pays(self, merges: Merges) -> bool:
        return any(way.pays(merges) for way in self.ways)

    def sweep(self, merges: Merges, progress: bool | str) -> Found:
        found: Found = Obstacle("none of its ways is fast for these merges: add `Each()`.")
        for way in self.ways:
            if way.pays(merges):
                found = way.attempt(merges, progress)
                if isinstance(found, Sweep):
                    break
        return found
