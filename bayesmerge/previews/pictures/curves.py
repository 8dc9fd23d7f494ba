"""Curves of a metric over the weights of two tasks."""

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from bayesmerge.families.show import one_line
from bayesmerge.previews.pictures.style import (
    REFERENCE,
    axes_or_new,
    best_row,
    chosen_tasks,
    colour,
    line_style,
    panels,
    previews_and_reference,
    star,
)
from bayesmerge.previews.pictures.text import VERBATIM, artist_label, as_written, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curves(
    ax: "Axes | None",
    weights: Float[np.ndarray, "A 2"],
    values_by_name: Mapping[str, Float[np.ndarray, " A"]],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    reference: str | None = None,
    label: str = "metric",
    starred: bool = True,
) -> "Axes":
    """The metric against the weight of the first of two tasks: surfaces as lines, the `reference`
    as dots. The best of each is starred.

    Source: FP Fig. 5.
    """
    surfaces, truth = previews_and_reference(values_by_name, reference)
    ax = axes_or_new(ax)
    order = np.argsort(weights[:, 0])
    x = weights[order, 0]
    for index, (name, values) in enumerate(surfaces.items()):
        ax.plot(x, values[order], label=artist_label(name), **line_style(index))
        if starred:
            _star(ax, x, values[order], higher_is_better, colour(index))
    if truth is not None and reference is not None:
        dots: dict[str, Any] = {"color": REFERENCE, "markersize": 9, "zorder": 1.9}
        ax.plot(x, truth[order], ".", label=artist_label(reference), **dots)
        _star(ax, x, truth[order], higher_is_better, "white")
    ax.margins(y=0.08)
    ax.set_xlabel(_weight_of(tasks, 60), **VERBATIM)
    ax.set_ylabel(wrapped(label, 40), **VERBATIM)
    if len(values_by_name) > 1:
        as_written(ax.legend(*_legend_entries(ax), frameon=False))
    return ax


def curve(
    ax: "Axes",
    weights: Float[np.ndarray, "A 2"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    label: str = "metric",
    starred: bool = True,
    **_: Any,
) -> None:
    """The metric against the weight of the first of two tasks; the best is marked."""
    curves(ax, weights, {label: values}, tasks, higher_is_better, label=label, starred=starred)


def pairs(
    axes: "Iterable[Axes] | None",
    weights: Float[np.ndarray, "A T"],
    values_by_name: Mapping[str, Float[np.ndarray, " A"]],
    tasks: tuple[str, ...],
    higher_is_better: bool = True,
    *,
    reference: str | None = None,
    label: str = "metric",
    chosen: Iterable[str] | None = None,
) -> "list[Axes]":
    """For every two tasks the `curves` along the edge of the simplex where no other task has
    weight, on one scale.

    - `axes`: one for each pair, in the order of `itertools.combinations`, or new ones. In given
      axes the lines are labelled, and the legend is yours to place.
    - `chosen`: up to five tasks, by default all, which then are no more than ten pairs.

    **Raises** `ValueError` for more tasks, or an edge without two weightings.
    """
    columns = chosen_tasks(tasks, chosen, 5, "curves of pairs")
    edges = list(itertools.combinations(columns, 2))
    rows = [_edge(weights, first, second, tasks) for first, second in edges]
    drawn = _grid_of_axes(len(edges)) if axes is None else panels(axes, len(edges))
    for ax, edge, on_edge in zip(drawn, edges, rows, strict=True):
        along = weights[on_edge][:, list(edge)]
        there = {name: np.asarray(values)[on_edge] for name, values in values_by_name.items()}
        two = (tasks[edge[0]], tasks[edge[1]])
        curves(ax, along, there, two, higher_is_better, reference=reference, label=label)
        ax.set_xlabel(_weight_of(two, 26), **VERBATIM)
        ax.set_xticks([0, 0.5, 1])
    limits = np.array([ax.get_ylim() for ax in drawn])
    for ax in drawn:
        ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
        place = ax.get_subplotspec()
        if axes is None and place is not None and not place.is_first_col():
            ax.set_ylabel("")
    if axes is None and len(values_by_name) > 1:
        handles, names = _legend_entries(drawn[0])
        figure = drawn[0].figure
        room = 11 * figure.bbox.width / figure.dpi
        ncols = max(1, min(len(names), int(room / (max(map(len, names)) + 7))))
        above: dict[str, Any] = {"loc": "outside upper center", "ncols": ncols, "frameon": False}
        as_written(figure.legend(handles, names, **above))
    return drawn


def _edge(
    weights: Float[np.ndarray, "A T"], first: int, second: int, tasks: tuple[str, ...]
) -> Bool[np.ndarray, " A"]:
    """The weightings in which two tasks alone have weight."""
    others = np.delete(weights, (first, second), axis=1)
    on_edge = np.isclose(others, 0).all(1) & np.isclose(weights[:, [first, second]].sum(1), 1)
    if on_edge.sum() < 2:
        raise ValueError(
            f"{on_edge.sum()} of the {len(weights)} weightings are of {tasks[first]} and "
            f"{tasks[second]} alone, and a curve needs two: take weightings that reach the edges "
            "of the simplex, as those of `simplex_grid` do, or leave a task out by `chosen`."
        )
    return on_edge


def _grid_of_axes(count: int) -> "list[Axes]":
    import matplotlib.pyplot as plt

    across = count if count <= 4 else -(-count // 2)
    down = -(-count // across)
    size = (2.2 * across + 0.8, 2.3 * down + 0.6)
    _, axes = plt.subplots(
        down, across, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for spare in axes.flat[count:]:
        spare.remove()
    return list(axes.flat[:count])


def _star(
    ax: "Axes",
    x: Float[np.ndarray, " A"],
    y: Float[np.ndarray, " A"],
    higher_is_better: bool,
    fill: str,
) -> None:
    row = best_row(y, higher_is_better)
    if row is not None:
        ax.plot(x[row], y[row], **star(fill))


def _legend_entries(ax: "Axes") -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles, names = ax.get_legend_handles_labels()
    return [*handles, Line2D([], [], **star("white"))], [*names, "best of each"]


def _weight_of(tasks: tuple[str, ...], width: int) -> str:
    first, second = map(one_line, tasks)
    weight, rest = f"weight of {first}", f"(the rest is {second})"
    return f"{wrapped(weight, width)}\n{wrapped(rest, width)}"
