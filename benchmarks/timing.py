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
    median: float


def race(contestants: Contestants, repeats: int) -> dict[str, Timing]:
    """Seconds of the first call, with compilation, and the median of `repeats` later ones."""
    first = {name: seconds(call) for name, call in contestants.items()}
    for call in contestants.values():
        seconds(call)
    later: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, call in contestants.items():
            time.sleep(PAUSE)
            later[name].append(seconds(call))
    return {name: Timing(first[name], statistics.median(later[name])) for name in contestants}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def show(title: str, timings: Mapping[str, Timing], reference: str = "bayesmerge") -> None:
    """A table with every median as a multiple of that of `reference`."""
    unit = timings[reference].median
    print(f"\n{title}")
    print(f"{'':44}{'first call':>12}{'median':>12}{'ratio':>9}")
    for name, (first, median) in timings.items():
        print(f"{name:44}{first:10.3f} s{1e3 * median:9.2f} ms{median / unit:9.2f}")
