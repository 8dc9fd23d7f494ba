"""What a preview found: metrics by weighting, the best, and how well it predicts a reference."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bayesmerge import plots

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


class Best(NamedTuple):
    """The best weighting: its row, its α by task name, and the metric there."""

    row: int
    weights: dict[str, float]
    value: float


class Comparison(NamedTuple):
    """How a preview differs from a reference over the same weightings.

    - `mse`: mean (preview − reference)² (FP Table 1).
    - `rank_correlation`: Spearman's, of the two metrics over weightings.
    - `regret`: the reference's best value minus its value where the preview is best: what is lost
      by trusting the preview. Never negative.
    - `compared`: the number of weightings at which both are finite, which these are taken over.
    """

    mse: float
    rank_correlation: float
    regret: float
    compared: int


@dataclasses.dataclass(frozen=True, repr=False)
class Preview:
    """Metrics of A weightings of T tasks.

    - `metrics`: name → values, a float array (A,), NaN where the metric was NaN.
    - `weights`: α, shape (A, T).
    - `tasks`: T names.
    - `higher_is_better`: whether the best value is the largest (an accuracy) or not (a loss).

    Where there are several metrics, `best`, `compare` and `plot` take the name of one, or else the
    mean of all.
    """

    metrics: Mapping[str, Float[np.ndarray, " A"]]
    weights: Float[np.ndarray, "A T"]
    tasks: tuple[str, ...]
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        count = {name: int(np.isnan(x).sum()) for name, x in self.metrics.items()}
        for name, missing in count.items():
            if missing:
                first = self.weights[np.isnan(self.metrics[name])][0]
                warnings.warn(
                    f"metric '{name}' is NaN at {missing} of {len(self.weights)} weightings, first "
                    f"at {first.tolist()}. They are kept as NaN, and best() passes over them.",
                    stacklevel=3,
                )

    def __repr__(self) -> str:
        what = f"{len(self.weights)} weightings of {', '.join(self.tasks)}"
        return f"Preview({what}; metrics {', '.join(self.metrics)})"

    def values(self, metric: str | None = None) -> Float[np.ndarray, " A"]:
        """One metric, or the mean of all, at every weighting."""
        if metric is None:
            return np.mean(list(self.metrics.values()), axis=0)
        if metric not in self.metrics:
            raise ValueError(f"metric is {metric!r}, and there are {tuple(self.metrics)}.")
        return self.metrics[metric]

    def best(self, metric: str | None = None) -> Best:
        """The weighting with the best value of `metric`.

        **Raises** `ValueError` where the metric is NaN everywhere.

        ```python
        >>> import numpy as np, bayesmerge as bm
        >>> alpha = bm.simplex_grid(2, 0.5)
        >>> bm.Preview({"accuracy": np.array([0.7, 0.9, 0.8])}, alpha, ("a", "b")).best()
        Best(row=1, weights={'a': 0.5, 'b': 0.5}, value=0.9)

        ```
        """
        values = self.values(metric)
        row = self._best_row(values)
        weights = dict(zip(self.tasks, self.weights[row].tolist(), strict=True))
        return Best(row, weights, float(values[row]))

    def compare(self, reference: Any, metric: str | None = None) -> Comparison:
        """How well this preview predicts `reference`.

        - `reference`: a `Preview` over the same weightings (e.g. from `joint_training`), or its
          values, shape (A,).

        **Raises** `ValueError` for other weightings, or where no two values are comparable.

        ```python
        >>> import numpy as np, bayesmerge as bm
        >>> alpha = bm.simplex_grid(2, 0.5)
        >>> seen = bm.Preview({"accuracy": np.array([0.7, 0.9, 0.8])}, alpha, ("a", "b"))
        >>> round(seen.compare(np.array([0.7, 0.8, 0.9])).regret, 3)
        0.1

        ```

        Source: FP Tables 1 and 2.
        """
        from scipy.stats import spearmanr

        values = self.values(metric)
        truth = self._reference_values(reference, metric)
        both = np.isfinite(values) & np.isfinite(truth)
        if not both.any():
            raise ValueError("preview and reference are never both a number: nothing to compare.")
        values, truth = values[both], truth[both]
        spread = np.ptp(values) > 0 and np.ptp(truth) > 0
        rank_correlation = spearmanr(values, truth).statistic if spread else np.nan
        regret = truth[self._best_row(truth)] - truth[self._best_row(values)]
        return Comparison(
            mse=float(np.mean((values - truth) ** 2)),
            rank_correlation=float(rank_correlation),
            regret=float(regret if self.higher_is_better else -regret),
            compared=int(both.sum()),
        )

    def to_dataset(self) -> "xr.Dataset":
        """All of it with named axes: the metrics and α over `weighting` (and `task`)."""
        import xarray as xr

        variables: dict[str, Any] = {
            name: ("weighting", np.asarray(values)) for name, values in self.metrics.items()
        }
        return xr.Dataset(
            {"weights": (("weighting", "task"), self.weights), **variables},
            coords={"task": list(self.tasks)},
            attrs={"higher_is_better": int(self.higher_is_better)},
        )

    def plot(self, metric: str | None = None, ax: "Axes | None" = None, **options: Any) -> "Axes":
        """The metric over the weights: a filled ternary contour for three tasks, a curve for two,
        and for more the best value attainable at every weight of each task.

        - `metric`: its name, or `None` for the mean of all.
        - `ax`: matplotlib axes to draw in; by default new ones.
        - `options`: `label`, and for three tasks `vmin`, `vmax` (one colour scale across panels),
          `levels`, `cmap`, `colorbar`.

        **Returns** the axes.
        """
        values = self.values(metric)
        self._best_row(values)
        options.setdefault("label", metric or ", ".join(self.metrics))
        return plots.draw(ax, self.weights, values, self.tasks, self.higher_is_better, **options)

    def _best_row(self, values: Float[np.ndarray, " A"]) -> int:
        if np.isnan(values).all():
            raise ValueError("the metric is NaN at every weighting: there is no best one.")
        return int(np.nanargmax(values) if self.higher_is_better else np.nanargmin(values))

    def _reference_values(self, reference: Any, metric: str | None) -> Float[np.ndarray, " A"]:
        if isinstance(reference, Preview):
            if reference.tasks != self.tasks:
                raise ValueError(
                    f"the reference weighs the tasks {reference.tasks}, and this preview "
                    f"{self.tasks}: give them in the same order."
                )
            if reference.higher_is_better != self.higher_is_better:
                raise ValueError(
                    "one of preview and reference counts higher as better and the other does not: "
                    "they do not measure the same."
                )
            same = self.weights.shape == reference.weights.shape
            if not same or not np.allclose(self.weights, reference.weights, atol=1e-6):
                raise ValueError(
                    f"the reference has {reference.weights.shape[0]} weightings of "
                    f"{reference.tasks}, and they must be the {len(self.weights)} of this preview."
                )
            return reference.values(metric)
        truth = np.asarray(reference, float)
        if truth.shape != (len(self.weights),):
            raise ValueError(
                f"the reference has shape {truth.shape}, and it must have one value for each of "
                f"the {len(self.weights)} weightings."
            )
        return truth
