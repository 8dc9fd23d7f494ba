"""The picture of one metric that suits the number of tasks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from bayesmerge.previews.pictures.curves import curve
from bayesmerge.previews.pictures.many import profiles
from bayesmerge.previews.pictures.style import axes_or_new, finite
from bayesmerge.previews.pictures.triangle import ternary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    ax: "Axes | None",
    weights: Float[np.ndarray, "A T"],
    values: Float[np.ndarray, " A"],
    tasks: tuple[str, ...],
    higher_is_better: bool,
    **options: Any,
) -> "Axes":
    """The picture that suits the number of tasks; see `Preview.plot`."""
    ax = axes_or_new(ax)
    on_simplex = np.allclose(weights.sum(1), 1) and (weights >= 0).all()
    spans = np.linalg.matrix_rank(weights - weights[:1]) == len(tasks) - 1
    by_number: dict[int, Callable[..., Any]] = {2: curve, 3: ternary}
    picture = by_number.get(len(tasks), profiles) if on_simplex and spans else profiles
    picture(ax, weights, finite(values), tasks, higher_is_better, **options)
    return ax
