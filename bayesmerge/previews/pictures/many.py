"""Pictures of a metric over the weights of more than three tasks."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from bayesmerge.previews.pictures.style import (
    axes_or_new,
    best_row,
    chosen_tasks,
    colour_range,
    finite,
    line_style,
    panels,
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


def profiles(
    ax: "Axes",
    weights: Float[np.ndarray, "A T"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    label: str = "metric",
    **_: Any,
) -> None:
    """For every task the best value attainable at each of its weights, over the other weights."""
    best = np.nanmax if higher_is_better else np.nanmin
    for t, task in enumerate(tasks):
        places, group = _groups(weights[:, t])
        seen = [g for g in range(len(places)) if not np.isnan(values[group == g]).all()]
        attained = [best(values[group == g]) for g in seen]
        ax.plot(places[seen], attained, label=artist_label(task), **line_style(t))
    ax.set_xlabel("weight of the task")
    ax.set_ylabel(wrapped(f"best {label} over the other weights", 60), **VERBATIM)
    as_written(ax.legend(title="task", frameon=False))


def parallel_coordinates(
    ax: "Axes | None",
    weights: Float[np.ndarray, "A T"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    top: int = 5,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    label: str = "metric",
) -> "Axes":
    """Every weighting as a line through its weights, which ends at its metric on the colour bar.

    The better, the more opaque and the nearer to the front; the `top` best are thick.
    """
    from matplotlib.collections import LineCollection

    values = finite(values)
    low, high = colour_range(values, vmin, vmax)
    ax = axes_or_new(ax, figsize=(1.3 * len(tasks) + 1.5, 4))
    order = np.argsort(values if higher_is_better else -values)
    order = order[~np.isnan(values[order])]
    floor, ceiling = min(0.0, weights.min()), max(1.0, weights.max())
    ends = floor + (ceiling - floor) * np.clip((values - low) / (high - low), 0, 1)
    heights = np.column_stack([weights, ends])[order]
    across = np.broadcast_to(np.arange(len(tasks) + 1.0), heights.shape)
    lines = list(np.stack([across, heights], axis=-1))
    rank = np.linspace(0, 1, len(lines)) ** 2
    opacity = np.clip(60 / len(lines), 0.03, 0.5) * (0.3 + 0.7 * rank)
    rest = len(lines) - min(top, len(lines))
    scale: dict[str, Any] = {"cmap": cmap, "clim": (low, high), "capstyle": "round"}
    if rest:
        faint = {"alpha": opacity[:rest], "rasterized": True}
        ax.add_collection(
            LineCollection(lines[:rest], array=values[order[:rest]], **faint, **scale)
        )
    casing = LineCollection(lines[rest:], colors="black", linewidths=4.2, zorder=3, clip_on=False)
    ax.add_collection(casing)
    best_lines = LineCollection(
        lines[rest:],
        array=values[order[rest:]],
        linewidths=2.8,
        zorder=3.1,
        clip_on=False,
        **scale,
    )
    ax.add_collection(best_lines)
    for t in range(len(tasks)):
        ax.axvline(t, color="0.3", linewidth=0.8, zorder=2)
    ax.grid(False)
    ax.set_xlim(-0.1, len(tasks))
    ax.set_ylim(floor, ceiling)
    ax.set_xticks(range(len(tasks)), [wrapped(task, 12) for task in tasks], **VERBATIM)
    ax.set_xlabel("task")
    ax.set_ylabel("weight of the task")
    ax.spines[:].set_visible(False)
    scale_bar = ax.inset_axes((1.0, 0.0, 0.03, 1.0))
    scale_bar.grid(False)
    colour_bar(ax.figure, best_lines, wrapped(label, 40), cax=scale_bar)
    return ax


def slices(
    axes: "Iterable[Axes] | None",
    weights: Float[np.ndarray, "A T"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    label: str = "metric",
    chosen: Iterable[str] | None = None,
) -> "list[Axes]":
    """For every two tasks the best value attainable at their weights, over the other weights, on
    one colour scale. The best weighting is starred in every panel.

    - `axes`: one for each pair, in the order of `itertools.combinations`, or new ones.
    - `chosen`: up to eight tasks, by default all.
    """
    values = finite(values)
    columns = chosen_tasks(tasks, chosen, 8, "maps of pairs")
    couples = list(itertools.combinations(columns, 2))
    low, high = colour_range(values, vmin, vmax)
    made = axes is None
    drawn = _lower_triangle(len(columns)) if axes is None else panels(axes, len(couples))
    row = best_row(values, higher_is_better)
    limits = []
    for ax, (a, b) in zip(drawn, couples, strict=True):
        edges, attained = _attained(weights[:, [a, b]], values, higher_is_better)
        ax.grid(False)
        mesh = ax.pcolormesh(*edges, attained, cmap=cmap, vmin=low, vmax=high)
        if row is not None:
            ax.plot(weights[row, a], weights[row, b], clip_on=False, **star("white"))
        ax.set_aspect("equal")
        ax.locator_params(nbins=3 if len(columns) < 6 else 2)
        limits.append((*ax.get_xlim(), *ax.get_ylim()))
        if not made or b == columns[-1]:
            ax.set_xlabel(f"weight of\n{wrapped(tasks[a])}", **VERBATIM)
        if not made or a == columns[0]:
            ax.set_ylabel(f"weight of\n{wrapped(tasks[b])}", **VERBATIM)
    ends = (np.min(limits), np.max(limits))
    for ax in drawn:
        ax.set(xlim=ends, ylim=ends)
    title = f"best {wrapped(label, 40)}\nover the other weights"
    grid = drawn[0].get_gridspec()
    if made and grid is not None and len(columns) > 2:
        blank = drawn[0].figure.add_subplot(grid[: len(columns) // 2, -1])
        blank.set_axis_off()
        bar = blank.inset_axes((0.0, 0.0, 0.12, 1.0))
        bar.grid(False)
        colour_bar(bar.figure, mesh, title, cax=bar)
    else:
        colour_bar(drawn[0].figure, mesh, title, ax=drawn)
    return drawn


def _attained(
    weights: Float[np.ndarray, "A 2"], values: Float[np.ndarray, " A"], higher_is_better: bool
) -> tuple[list[Float[np.ndarray, " _"]], Float[np.ndarray, "Y X"]]:
    """Edges of the cells across and up, and the best value in each cell, NaN if none."""
    (across, column), (up, row) = (_groups(weight) for weight in weights.T)
    attained = np.full((len(up), len(across)), np.nan)
    better = np.fmax if higher_is_better else np.fmin
    better.at(attained, (row, column), values)
    return [_cell_edges(across), _cell_edges(up)], attained


def _cell_edges(centres: Float[np.ndarray, " G"]) -> Float[np.ndarray, " E"]:
    if len(centres) == 1:
        return centres[0] + np.array([-0.05, 0.05])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _lower_triangle(num_tasks: int) -> "list[Axes]":
    import matplotlib.pyplot as plt

    side = num_tasks - 1
    length = max(1.7 * side + 1.2, 4) if side < 5 else 1.35 * side + 1.2
    _, axes = plt.subplots(
        side,
        side,
        figsize=(length, length),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for down, across in itertools.combinations(range(side), 2):
        axes[down, across].remove()
    return [axes[b - 1, a] for a, b in itertools.combinations(range(num_tasks), 2)]


def _groups(
    weight: Float[np.ndarray, " A"], most: int = 25
) -> tuple[Float[np.ndarray, " G"], Int[np.ndarray, " A"]]:
    """Distinct weights, or the centres of equal bins where there are more than `most`."""
    places, group = np.unique(weight.round(9), return_inverse=True)
    if len(places) <= most:
        return places, group
    edges = np.linspace(weight.min(), weight.max(), 11)
    group = np.clip(np.digitize(weight, edges) - 1, 0, 9)
    return (edges[:-1] + edges[1:]) / 2, group
