"""Pictures that set the values of several surfaces against each other, whatever the weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from bayesmerge.previews.pareto import front as pareto_front
from bayesmerge.previews.pictures.style import (
    DASHES,
    axes_or_new,
    colour,
    line_style,
    previews_and_reference,
)
from bayesmerge.previews.pictures.text import VERBATIM, artist_label, as_written, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def histogram(
    ax: "Axes | None",
    values_by_name: Mapping[str, Float[np.ndarray, " _"]],
    *,
    reference: str | None = None,
    bins: int = 20,
    label: str = "metric",
) -> "Axes":
    """How many weightings of every surface attain each value, on shared bins.

    Surfaces are outlines, and the `reference` is filled grey. Where the surfaces differ in their
    number of weightings the heights are shares of it. The legend counts NaN, which are left out.

    Source: FP Figs. 3, 4 and 6.
    """
    from matplotlib.patches import StepPatch

    surfaces, truth = previews_and_reference(values_by_name, reference)
    drawn = surfaces if truth is None or reference is None else {reference: truth, **surfaces}
    pooled = np.concatenate(list(drawn.values()))
    if np.isnan(pooled).all():
        raise ValueError("the metric is NaN at every weighting: there is nothing to count.")
    ax = axes_or_new(ax)
    edges = np.histogram_bin_edges(pooled[np.isfinite(pooled)], bins)
    as_shares = len({len(values) for values in drawn.values()}) > 1
    for name, values in drawn.items():
        height = np.histogram(values[np.isfinite(values)], edges)[0].astype(float)
        missing = int(np.isnan(values).sum())
        look = _outline(list(surfaces).index(name)) if name in surfaces else _FILLED
        steps = StepPatch(
            height / len(values) if as_shares else height,
            edges,
            label=artist_label(f"{name} ({missing} NaN)" if missing else name),
            **look,
        )
        ax.add_patch(steps)
    ax.autoscale_view()
    ax.set_ylim(bottom=0)
    ax.set_xlabel(wrapped(label, 60), **VERBATIM)
    ax.set_ylabel("share of weightings" if as_shares else "number of weightings")
    above: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    as_written(ax.legend(frameon=False, handlelength=3, ncols=min(len(drawn), 3), **above))
    return ax


_FILLED: dict[str, Any] = {"facecolor": "0.8", "edgecolor": "0.55", "fill": True, "zorder": 1}


def _outline(index: int) -> dict[str, Any]:
    return {
        "edgecolor": colour(index),
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 2,
        "fill": False,
        "zorder": 2 + index / 100,
    }


def front(
    ax: "Axes | None",
    points_by_name: Mapping[str, Float[np.ndarray, "_ 2"]],
    metrics: tuple[str, str],
    higher_is_better: bool = True,
    *,
    reference: str | None = None,
    zoom: bool = False,
) -> "Axes":
    """Two metrics of every weighting as faint dots, and as a step line the Pareto front of every
    surface: what no other weighting of it betters in both. The `reference` is grey.

    - `points_by_name`: the two metrics of every weighting, in the order of `metrics`.
    - `higher_is_better`: of both.
    - `zoom`: whether the axes end at the fronts rather than at all dots.
    """
    surfaces, truth = previews_and_reference(points_by_name, reference)
    ax = axes_or_new(ax)
    where: Literal["pre", "post"] = "pre" if higher_is_better else "post"
    looks = [line_style(index) for index in range(len(surfaces))]
    drawn = list(zip(surfaces.items(), looks, strict=True))
    if truth is not None and reference is not None:
        grey = {"color": "0.6", "linestyle": "-", "marker": "o", "markersize": 8, "linewidth": 5}
        drawn.insert(0, ((reference, truth), grey))
    edges = []
    for (name, points), look in drawn:
        dots = {"color": look["color"], "marker": look["marker"], "alpha": 0.25}
        ax.plot(*points.T, linestyle="", markersize=3, zorder=1, markeredgewidth=0, **dots)
        known = points[~np.isnan(points).any(1)]
        if len(known):
            known = known[pareto_front(known, higher_is_better)]
        edge = known[::-1] if higher_is_better else known
        ax.step(*edge.T, where=where, label=artist_label(name), zorder=2, **look)
        edges.append(edge)
    if zoom:
        ends = np.concatenate(edges)
        every = np.concatenate([points for (_, points), _ in drawn])
        least = 0.02 * (np.nanmax(every, axis=0) - np.nanmin(every, axis=0)) + 1e-9
        margin = np.maximum(0.3 * np.ptp(ends, axis=0), least)
        below, beyond = (margin, least) if higher_is_better else (least, margin)
        (left, bottom), (right, top) = ends.min(0) - below, ends.max(0) + beyond
        ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_xlabel(wrapped(metrics[0], 60), **VERBATIM)
    ax.set_ylabel(wrapped(metrics[1], 40), **VERBATIM)
    as_written(ax.legend(title="front", frameon=False))
    return ax
