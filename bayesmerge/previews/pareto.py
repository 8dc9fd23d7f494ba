"""The best of many weightings: by one metric, or a Pareto front of several and the volume below."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Front(NamedTuple):
    """Weightings at which no metric can be better without another being worse.

    - `rows`: of them, by the first metric from best to worst.
    - `weights`: α there, shape (F, T).
    - `values`: of the metrics there, shape (F, M).
    - `metrics`: M names.
    - `hypervolume`: the volume between what is no gain and the front.
    """

    rows: Int[np.ndarray, " F"]
    weights: Float[np.ndarray, "F T"]
    values: Float[np.ndarray, "F M"]
    metrics: tuple[str, ...]
    hypervolume: float


def best_row(values: Float[np.ndarray, " A"], higher_is_better: bool) -> int:
    if np.isnan(values).all():
        raise ValueError("the metric is NaN at every weighting: there is no best one.")
    return int(np.nanargmax(values) if higher_is_better else np.nanargmin(values))


def front(values: Float[np.ndarray, "A M"], higher_is_better: bool) -> Int[np.ndarray, " F"]:
    """Rows of the Pareto front, by the first metric from best to worst; rows with a NaN are passed
    over."""
    import moocore

    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(finite):
        raise ValueError("one of the metrics is NaN at every weighting: there is no front.")
    rows = finite[
        moocore.is_nondominated(values[finite], maximise=higher_is_better, keep_weakly=True)
    ]
    order = np.argsort(values[rows, 0], kind="stable")
    return rows[order[::-1] if higher_is_better else order]


def hypervolume(
    values: Float[np.ndarray, "F M"], beyond: Float[np.ndarray, " M"], higher_is_better: bool
) -> float:
    """Of all that is better than `beyond` and no better than some row of `values`."""
    import moocore

    finite = values[np.isfinite(values).all(axis=1)]
    return float(moocore.hypervolume(finite, ref=beyond, maximise=higher_is_better))
