"""Pictures of a metric over task weights."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bayesmerge.result import Preview

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

HEIGHT = np.sqrt(3) / 2
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, HEIGHT]])
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_preview(preview: Preview, metric: str | None, ax: "Axes | None", **options: Any) -> "Axes":
    """The picture that suits the number of tasks; see `Preview.plot`."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    on_simplex = np.allclose(preview.weights.sum(1), 1) and (preview.weights >= 0).all()
    num_tasks = len(preview.tasks)
    if num_tasks == 3 and on_simplex and len(preview.weights) >= 3:
        ternary(ax, preview, metric, **options)
    elif num_tasks == 2 and on_simplex:
        curve(ax, preview, metric, **options)
    else:
        profiles(ax, preview, metric, **options)
    return ax


def ternary(
    ax: "Axes",
    preview: Preview,
    metric: str | None = None,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    levels: int = 12,
    cmap: str = "viridis",
    label: str | None = None,
    colorbar: bool = True,
) -> "ScalarMappable":
    """A filled contour over the simplex of three weights, a corner for each task; the best
    weighting is marked. Triangles with a NaN are left white."""
    values = preview.values(metric)
    missing = np.isnan(values)
    low = float(np.nanmin(values)) if vmin is None else vmin
    high = float(np.nanmax(values)) if vmax is None else vmax
    high = high if high > low else low + 1e-9
    from matplotlib.tri import Triangulation

    points = preview.weights @ CORNERS
    triangles = Triangulation(*points.T)
    triangles.set_mask(missing[triangles.triangles].any(axis=1))
    filled = ax.tricontourf(
        triangles,
        np.where(missing, low, values),
        levels=np.linspace(low, high, levels + 1),
        cmap=cmap,
        extend="both"
        if (values[~missing] < low).any() or (values[~missing] > high).any()
        else None,
    )
    ax.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="0.2", linewidth=1)
    best = preview.best(metric)
    ax.plot(*points[best.row], "*", color="white", markeredgecolor="black", markersize=13, zorder=3)
    _corner_labels(ax, preview.tasks)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_xlim(-0.06, 1.06)
    ax.set_ylim(-0.12, HEIGHT + 0.1)
    if colorbar and ax.figure is not None:
        ax.figure.colorbar(filled, ax=ax, label=label or metric or "metric", shrink=0.8)
    return filled


def curve(
    ax: "Axes", preview: Preview, metric: str | None = None, *, label: str | None = None, **_: Any
) -> None:
    """The metric against the weight of the first of two tasks."""
    values = preview.values(metric)
    order = np.argsort(preview.weights[:, 0])
    first, second = preview.tasks
    best = preview.best(metric)
    ax.plot(preview.weights[order, 0], values[order], "o-", color=COLOURS[0], markersize=4)
    ax.plot(preview.weights[best.row, 0], best.value, "*", color=COLOURS[1], markersize=13)
    ax.set_xlabel(f"weight of {first} (the rest is {second})")
    ax.set_ylabel(label or metric or "metric")


def profiles(
    ax: "Axes", preview: Preview, metric: str | None = None, *, label: str | None = None, **_: Any
) -> None:
    """For every task the best value attainable at each of its weights, over the other weights."""
    values = preview.values(metric)
    best = np.nanmax if preview.higher_is_better else np.nanmin
    styles = ("-", "--", "-.", ":")
    for t, task in enumerate(preview.tasks):
        places, group = _groups(preview.weights[:, t])
        seen = [g for g in range(len(places)) if not np.isnan(values[group == g]).all()]
        attained = [best(values[group == g]) for g in seen]
        style = styles[t % len(styles)]
        colour = COLOURS[t % len(COLOURS)]
        ax.plot(places[seen], attained, style, color=colour, marker="o", markersize=4, label=task)
    ax.set_xlabel("weight of the task")
    ax.set_ylabel(f"best {label or metric or 'metric'} over the other weights")
    ax.legend(title="task", frameon=False)


def _groups(
    weight: Float[np.ndarray, " A"], most: int = 25
) -> tuple[Float[np.ndarray, " G"], np.ndarray]:
    """Distinct weights, or the centres of equal bins where there are more than `most`."""
    places, group = np.unique(weight.round(9), return_inverse=True)
    if len(places) <= most:
        return places, group
    edges = np.linspace(weight.min(), weight.max(), 11)
    group = np.clip(np.digitize(weight, edges) - 1, 0, 9)
    return (edges[:-1] + edges[1:]) / 2, group


def _corner_labels(ax: "Axes", tasks: tuple[str, ...]) -> None:
    places = ((0.0, -0.05, "top"), (1.0, -0.05, "top"), (0.5, HEIGHT + 0.04, "bottom"))
    for task, (x, y, vertical) in zip(tasks, places, strict=True):
        ax.text(x, y, task, ha="center", va=vertical, fontsize="medium")
