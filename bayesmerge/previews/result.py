"""What a preview found: metrics by weighting, the best, and how well it predicts a reference."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from bayesmerge.arrays import in_row_order
from bayesmerge.families.show import one_line, table
from bayesmerge.previews import file, pictures
from bayesmerge.previews.comparison import Comparison, compared
from bayesmerge.previews.pareto import Front, best_row, front, hypervolume
from bayesmerge.tasks import in_float64, texts

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


Aggregate: TypeAlias = str | Mapping[str, float] | Callable[[Any], Any] | None
"""A metric's name, `"worst"`, weights of metrics by name, a function of metrics in a leading axis
such as `np.median`, or `None` for their mean."""


class Best(NamedTuple):
    """The best weighting: its row, its α by task name, and the metric there."""

    row: int
    weights: dict[str, float]
    value: float


@dataclasses.dataclass(frozen=True, repr=False)
class Preview:
    """Metrics of A weightings of T tasks.

    - `metrics`: name → values, a float array (A,), NaN where the metric was NaN.
    - `weights`: α, shape (A, T).
    - `tasks`: T names.
    - `higher_is_better`: whether the best value is the largest (an accuracy) or not (a loss).
    - `details`: how each model was found, name → float array (A,); see `preview`.

    Where there are several metrics, `best`, `compare` and `plot` are of their mean, or of another
    aggregate: a metric's or detail's name, `"worst"` for the worst of all, a mapping of metrics to
    weights, or a function such as `np.median` of all metrics in a leading axis.
    """

    metrics: Mapping[str, Float[np.ndarray, " A"]]
    weights: Float[np.ndarray, "A T"]
    tasks: tuple[str, ...]
    higher_is_better: bool = True
    details: Mapping[str, Float[np.ndarray, " A"]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field, values in self._by_position().items():
            object.__setattr__(self, field, values)
        shape = np.shape(self.weights)
        if len(shape) != 2 or shape[1] != len(self.tasks):
            raise ValueError(
                f"weights have shape {shape}, and for the tasks {self.tasks} it must be "
                f"(A, {len(self.tasks)})."
            )
        for name, values in {**self.details, **self.metrics}.items():
            if np.shape(values) != shape[:1]:
                raise ValueError(
                    f"'{name}' has shape {np.shape(values)}, and it must have one value for each "
                    f"of the {shape[0]} weightings."
                )
        if set(self.metrics) & set(self.details):
            both = sorted(set(self.metrics) & set(self.details))
            raise ValueError(f"{both} are metrics and details: give the metrics other names.")
        count = {name: int(np.isnan(x).sum()) for name, x in self.metrics.items()}
        for name, missing in count.items():
            if missing:
                first = self.weights[np.isnan(self.metrics[name])][0]
                warnings.warn(
                    f"metric '{name}' is NaN at {missing} of {len(self.weights)} weightings, first "
                    f"at {first.tolist()}. They are kept as NaN, and best() passes over them.",
                    stacklevel=3,
                )

    def _by_position(self) -> dict[str, Any]:
        """The fields as arrays, in the order of their labels where they have any."""
        tasks = texts(self.tasks, "tasks")
        columns = {
            field: dict(zip(texts([*named], field), map(in_row_order, named.values()), strict=True))
            for field, named in (("metrics", self.metrics), ("details", self.details))
        }
        weights = in_float64(self.weights, tasks) if np.ndim(self.weights) else self.weights
        return {"tasks": tasks, "weights": weights, **columns}

    def __repr__(self) -> str:
        better = "higher" if self.higher_is_better else "lower"
        tasks = ", ".join(map(one_line, self.tasks))
        head = f"Preview of {len(self.weights)} weightings of {tasks} ({better} is better)"
        known = {name: x for name, x in self.metrics.items() if not np.isnan(x).all()}
        rows = {name: best_row(x, self.higher_is_better) for name, x in known.items()}
        columns: dict[str, list[Any]] = {
            "best": [self.metrics[name][row] for name, row in rows.items()],
            "worst": [
                (np.nanmin if self.higher_is_better else np.nanmax)(x) for x in known.values()
            ],
        }
        for t, task in enumerate(self.tasks):
            columns[f"weight of {task}"] = [self.weights[row, t] for row in rows.values()]
        return f"{head}\n{table(columns, list(rows))}"

    @classmethod
    def of(cls, table: file.Table) -> "Preview":
        """The whole of a table."""
        weights, tasks = table.weights, table.tasks
        return cls(table.metrics, weights, tasks, table.higher_is_better, table.details)

    def values(self, metric: Aggregate = None) -> Float[np.ndarray, " A"]:
        """An aggregate of the metrics, by default their mean, at every weighting."""
        if isinstance(metric, str):
            known = {**self.details, **self.metrics}
            if metric not in known and metric != "worst":
                raise ValueError(f"metric is {metric!r}, and there are {tuple(known)} and 'worst'.")
            worst = np.min if self.higher_is_better else np.max
            return known[metric] if metric in known else worst(self._stacked(), axis=0)
        if isinstance(metric, Mapping):
            self._require_known(metric, "metric")
            if not metric:
                raise ValueError("metric is an empty mapping: give weights of metrics by name.")
            return sum(w * self.metrics[name] for name, w in metric.items())  # type: ignore[return-value]
        if metric is not None and not callable(metric):
            raise TypeError(
                f"metric is {metric!r}, and it must be a metric's name, 'worst', a mapping of "
                "metrics to weights, a function, or None for their mean."
            )
        combine = np.mean if metric is None else metric
        return np.asarray([combine(column) for column in self._stacked().T], float)

    def label(self, metric: Aggregate = None) -> str:
        """What `values(metric)` are, in words."""
        names = ", ".join(self.metrics)
        if isinstance(metric, str):
            return (
                f"worst of {names}" if metric == "worst" and metric not in self.metrics else metric
            )
        if isinstance(metric, Mapping):
            return " + ".join(f"{w:g} {name}" for name, w in metric.items())
        if metric is None:
            return names if len(self.metrics) == 1 else f"mean of {names}"
        return f"{getattr(metric, '__name__', 'aggregate')} of {names}"

    def best(
        self,
        metric: Aggregate = None,
        *,
        at_least: Mapping[str, float] | None = None,
        at_most: Mapping[str, float] | None = None,
    ) -> Best:
        """The weighting with the best value of `metric`.

        - `metric`: an aggregate, as above.
        - `at_least`, `at_most`: bounds on metrics or details by name, which a weighting must keep.

        **Raises** `ValueError` where the metric is NaN everywhere, or no weighting keeps the
        bounds.

        ```python
        >>> import numpy as np, bayesmerge as bm
        >>> accuracy = {"a": np.array([0.9, 0.7, 0.3]), "b": np.array([0.1, 0.6, 0.9])}
        >>> seen = bm.Preview(accuracy, bm.simplex_grid(2, 0.5), ("a", "b"))
        >>> seen.best("worst")
        Best(row=1, weights={'a': 0.5, 'b': 0.5}, value=0.6)
        >>> seen.best("a", at_least={"b": 0.8}).weights
        {'a': 1.0, 'b': 0.0}

        ```
        """
        kept = self._kept(at_least or {}, at_most or {})
        values = self.values(metric)
        if np.isnan(values[kept]).all() and not np.isnan(values).all():
            raise ValueError(
                f"the metric is NaN at each of the {kept.sum()} weightings that keep the bounds."
            )
        row = best_row(np.where(kept, values, np.nan), self.higher_is_better)
        return Best(row, self.weights_at(row), float(values[row]))

    def weights_at(self, row: int) -> dict[str, float]:
        """α of a row, by task name."""
        return dict(zip(self.tasks, self.weights[row].tolist(), strict=True))

    def front(self, *metrics: str, beyond: Mapping[str, float] | None = None) -> Front:
        r"""The Pareto front: weightings at which no metric can be better without another being
        worse, and the volume $\{v : r < v \le f\ \text{for some } f \text{ on the front}\}$.

        - `metrics`: names, by default all.
        - `beyond`: r, what is no gain, by name; by default the worst value of each metric.

        ```python
        >>> import numpy as np, bayesmerge as bm
        >>> accuracy = {"a": np.array([0.9, 0.7, 0.3]), "b": np.array([0.1, 0.6, 0.5])}
        >>> seen = bm.Preview(accuracy, bm.simplex_grid(2, 0.5), ("a", "b"))
        >>> seen.front(beyond={"a": 0.0, "b": 0.0}).rows.tolist()
        [0, 1]

        ```

        Source: Zitzler & Thiele (1999) for the hypervolume.
        """
        names = metrics or tuple(self.metrics)
        self._require_known(names, "metrics")
        self._require_known(beyond or {}, "beyond")
        values = np.stack([self.metrics[name] for name in names], axis=1)
        worst = np.nanmin if self.higher_is_better else np.nanmax
        finite = np.where(np.isfinite(values), values, np.nan)
        default = dict(zip(names, worst(finite, axis=0), strict=True))
        away_from = np.array([(default | dict(beyond or {}))[name] for name in names])
        rows = front(values, self.higher_is_better)
        volume = hypervolume(values[rows], away_from, self.higher_is_better)
        return Front(rows, self.weights[rows], values[rows], names, volume)

    def compare(self, reference: Any, metric: Aggregate = None) -> Comparison:
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
        truth, by_name = self._reference(reference, metric)
        fronts = (self.metrics, by_name) if len(self.metrics) > 1 else None
        return compared(self.values(metric), truth, self.higher_is_better, fronts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to a netCDF file (`.nc`), for `load`; the file stays as it was where
        writing fails."""
        found = np.ones(len(self.weights), bool)
        metrics, details = dict(self.metrics), dict(self.details)
        where = file.writable(path)
        table = file.Table(metrics, details, self.weights, self.tasks, self.higher_is_better, found)
        file.write(table, where)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Preview":
        """A preview that was saved, or what there is of one that was interrupted.

        **Warns** where weightings are missing; `preview(…, save=path)` measures them.

        **Raises** `ValueError` for a file that is no saved preview.

        ```python
        >>> import numpy as np, tempfile, pathlib, bayesmerge as bm
        >>> seen = bm.Preview({"loss": np.arange(3.0)}, bm.simplex_grid(2, 0.5), ("a", "b"), False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     seen.save(pathlib.Path(folder, "preview.nc"))
        ...     bm.Preview.load(pathlib.Path(folder, "preview.nc")).best().weights
        {'a': 0.0, 'b': 1.0}

        ```
        """
        table = file.read(Path(path))
        if table.found.all():
            return cls.of(table)
        warnings.warn(
            f"'{path}' is of an interrupted preview, with {table.found.sum()} of "
            f"{len(table.found)} weightings: only these are loaded. Go on with the same call of "
            "`preview` and save=….",
            stacklevel=2,
        )
        metrics = {name: x[table.found] for name, x in table.metrics.items()}
        details = {name: x[table.found] for name, x in table.details.items()}
        weights = table.weights[table.found]
        return cls(metrics, weights, table.tasks, table.higher_is_better, details)

    def to_dataset(self) -> "xr.Dataset":
        """All of it with named axes: the metrics and α over `weighting` (and `task`)."""
        import xarray as xr

        reserved = {"weights", "task", "weighting"} & {*self.metrics, *self.details}
        if reserved:
            raise ValueError(
                f"the metrics {sorted(reserved)} have names that the dataset uses itself: give "
                "them other names."
            )
        variables: dict[str, Any] = {
            name: ("weighting", np.asarray(values))
            for name, values in (dict(self.metrics) | dict(self.details)).items()
        }
        return xr.Dataset(
            {"weights": (("weighting", "task"), self.weights), **variables},
            coords={"task": list(self.tasks)},
            attrs={"higher_is_better": int(self.higher_is_better)},
        )

    def plot(self, metric: Aggregate = None, ax: "Axes | None" = None, **options: Any) -> "Axes":
        """The metric over the weights: a filled ternary contour for three tasks, a curve for two,
        and for more the best value attainable at every weight of each task.

        - `metric`: an aggregate, as above.
        - `ax`: matplotlib axes to draw in; by default new ones.
        - `options`: `label`; `starred`, whether the best is (details have none); and for three
          tasks `vmin`, `vmax` (one colour scale across panels), `levels`, `cmap`, `colorbar`.

        **Returns** the axes.
        """
        values = self.values(metric)
        best_row(values, self.higher_is_better)
        options.setdefault("label", self.label(metric))
        if isinstance(metric, str) and metric in self.details and metric not in self.metrics:
            options.setdefault("starred", False)
        return pictures.draw(ax, self.weights, values, self.tasks, self.higher_is_better, **options)

    def _stacked(self) -> Float[np.ndarray, "M A"]:
        return np.stack([*self.metrics.values()])

    def _require_known(self, names: Any, what: str, known: Any = None) -> None:
        known = self.metrics if known is None else known
        unknown = [name for name in names if not isinstance(name, str) or name not in known]
        if unknown:
            raise ValueError(f"{what} names {unknown}, and there are {tuple(known)}, one by one.")

    def _kept(
        self, at_least: Mapping[str, float], at_most: Mapping[str, float]
    ) -> Bool[np.ndarray, " A"]:
        known = {**self.details, **self.metrics}
        self._require_known([*at_least, *at_most], "a bound", known)
        kept = np.ones(len(self.weights), bool)
        for name, bound in at_least.items():
            kept &= known[name] >= bound
        for name, bound in at_most.items():
            kept &= known[name] <= bound
        if not kept.any():
            reached = {
                name: f"{np.nanmin(known[name]):.4g} to {np.nanmax(known[name]):.4g}"
                for name in {*at_least, *at_most}
            }
            raise ValueError(
                f"no weighting has at_least={dict(at_least)} and at_most={dict(at_most)}: over all "
                f"weightings these metrics reach {reached}. Loosen a bound, or preview a "
                "finer grid."
            )
        return kept

    def _reference(
        self, reference: Any, metric: Aggregate
    ) -> tuple[Float[np.ndarray, " A"], Mapping[str, Float[np.ndarray, " A"]]]:
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
            by_name = isinstance(metric, (str, Mapping)) and metric != "worst"
            if not by_name and set(self.metrics) != set(reference.metrics):
                raise ValueError(
                    f"the reference has the metrics {tuple(reference.metrics)}, and this preview "
                    f"{tuple(self.metrics)}: name one that both have as `metric`."
                )
            same = self.weights.shape == reference.weights.shape
            if not same or not np.allclose(self.weights, reference.weights, atol=1e-6):
                raise ValueError(
                    f"the reference has {reference.weights.shape[0]} weightings of "
                    f"{reference.tasks}, and they must be the {len(self.weights)} of this preview."
                )
            return reference.values(metric), reference.metrics
        truth = np.asarray(in_row_order(reference), float)
        if truth.shape != (len(self.weights),):
            raise ValueError(
                f"the reference has shape {truth.shape}, and it must have one value for each of "
                f"the {len(self.weights)} weightings."
            )
        return truth, {}
