"""Pictures of posteriors, and of one or several previews beside each other, into matplotlib axes.

`densities` draws posteriors, all else previews. Several are a mapping from names to previews of
the same tasks; `reference` names the one that the others predict, such as joint training. Every
function takes `metric`, an aggregate as `Preview.best` does, and axes to draw in, by default new
ones; `explore` writes a page instead.

Names are drawn as they are written: `$` and `_` mean nothing. `plt.style.use("bayesmerge.style")`
is the style of the tutorials.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from bayesmerge.previews import marginals, pictures
from bayesmerge.previews.explorer import explore
from bayesmerge.previews.result import Aggregate, Preview

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "densities",
    "explore",
    "fronts",
    "histogram",
    "pairs",
    "parallel_coordinates",
    "slices",
    "ternaries",
]


def densities(
    posteriors: Any,
    axes: "Iterable[Axes] | None" = None,
    *,
    names: Iterable[str] | None = None,
    model: Any = None,
) -> "list[Axes]":
    """The marginal density of every entry of θ, a panel each, of one posterior or of several, such
    as those of the tasks and their merge; the last is filled.

    - `posteriors`: a posterior, or a mapping from names to posteriors over the same θ. Those
      without marginals in closed form (products of mixtures) are drawn from 20,000 draws.
    - `names`: of entries, such as `"w[3]"`, or of leaves, for all of theirs; by default the first
      12 entries, and the figure says how many there are.
    - `model`: a `bayesmerge.numpyro.Model`, such as `bayesmerge.numpyro.target(…).model`: draws the
      sites in their own units, from draws.
    - `axes`: one for each entry, or new ones. In given axes the lines are labelled, and the legend
      is yours to place.

    **Returns** the axes.

    **Raises** `ValueError` for batches, posteriors over different θ, names that are no entries, and
    improper posteriors.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> beta = bm.Beta.from_concentrations
    >>> coins = {"a": beta(3.0, 2.0), "b": beta(5.0, 2.0)}
    >>> coins["merged"] = bm.merge(coins, [1.0, 1.0])
    >>> [ax.get_xlabel() for ax in bm.plots.densities(coins)]
    ['theta']

    ```
    """
    by_name = dict(posteriors) if isinstance(posteriors, Mapping) else {"posterior": posteriors}
    first = _require_same_layout(by_name)
    if model is None:
        entries, remark = marginals.chosen(marginals.leaves_of(first.layout), names)
        curves = {name: marginals.curves(q, entries) for name, q in by_name.items()}
    else:
        key, count = jax.random.key(0), marginals.NUM_DRAWS
        draws = {name: model.draws(q, key, count) for name, q in by_name.items()}
        leaves = marginals.leaves_of_sites(next(iter(draws.values())))
        entries, remark = marginals.chosen(leaves, names)
        curves = {name: marginals.site_curves(x, entries) for name, x in draws.items()}
    return pictures.densities(axes, curves, [e.name for e in entries], remark)


def _require_same_layout(posteriors: Mapping[str, Any]) -> Any:
    if not posteriors:
        raise ValueError("posteriors is empty: there is nothing to draw.")
    first_name, first = next(iter(posteriors.items()))
    for name, q in posteriors.items():
        if not hasattr(q, "log_density"):
            raise TypeError(
                f"posterior '{name}' is a {type(q).__name__}: give a posterior, or posteriors by "
                "name, as {'merged': q}."
            )
        if getattr(q, "batch_shape", ()):
            raise ValueError(
                f"posterior '{name}' is a batch of {q.batch_shape}: draw one of its members, such "
                "as `jax.tree.map(lambda x: x[0], q)`."
            )
        first.layout.require_same(q.layout, f"'{first_name}' and '{name}'")
    return first


def ternaries(
    previews: Mapping[str, Preview],
    metric: Aggregate = None,
    axes: "Iterable[Axes] | None" = None,
    *,
    reference: str | None = None,
    **options: Any,
) -> "list[Axes]":
    """A contour over the simplex of three weights for every preview, on one colour scale with one
    colour bar: FP Figs. 3 to 9. The best of each is starred, that of the reference a diamond.

    - `options`: `levels`, their number or edges; `cmap`, `label`.

    ```python
    >>> import numpy as np, bayesmerge as bm
    >>> alpha = bm.simplex_grid(3, 0.1)
    >>> seen = {"a": bm.Preview({"x": alpha[:, 0]}, alpha, ("u", "v", "w"))}
    >>> [ax.get_title() for ax in bm.plots.ternaries(seen)]
    ['a']

    ```
    """
    first, values = _common(previews, metric)
    _require_simplex(first)
    options = {"label": first.label(metric), "reference": reference} | options
    if isinstance(metric, str) and metric in first.details:
        options = {"starred": False} | options
    return pictures.ternaries(
        axes, first.weights, values, first.tasks, first.higher_is_better, **options
    )


def pairs(
    previews: Mapping[str, Preview],
    metric: Aggregate = None,
    axes: "Iterable[Axes] | None" = None,
    *,
    reference: str | None = None,
    **options: Any,
) -> "list[Axes]":
    """For every two tasks the metric where only these two have weight, previews as lines and the
    reference as dots; one panel for two tasks.

    - `options`: `chosen`, names of at most five tasks; `label`.
    """
    first, values = _common(previews, metric)
    options = {"label": first.label(metric), "reference": reference} | options
    return pictures.pairs(
        axes, first.weights, values, first.tasks, first.higher_is_better, **options
    )


def histogram(
    previews: Mapping[str, Preview],
    metric: Aggregate = None,
    ax: "Axes | None" = None,
    *,
    reference: str | None = None,
    **options: Any,
) -> "Axes":
    """How many weightings of every preview attain each value: FP Figs. 3, 4 and 6.

    - `options`: `bins`, `label`.
    """
    first = _first(previews)
    values = {name: seen.values(metric) for name, seen in previews.items()}
    options = {"label": first.label(metric), "reference": reference} | options
    return pictures.histogram(ax, values, **options)


def fronts(
    previews: Mapping[str, Preview],
    metrics: tuple[str, str],
    ax: "Axes | None" = None,
    *,
    reference: str | None = None,
    **options: Any,
) -> "Axes":
    """Pareto fronts over two metrics, all weightings as faint dots.

    - `metrics`: their names.
    - `options`: `zoom` to the fronts.
    """
    first = _first(previews)
    if isinstance(metrics, str) or len(metrics) != 2:
        raise ValueError(f"metrics is {metrics!r}, and a front is drawn over the names of two.")
    points = {
        name: np.stack([seen.values(metric) for metric in metrics], axis=1)
        for name, seen in previews.items()
    }
    return pictures.front(
        ax, points, metrics, first.higher_is_better, reference=reference, **options
    )


def parallel_coordinates(
    preview: Preview, metric: Aggregate = None, ax: "Axes | None" = None, **options: Any
) -> "Axes":
    """Every weighting as a line over one axis for each task and one for the metric, the best on
    top: for more than three tasks.

    - `options`: `top`, how many are drawn thick; `vmin`, `vmax`, `cmap`, `label`.
    """
    options = {"label": preview.label(metric)} | options
    values = preview.values(metric)
    return pictures.parallel_coordinates(
        ax, preview.weights, values, preview.tasks, preview.higher_is_better, **options
    )


def slices(
    preview: Preview,
    metric: Aggregate = None,
    axes: "Iterable[Axes] | None" = None,
    **options: Any,
) -> "list[Axes]":
    """For every two tasks the best value attainable at each of their weights, over those of the
    others: for more than three tasks.

    - `options`: `chosen`, names of at most eight tasks; `vmin`, `vmax`, `cmap`, `label`.
    """
    options = {"label": preview.label(metric)} | options
    values = preview.values(metric)
    return pictures.slices(
        axes, preview.weights, values, preview.tasks, preview.higher_is_better, **options
    )


def _require_simplex(seen: Preview) -> None:
    weights = seen.weights
    if weights.shape[1] != 3 or not (np.allclose(weights.sum(1), 1) and (weights >= 0).all()):
        raise ValueError(
            f"the previews are of {weights.shape[1]} tasks, with weights that sum to "
            f"{weights.sum(1).min():.3g} to {weights.sum(1).max():.3g}: a triangle has three that "
            "are ≥ 0 and sum to 1. Use `Preview.plot`, `slices` or `parallel_coordinates`."
        )
    if np.linalg.matrix_rank(weights - weights[:1]) < 2:
        raise ValueError("the weightings lie on one line: there is no triangle to draw.")


def _first(previews: Any) -> Preview:
    if not isinstance(previews, Mapping):
        raise TypeError(
            f"previews is a {type(previews).__name__}: give them by name, as {'merged': preview}."
        )
    if not previews:
        raise ValueError("previews is empty: there is nothing to draw.")
    first, *others = previews.values()
    if any(seen.higher_is_better != first.higher_is_better for seen in others):
        raise ValueError(
            "some previews count higher as better and others do not: they do not measure the same."
        )
    if any(set(seen.metrics) != set(first.metrics) for seen in others):
        names = [tuple(seen.metrics) for seen in previews.values()]
        raise ValueError(
            f"previews have different metrics, {names}: draw those that measure the same."
        )
    return first


def _common(
    previews: Mapping[str, Preview], metric: Aggregate
) -> tuple[Preview, dict[str, Float[np.ndarray, " A"]]]:
    first = _first(previews)
    for name, seen in previews.items():
        same = seen.tasks == first.tasks and seen.weights.shape == first.weights.shape
        if not same or not np.allclose(seen.weights, first.weights, atol=1e-6):
            raise ValueError(
                f"preview '{name}' has other weightings than '{next(iter(previews))}': previews "
                "beside each other must have the same tasks and weightings."
            )
    return first, {name: seen.values(metric) for name, seen in previews.items()}
