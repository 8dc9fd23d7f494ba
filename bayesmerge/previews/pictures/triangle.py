"""Contours of a metric over the simplex of three weights."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bayesmerge.families.show import one_line
from bayesmerge.previews.pictures.style import (
    best_row,
    colour_range,
    panels,
    previews_and_reference,
    star,
)
from bayesmerge.previews.pictures.text import (
    VERBATIM,
    artist_label,
    as_written,
    colour_bar,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.tri import TriContourSet

Levels = int | Sequence[float] | Float[np.ndarray, " L"]

HEIGHT = np.sqrt(3) / 2
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, HEIGHT]])


def ternary(
    ax: "Axes",
    weights: Float[np.ndarray, "A 3"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    levels: Levels = 12,
    cmap: str = "viridis",
    label: str = "metric",
    colorbar: bool = True,
    starred: bool = True,
) -> "TriContourSet":
    """A filled contour over the simplex of three weights, a corner for each task; the best
    weighting is marked. Triangles with a NaN are left white.

    - `levels`: how many, or the edges themselves, which then are the colour scale.
    """
    from matplotlib.tri import Triangulation

    missing = np.isnan(values)
    edges = _level_edges(values, levels, vmin, vmax)
    shown = values[~missing]
    outside = (shown < edges[0]).any() or (shown > edges[-1]).any()
    points = weights @ CORNERS
    triangles = Triangulation(*points.T)
    triangles.set_mask(missing[triangles.triangles].any(axis=1))
    filled = ax.tricontourf(
        triangles,
        np.where(missing, edges[0], values),
        levels=edges,
        cmap=cmap,
        extend="both" if outside else "neither",
    )
    ax.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="0.2", linewidth=1)
    row = best_row(values, higher_is_better) if starred else None
    if row is not None:
        ax.plot(*points[row], label="best", **star("white"))
    _corner_labels(ax, tasks)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_xlim(-0.06, 1.06)
    ax.set_ylim(-0.12, HEIGHT + 0.1)
    if colorbar:
        colour_bar(ax.figure, filled, wrapped(label, 40), ax=ax, shrink=0.8)
    return filled


def ternaries(
    axes: "Iterable[Axes] | None",
    weights: Float[np.ndarray, "A 3"],
    values_by_name: Mapping[str, Float[np.ndarray, " A"]],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    reference: str | None = None,
    levels: Levels = 12,
    cmap: str = "viridis",
    label: str = "metric",
    starred: bool = True,
) -> "list[Axes]":
    """A ternary contour of every surface, on one colour scale with one colour bar.

    The best weighting of each is starred, and that of the `reference` marked by a diamond in the
    other panels. In given axes the marks are labelled, and the legend is yours to place.
    """
    surfaces, _ = previews_and_reference(values_by_name, None)
    _, truth = previews_and_reference(values_by_name, reference)
    edges = _level_edges(np.concatenate(list(surfaces.values())), levels)
    drawn = _row_of_axes(len(surfaces)) if axes is None else panels(axes, len(surfaces))
    target = None if truth is None or not starred else best_row(truth, higher_is_better)
    scale: dict[str, Any] = {"levels": edges, "cmap": cmap, "colorbar": False, "starred": starred}
    filled = []
    for ax, (name, values) in zip(drawn, surfaces.items(), strict=True):
        filled.append(ternary(ax, weights, values, tasks, higher_is_better, **scale))
        if target is not None and name != reference:
            ax.plot(
                *weights[target] @ CORNERS,
                label=artist_label(f"best of {one_line(reference or '')}"),
                **_diamond(),
            )
        ax.set_title(wrapped(name, 24, 2), y=1.0, pad=-13, **VERBATIM)
        ax.set_ylim(*_room_for_text(tasks))
    reaching = max(filled, key=lambda contour: contour.extend == "both")
    place: dict[str, Any] = {"ax": drawn, "shrink": 0.9, "aspect": 18, "pad": 0.02}
    colour_bar(drawn[0].figure, reaching, wrapped(label, 40), **place)
    if axes is None:
        marks = {m.get_label(): m for ax in drawn for m in ax.lines if m.get_marker() in ("*", "D")}
        if marks:
            legend = drawn[0].figure.legend(
                handles=list(marks.values()), loc="outside lower center", ncols=2, frameon=False
            )
            as_written(legend)
    return drawn


def _room_for_text(tasks: tuple[str, ...], line: float = 0.09) -> tuple[float, float]:
    """Ends of the y axis between which the corner labels and a title lie, in panels of usual size:
    constrained layouts do not see all that sticks out of axes of fixed aspect."""
    left, right, top = (1 + wrapped(task).count("\n") for task in tasks)
    return -0.05 - line * max(left, right), HEIGHT + 0.06 + line * (top + 1.2)


def _diamond() -> dict[str, Any]:
    from matplotlib.patheffects import withStroke

    return {
        "marker": "D",
        "linestyle": "",
        "markerfacecolor": "none",
        "markeredgecolor": "black",
        "markersize": 11,
        "zorder": 3,
        "path_effects": [withStroke(linewidth=3.5, foreground="white")],
    }


def _row_of_axes(count: int) -> "list[Axes]":
    import matplotlib.pyplot as plt

    size = (2.6 * count + 0.9, 3.5)
    _, axes = plt.subplots(1, count, figsize=size, squeeze=False, layout="compressed")
    return list(axes[0])


def _level_edges(
    values: Float[np.ndarray, " A"],
    levels: Levels,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Float[np.ndarray, " L"]:
    """Round numbers that span the values, or the equal steps between given ends."""
    from matplotlib.ticker import MaxNLocator

    if not isinstance(levels, int):
        return np.asarray(levels, float)
    low, high = colour_range(values, vmin, vmax)
    if vmin is None and vmax is None:
        return np.asarray(MaxNLocator(levels).tick_values(low, high))
    return np.linspace(low, high, levels + 1)


def _corner_labels(ax: "Axes", tasks: tuple[str, ...]) -> None:
    places = (
        (-0.05, -0.05, "left", "top"),
        (1.05, -0.05, "right", "top"),
        (0.5, HEIGHT + 0.04, "center", "bottom"),
    )
    for task, (x, y, across, vertical) in zip(tasks, places, strict=True):
        ax.text(x, y, wrapped(task), ha=across, va=vertical, fontsize="medium", **VERBATIM)
