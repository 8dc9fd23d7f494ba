"""Pictures of a metric over task weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = np.sqrt(3) / 2
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, HEIGHT]])
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw(
    ax: "Axes | None",
    weights: Float[np.ndarray, "A T"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    higher_is_better: bool,
    **options: Any,
) -> "Axes":
    """The picture that suits the number of tasks; see `Preview.plot`."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    best = np.nanmax if higher_is_better else np.nanmin
    values = np.where(np.isfinite(values), values, np.nan)
    on_simplex = np.allclose(weights.sum(1), 1) and (weights >= 0).all()
    spans = np.linalg.matrix_rank(weights - weights[:1]) == len(tasks) - 1
    by_number = {2: curve, 3: ternary}
    picture = by_number.get(len(tasks), profiles) if on_simplex and spans else profiles
    picture(ax, weights, values, tasks, best, **options)
    return ax


def ternary(
    ax: "Axes",
    weights: Float[np.ndarray, "A 3"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    best: Callable[[np.ndarray], float] = np.nanmax,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    levels: int = 12,
    cmap: str = "viridis",
    label: str = "metric",
    colorbar: bool = True,
) -> None:
    """A filled contour over the simplex of three weights, a corner for each task; the best
    weighting is marked. Triangles with a NaN are left white."""
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    missing = np.isnan(values)
    low = float(np.nanmin(values)) if vmin is None else vmin
    high = float(np.nanmax(values)) if vmax is None else vmax
    high = high if high > low else low + max(1e-6 * abs(low), 1e-9)
    edges = np.linspace(low, high, levels + 1)
    if vmin is None and vmax is None:
        edges = np.asarray(MaxNLocator(levels).tick_values(low, high))
    outside = (values[~missing] < low).any() or (values[~missing] > high).any()
    points = weights @ CORNERS
    triangles = Triangulation(*points.T)
    triangles.set_mask(missing[triangles.triangles].any(axis=1))
    filled = ax.tricontourf(
        triangles,
        np.where(missing, low, values),
        levels=edges,
        cmap=cmap,
        extend="both" if outside else "neither",
    )
    ax.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="0.2", linewidth=1)
    star = points[np.flatnonzero(values == best(values))[0]]
    ax.plot(*star, "*", color="white", markeredgecolor="black", markersize=13, zorder=3)
    _corner_labels(ax, tasks)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_xlim(-0.06, 1.06)
    ax.set_ylim(-0.12, HEIGHT + 0.1)
    if colorbar:
        ax.figure.colorbar(filled, ax=ax, label=label, shrink=0.8)


def curve(
    ax: "Axes",
    weights: Float[np.ndarray, "A 2"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    best: Callable[[np.ndarray], float] = np.nanmax,
    *,
    label: str = "metric",
    **_: Any,
) -> None:
    """The metric against the weight of the first of two tasks; the best is marked."""
    order = np.argsort(weights[:, 0])
    star = np.flatnonzero(values == best(values))[0]
    ax.plot(weights[order, 0], values[order], "o-", color=COLOURS[0], markersize=4)
    ax.plot(weights[star, 0], values[star], "*", color=COLOURS[1], markersize=13)
    ax.set_xlabel(f"weight of {tasks[0]} (the rest is {tasks[1]})")
    ax.set_ylabel(label)


def profiles(
    ax: "Axes",
    weights: Float[np.ndarray, "A T"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    best: Callable[[np.ndarray], float] = np.nanmax,
    *,
    label: str = "metric",
    **_: Any,
) -> None:
    """For every task the best value attainable at each of its weights, over the other weights."""
    styles = ("-", "--", "-.", ":")
    for t, task in enumerate(tasks):
        places, group = _groups(weights[:, t])
        seen = [g for g in range(len(places)) if not np.isnan(values[group == g]).all()]
        attained = [best(values[group == g]) for g in seen]
        style = styles[t % len(styles)]
        colour = COLOURS[t % len(COLOURS)]
        ax.plot(places[seen], attained, style, color=colour, marker="o", markersize=4, label=task)
    ax.set_xlabel("weight of the task")
    ax.set_ylabel(f"best {label} over the other weights")
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
