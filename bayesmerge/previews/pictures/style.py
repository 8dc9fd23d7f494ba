"""What the pictures of previews share: axes, colours, which value is the best."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "v", "D", "P", "X")
REFERENCE = "0.35"


def axes_or_new(ax: "Axes | None", **options: Any) -> "Axes":
    """`ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained", **options)[1]


def panels(axes: "Iterable[Axes]", count: int) -> "list[Axes]":
    """Given axes as a list, whatever their shape, checked to be `count`."""
    found = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(found) != count:
        raise ValueError(f"there are {len(found)} axes, and this picture has {count} panels.")
    return found


def finite(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Infinities as NaN."""
    return np.where(np.isfinite(values), values, np.nan)


def previews_and_reference(
    by_name: Mapping[str, Float[np.ndarray, "..."]], reference: str | None
) -> tuple[dict[str, Float[np.ndarray, "..."]], Float[np.ndarray, "..."] | None]:
    """The surfaces without the reference, and the reference."""
    if not by_name:
        raise ValueError("there is nothing to draw: give at least one surface.")
    if reference is not None and reference not in by_name:
        raise ValueError(f"reference is {reference!r}, and there are {tuple(by_name)}.")
    surfaces = {name: finite(np.asarray(x, float)) for name, x in by_name.items()}
    truth = None if reference is None else surfaces.pop(reference)
    return surfaces, truth


def colour(index: int) -> str:
    """The colour of the surface or task of this index."""
    return COLOURS[index % len(COLOURS)]


def line_style(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of one line, distinct in grey too."""
    return {
        "color": colour(index),
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
    }


def star(fill: str) -> dict[str, Any]:
    """The mark of the best weighting."""
    return {
        "marker": "*",
        "linestyle": "",
        "markerfacecolor": fill,
        "markeredgecolor": "black",
        "markersize": 12,
        "zorder": 4,
    }


def best_row(values: Float[np.ndarray, " A"], higher_is_better: bool) -> int | None:
    """The first row that attains the best value, or `None` where all are NaN."""
    if np.isnan(values).all():
        return None
    return int(np.nanargmax(values) if higher_is_better else np.nanargmin(values))


def colour_range(
    values: Float[np.ndarray, " A"], vmin: float | None = None, vmax: float | None = None
) -> tuple[float, float]:
    """Ends of a colour scale: those given, or those of the values, never equal."""
    if np.isnan(values).all() and (vmin is None or vmax is None):
        raise ValueError("the metric is NaN at every weighting: there is nothing to colour.")
    low = float(np.nanmin(values)) if vmin is None else vmin
    high = float(np.nanmax(values)) if vmax is None else vmax
    return low, high if high > low else low + max(1e-6 * abs(low), 1e-9)


def chosen_tasks(
    tasks: tuple[str, ...], chosen: Iterable[str] | None, most: int, panels_of: str
) -> list[int]:
    """Columns of the chosen tasks, at most `most`."""
    names = list(tasks if chosen is None else chosen)
    unknown = [name for name in names if name not in tasks]
    if unknown:
        raise ValueError(f"chosen names {unknown}, and the tasks are {tasks}.")
    if not 2 <= len(names) <= most:
        raise ValueError(
            f"{len(names)} tasks have {len(names) * (len(names) - 1) // 2} pairs, and {panels_of} "
            f"can be read for 2 to {most} tasks: name these as `chosen`."
        )
    return [tasks.index(name) for name in names]
