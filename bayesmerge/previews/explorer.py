"""A page to point at task weightings in: surfaces of metrics side by side, linked, offline."""

import json
import os
from collections.abc import Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bayesmerge.files import whole, writable
from bayesmerge.previews.pictures import CORNERS

if TYPE_CHECKING:
    from bayesmerge.previews.result import Preview

PLOTLY, DATA = "@PLOTLY@", "@DATA@"
BY_NUMBER_OF_TASKS = {2: "curve", 3: "triangle"}


def explore(
    surfaces: "Mapping[str, Preview]",
    path: str | os.PathLike[str],
    *,
    reference: str | None = None,
    metric: str | None = None,
    title: str = "Preview of task weightings",
) -> Path:
    """One HTML file, opened without a network, in which the surfaces are linked: the weighting
    pointed at in one is marked in all, with its metrics, and is copied as Python.

    Three tasks are drawn as the simplex of their weights, a cell for each weighting; two as curves
    over the weight of the first; and others, or weights that do not sum to one, as points over each
    weight.

    - `surfaces`: name → `Preview`, all over the same weightings, with the same metrics.
    - `path`: where to write, ending in `.html`. About 5 MB, nearly all of it plotly.js.
    - `reference`: the name of the surface that regret is measured on, e.g. joint training.
    - `metric`: the name of the metric that is shown first, by default the mean of all.
    - `title`: the heading.

    **Returns** the path.

    **Raises** `ValueError` for surfaces that do not compare, or for a path that is not a page in an
    existing folder; `ImportError` without plotly (`pip install 'bayesmerge[explorer]'`).

    ```python
    >>> import tempfile, numpy as np, bayesmerge as bm
    >>> from bayesmerge.previews.explorer import explore
    >>> alpha = bm.simplex_grid(2, 0.5)
    >>> seen = bm.Preview({"accuracy": np.array([0.7, 0.9, 0.8])}, alpha, ("a", "b"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = explore({"isotropic": seen}, f"{folder}/page.html")
    ...     page.name, page.stat().st_size > 1e6
    ('page.html', True)

    ```

    Source: the use of previews described in FP §3.
    """
    path = Path(path)
    _check_path(path)
    _check_surfaces(surfaces)
    if reference is not None and reference not in surfaces:
        raise ValueError(
            f"reference is {reference!r}, which is none of the surfaces {tuple(surfaces)}: "
            "name one of them, or None."
        )
    metrics = tuple(next(iter(surfaces.values())).metrics)
    if metric is not None and metric not in metrics:
        raise ValueError(
            f"metric is {metric!r}, which is none of the metrics {metrics}: name one of them, or "
            "None."
        )
    page = _page(_plotly_js(), _data(surfaces, reference, metric, title))
    with whole(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _check_path(path: Path) -> None:
    if path.suffix != ".html":
        raise ValueError(
            f"path is '{path}', and the explorer is a web page: let it end in .html, as "
            f"'{path.with_suffix('.html') if path.name else 'explorer.html'}'."
        )
    writable(path, (".html",))


def _check_surfaces(surfaces: "Mapping[str, Preview]") -> None:
    if not isinstance(surfaces, Mapping):
        raise TypeError(
            f"surfaces is a {type(surfaces).__name__}: give them by name, as "
            "{'isotropic': preview}."
        )
    if not surfaces:
        raise ValueError("surfaces is empty: give at least one, as {'isotropic': preview}.")
    (one, first), *others = surfaces.items()
    for name, surface in others:
        different = _difference(first, surface)
        if different:
            raise ValueError(
                f"surfaces {one!r} and {name!r} have different {different}: they are compared at "
                "each weighting, so evaluate both with the same."
            )


def _difference(first: "Preview", other: "Preview") -> str | None:
    if first.tasks != other.tasks:
        return f"tasks, {first.tasks} and {other.tasks}"
    if first.weights.shape != other.weights.shape:
        return f"weights, {len(first.weights)} and {len(other.weights)} of them"
    if not np.allclose(first.weights, other.weights, atol=1e-6):
        row = int(np.abs(first.weights - other.weights).max(axis=1).argmax())
        return f"weights, {first.weights[row].tolist()} and {other.weights[row].tolist()}"
    if first.higher_is_better != other.higher_is_better:
        return f"higher_is_better, {first.higher_is_better} and {other.higher_is_better}"
    if set(first.metrics) != set(other.metrics):
        return f"metrics, {tuple(first.metrics)} and {tuple(other.metrics)}"
    return None


def _data(
    surfaces: "Mapping[str, Preview]", reference: str | None, metric: str | None, title: str
) -> dict[str, Any]:
    """What the page draws; surfaces and metrics by number, in order."""
    first = next(iter(surfaces.values()))
    weights, tasks = np.asarray(first.weights, float), first.tasks
    on_simplex = bool(np.allclose(weights.sum(1), 1) and (weights >= 0).all())
    spans = np.linalg.matrix_rank(weights - weights[:1]) == len(tasks) - 1
    kind = BY_NUMBER_OF_TASKS.get(len(tasks), "weights") if on_simplex and spans else "weights"
    points = weights @ CORNERS if kind == "triangle" else np.zeros((0, 2))
    return {
        "title": title,
        "tasks": list(tasks),
        "weights": weights.tolist(),
        "kind": kind,
        "onSimplex": on_simplex,
        "points": points.tolist(),
        "spacing": _spacing(points),
        "metrics": list(first.metrics),
        "first": None if metric is None else list(first.metrics).index(metric),
        "higherIsBetter": bool(first.higher_is_better),
        "reference": None if reference is None else list(surfaces).index(reference),
        "surfaces": [
            {"name": name, "values": [_numbers(surface.metrics[m]) for m in first.metrics]}
            for name, surface in surfaces.items()
        ],
    }


def _spacing(points: Float[np.ndarray, "A 2"]) -> float:
    """The usual distance from a point to its nearest neighbour."""
    from scipy.spatial import KDTree

    if len(points) < 2:
        return 0.0
    distances, _ = KDTree(points).query(points, k=2)
    return float(np.median(distances[:, 1]))


def _numbers(values: Float[np.ndarray, " A"]) -> list[float | None]:
    return [x if np.isfinite(x) else None for x in np.asarray(values, float).tolist()]


def _page(plotly_js: str, data: dict[str, Any]) -> str:
    template = resources.files(__package__).joinpath("explorer.html").read_text("utf-8")
    before, rest = template.split(PLOTLY)
    between, after = rest.split(DATA)
    return "".join((before, plotly_js, between, _json(data), after))


def _json(data: dict[str, Any]) -> str:
    """JSON that a script element can hold: in ASCII, and no tag opens or closes in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plotly_js() -> str:
    try:
        return str(import_module("plotly.offline").get_plotlyjs())
    except ImportError as error:
        raise ImportError(
            "the explorer draws with plotly: pip install 'bayesmerge[explorer]'"
        ) from error
