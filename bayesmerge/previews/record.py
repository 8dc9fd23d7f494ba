"""What has been measured so far, kept in a file so that an interrupted sweep can go on."""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from bayesmerge.families.show import one_line
from bayesmerge.fingerprint import PYTHON, as_fingerprint, differences, fingerprint, settled
from bayesmerge.previews.executors import Compute
from bayesmerge.previews.file import Table, read, require_storable, writable, write
from bayesmerge.previews.measure import Measured, Metric, measure
from bayesmerge.previews.modes import Group

SECONDS_BETWEEN_WRITES = 15.0


class Record:
    """Metrics and details of A weightings as they are found.

    - `path`: of a file to keep them in; if it exists the record starts from it.
    - `starts`: what the numbers follow from, by name; a file that differs in it is refused.
    """

    def __init__(
        self,
        weights: Float[np.ndarray, "A T"],
        tasks: tuple[str, ...],
        higher_is_better: bool,
        path: Any = None,
        starts: Mapping[str, Any] | None = None,
    ):
        nothing = np.zeros(len(weights), bool)
        self.path = None if path is None else writable(path)
        self.starts = {"tasks": tasks, "higher_is_better": higher_is_better, **(starts or {})}
        self.table = Table({}, {}, weights, tasks, higher_is_better, nothing)
        if self.path is not None:
            require_storable(tasks)
            seen = fingerprint(**self.starts)
            self.table = self.table._replace(fingerprint=json.dumps(seen))
            if self.path.exists():
                self.table = self._continued(self.path, seen)

    def add(self, rows: Int[np.ndarray, " B"], measured: Measured) -> None:
        if self.table.metrics and set(self.table.metrics) != set(measured.metrics):
            raise ValueError(
                f"'{self.path}' has the metrics {tuple(self.table.metrics)}, and the metric "
                f"returned {tuple(measured.metrics)}: it is another one. Give another name."
            )
        if self.path is not None and not self.table.found.any():
            require_storable(measured.metrics)
            seen = settled(json.loads(self.table.fingerprint), fingerprint(**self.starts))
            self.table = self.table._replace(fingerprint=json.dumps(seen))
        pairs = (self.table.metrics, measured.metrics), (self.table.details, measured.details)
        for of_all, of_batch in pairs:
            for name, values in of_batch.items():
                column = of_all.setdefault(name, np.full(len(self.table.found), np.nan))
                column[rows] = values
        self.table.found[rows] = True

    def detail(self, name: str, values: Float[np.ndarray, " A"]) -> None:
        """What is known of all weightings before they are measured."""
        self.table.details[name] = np.asarray(values, float)

    @contextlib.contextmanager
    def kept(self) -> Iterator[Callable[[Any, Measured], None]]:
        """`add`, with the file written now and then, and at the end, whatever ends it."""
        written = time.perf_counter()

        def add(rows: Int[np.ndarray, " B"], measured: Measured) -> None:
            nonlocal written
            self.add(rows, measured)
            if time.perf_counter() - written > SECONDS_BETWEEN_WRITES:
                self._write()
                written = time.perf_counter()

        try:
            yield add
        finally:
            self._write()

    def _write(self) -> None:
        if self.path is None or not self.table.found.any():
            return
        try:
            write(self.table, self.path)
        except OSError as error:
            warnings.warn(f"the preview goes on and is not saved: {error}.", stacklevel=2)

    def _continued(self, path: Path, seen: dict[str, str]) -> Table:
        table = read(path)
        saved = as_fingerprint(table.fingerprint)
        if differing := differences(saved, seen):
            raise ValueError(
                f"'{path}' is of another preview: its posteriors, weightings, data or options "
                f"differ ({', '.join(differing)}). Continue with the same, or give another name."
            )
        if saved[PYTHON] != seen[PYTHON]:
            warnings.warn(
                f"'{path}' was written by another version of Python, so that it cannot be told "
                "whether the code of the metric is the same: make sure that it is.",
                stacklevel=4,
            )
        return table


def fill(
    record: Record,
    groups: Iterable[Group],
    metric: Metric,
    compute: Compute,
    streamed: bool,
    progress: bool | str,
) -> Table:
    """Measure what the record does not have yet, of groups that together are all weightings."""
    from tqdm import tqdm

    found = record.table.found
    name = one_line(progress) if isinstance(progress, str) else None
    bar = tqdm(total=len(found), desc=name, disable=not progress, unit=" weightings")
    with bar, record.kept() as keep:
        bar.update(int(found.sum()))
        for group in groups:
            left = ~found[group.rows]
            if not left.any():
                continue
            weightings = jax.tree.map(lambda x, left=left: x[left], group.weightings)
            at_once = compute.weightings_at_once or group.at_once
            rest = group._replace(weightings=weightings, rows=group.rows[left], at_once=at_once)
            for rows, measured in measure(rest, metric, compute.executor, streamed):
                keep(rows, measured)
                bar.update(len(rows))
    return record.table
