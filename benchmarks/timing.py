"""Side-by-side timing: the contestants take turns, so that whatever slows the machine slows all."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Contestants = Mapping[str, Callable[[], Any]]

PAUSE = 0.02
"""Seconds before every timed call, for idle threads of the last contestant to stop spinning."""


class Timing(NamedTuple):
    first: float
    best: float
    median: float


def race(contestants: Contestants, repeats: int) -> dict[str, Timing]:
    """Seconds of the first call, with compilation, and of the `repeats` later ones."""
    first = {name: seconds(call) for name, call in contestants.items()}
    for call in contestants.values():
        seconds(call)
    later: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, call in contestants.items():
            time.sleep(PAUSE)
            later[name].append(seconds(call))
    return {
        name: Timing(first[name], min(times), statistics.median(times))
        for name, times in later.items()
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def show(title: str, timings: Mapping[str, Timing], reference: str = "bayesmerge") -> None:
    """A table; its ratios are those of medians and of best times to those of `reference`."""
    _, unit_best, unit = timings[reference]
    print(f"\n{title}")
    print(f"{'':32}{'first call':>12}{'median':>12}{'ratio':>8}{'best':>12}{'ratio':>8}")
    for name, (first, best, median) in timings.items():
        usual = f"{1e3 * median:9.2f} ms{median / unit:8.2f}"
        print(f"{name:32}{first:10.3f} s{usual}{1e3 * best:9.2f} ms{best / unit_best:8.2f}")
