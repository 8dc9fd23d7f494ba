"""Settings of every test: float64, no silent broadcasting, no reused random keys.

NPROC is the number of XLA's threads. With two of them jax before 0.12 can stand still where one
program has several batches of LAPACK calls: see docs/design.md.
"""

import os
from collections.abc import Iterator

import hypothesis
import jax
import matplotlib as mpl
import pytest

os.environ.setdefault("NPROC", "8")
mpl.use("agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
hypothesis.settings.register_profile("bayesmerge", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("bayesmerge")


@pytest.fixture(autouse=True)
def precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """float64 in tests; in examples what a user sees without configuring anything."""
    is_example = isinstance(request.node, pytest.DoctestItem)
    with jax.enable_x64(not is_example):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """Dropped after each file: one process cannot hold what the whole suite compiles."""
    yield
    jax.clear_caches()
