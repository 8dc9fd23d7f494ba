"""Settings of every test: float64, no silent broadcasting, few programs and quick to compile."""

import gc
import tempfile
from collections.abc import Iterator

import hypothesis
import jax
import matplotlib as mpl
import pytest

mpl.use("agg")
gc.set_threshold(100_000, 20, 100)  # tracing makes many small objects, few of them garbage
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)
# Programs of tests run for milliseconds: most optimisations take longer than what they save.
jax.config.update("jax_disable_most_optimizations", True)
hypothesis.settings.register_profile("bayesmerge", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("bayesmerge")


# Files of more than a minute of processor time, the longest first: workers end together.
LONGEST = ["tutorials", "variational", "numpyro", "ledger", "removal", "modes", "sweeps", "mixture"]
LONGEST += ["reproduction", "curvature", "shards", "laws", "demo", "draws", "against_scipy"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """float64 in tests; in examples what a user sees without configuring anything, and no random
    key used twice, a check that costs every call its fast path."""
    is_example = isinstance(request.node, pytest.DoctestItem)
    with jax.enable_x64(not is_example), jax.debug_key_reuse(is_example):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """All of XLA's optimisations for examples, whose digits are what a user sees, and for a test
    marked `optimised` and the fixtures that it makes."""
    marked = item.get_closest_marker("optimised") is not None
    quickly = not (marked or isinstance(item, pytest.DoctestItem))
    if quickly != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(autouse=True, scope="session")
def compiled_programs_on_disk() -> Iterator[None]:
    """Those of this process and of the scripts that it starts, each compiled once.

    Not those of all workers: JAX does not write them atomically.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        settings = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_in_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Dropped after each file of tests: one process cannot hold what the whole suite compiles."""
    yield
    if request.path.stem.startswith("test_"):
        jax.clear_caches()
