"""Marginal densities of posteriors, a panel for every entry of θ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bayesmerge.previews.pictures.style import DASHES, colour, panels
from bayesmerge.previews.pictures.text import VERBATIM, artist_label, as_written, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]

WIDEST = 4.0
"""How much more of a density is in its panel, at most, than the width of the narrowest."""

STEEPEST = 10.0
"""How much higher than their mean densities are drawn that are highest at an end, where some are
infinite."""


def densities(
    axes: "Iterable[Axes] | None",
    curves_by_name: Mapping[str, Sequence[Curve]],
    entries: Sequence[str],
    remark: str = "",
) -> "list[Axes]":
    """Curves (x, density) of every posterior, one for each entry: lines that are distinct in grey
    too, the last posterior filled and on top.

    - `entries`: their names, one for each panel.
    - `remark`: said below new axes.
    """
    drawn = _grid_of_axes(len(entries)) if axes is None else panels(axes, len(entries))
    last = len(curves_by_name) - 1
    for i, (ax, entry) in enumerate(zip(drawn, entries, strict=True)):
        for k, (name, curves) in enumerate(curves_by_name.items()):
            x, y = curves[i]
            look: dict[str, Any] = {"color": colour(k), "linestyle": DASHES[k % len(DASHES)]}
            ax.plot(x, y, label=artist_label(name), linewidth=1.8, **look)
            if k == last:
                ax.fill_between(x, y, color=colour(k), alpha=0.15, linewidth=0)
        ax.set_xlim(*_limits([curves[i] for curves in curves_by_name.values()]))
        ax.set_ylim(0, 1.06 * max(_height(*curves[i]) for curves in curves_by_name.values()))
        ax.set_yticks([])
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel(wrapped(entry, 24, 2), **VERBATIM)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(False, axis="y")
        place = ax.get_subplotspec()
        if axes is None and place is not None and place.is_first_col():
            ax.set_ylabel("density")
    figure = drawn[0].figure
    if axes is None and last > 0:
        handles, names = drawn[0].get_legend_handles_labels()
        room = 11 * figure.bbox.width / figure.dpi
        longest = max(len(line) for name in names for line in name.splitlines())
        look = {"loc": "outside upper center", "frameon": False}
        columns = max(1, min(len(names), int(room / (longest + 7))))
        as_written(figure.legend(handles, names, ncols=columns, **look))
    if axes is None and remark:
        figure.supxlabel(remark, fontsize="small", color="0.35", **VERBATIM)
    return drawn


def _limits(curves: list[Curve]) -> tuple[float, float]:
    """All densities, or of those that are far wider than another what is around their peaks."""
    half = 0.5 * WIDEST * min(np.ptp(x) for x, _ in curves)
    peaks = [x[np.argmax(y)] for x, y in curves]
    low = min(max(x[0], peak - half) for (x, _), peak in zip(curves, peaks, strict=True))
    high = max(min(x[-1], peak + half) for (x, _), peak in zip(curves, peaks, strict=True))
    return float(low), float(high)


def _height(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    highest, mean = float(np.max(y)), float(np.trapezoid(y, x) / np.ptp(x))
    return min(highest, STEEPEST * mean) if np.argmax(y) in (0, len(y) - 1) else highest


def _grid_of_axes(count: int) -> "list[Axes]":
    import matplotlib.pyplot as plt

    across = min(count, 4)
    down = -(-count // across)
    size = (max(2.0 * across + 0.4, 3.6), 1.7 * down + 0.9)
    _, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    axes[0, 0].figure.get_layout_engine().set(w_pad=0.09)
    for spare in axes.flat[count:]:
        spare.remove()
    return list(axes.flat[:count])
