"""Where work is carried out: here, or by an executor's threads and processes."""

import concurrent.futures
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Any, NamedTuple, NoReturn, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

Result = TypeVar("Result")

AHEAD = 64
"""Jobs that an executor is given before results are awaited."""

REMEDY = (
    "Use `ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))`, in a script below "
    "`if __name__ == '__main__':`, or a ThreadPoolExecutor."
)
_forked = False


def _forked_here() -> None:
    global _forked
    _forked = _forked or bool(jax._src.xla_bridge.backends_are_initialized())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked_here)


def usable(executor: Any) -> Executor | None:
    """`executor`, or an error where it cannot carry out work of JAX."""
    if executor is None:
        return None
    if not isinstance(executor, Executor):
        raise TypeError(
            f"executor is a {type(executor).__name__}, and it must be a "
            f"`concurrent.futures.Executor`{_instead_of(executor)}."
        )
    interpreters = getattr(concurrent.futures, "InterpreterPoolExecutor", None)
    if interpreters is not None and isinstance(executor, interpreters):
        raise ValueError(
            "executor is an InterpreterPoolExecutor, and JAX and NumPy run in the main interpreter "
            f"of a process only. {REMEDY}"
        )
    context = getattr(executor, "_mp_context", None) or getattr(executor, "_context", None)
    method = getattr(context, "get_start_method", lambda: None)()
    if method == "fork" or _submitted(executor, is_forked).result():
        raise ValueError(
            f"executor is a {type(executor).__name__} whose processes are forked from one in which "
            f"JAX has started (start method '{method or 'fork'}'), where they would deadlock. "
            f"{REMEDY}"
        )
    return executor


class Compute(eqx.Module):
    """Where previews are computed, and how much at once.

    - `executor`: any `concurrent.futures.Executor` (threads, processes, Dask's, MPI's). It is given
      batches of weightings or, for an `Uncompiled` metric, single models to measure. Processes must
      be spawned, not forked: JAX deadlocks in a fork. By default the calling thread.
    - `weightings_at_once`: how many weightings are merged, or trained, in one call of a compiled
      program, ≥ 1. By default as many as keep the merged posteriors within 256 MB.

    **Raises** `TypeError` for what is no executor, `ValueError` for one that JAX cannot run in or
    that is shut down, and for `weightings_at_once` below 1.

    ```python
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = [bm.IsotropicGaussian.from_mean_precision(jnp.array(x), 1.0) for x in (0.0, 4.0)]
    >>> with ThreadPoolExecutor(2) as pool:
    ...     compute = bm.previews.Compute(pool, weightings_at_once=2)
    ...     options = {"compute": compute, "progress": False}
    ...     bm.preview(q, bm.simplex_grid(2, 0.25), lambda x: x, **options).best().value
    4.0

    ```
    """

    executor: Executor | None = eqx.field(default=None, converter=usable)
    weightings_at_once: int | None = None

    def __check_init__(self) -> None:
        count = self.weightings_at_once
        if count is not None and (count < 1 or count != int(count)):
            raise ValueError(
                f"weightings_at_once is {count}, and it is a number of weightings, ≥ 1; None for "
                "as many as fit into memory."
            )

    def require_batches(self, streamed: bool) -> None:
        """An error where weightings cannot be computed at once, and a number of them is given."""
        if streamed and self.weightings_at_once is not None:
            raise ValueError(
                f"weightings_at_once is {self.weightings_at_once}, and targets are read from "
                "streams, for one weighting after the other: leave it out, or give arrays."
            )


def as_compute(compute: Any) -> Compute:
    """`compute`, or the usual one, or an error for another object."""
    if compute is not None and not isinstance(compute, Compute):
        raise TypeError(
            f"compute is {compute!r}, and it must be an object such as "
            "`bm.previews.Compute(weightings_at_once=8)`: make one, or leave it out."
        )
    return Compute() if compute is None else compute


class Job(NamedTuple):
    """Work for the weightings with the numbers `rows`."""

    rows: Any
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


def is_forked() -> bool:
    """Whether this process is a fork of one in which JAX had started."""
    return _forked


def carried_out(jobs: Iterator[Job], executor: Executor | None) -> Iterator[tuple[Any, Any]]:
    """The rows of every job and its result, as they are finished."""
    if executor is None:
        for rows, work, arguments in jobs:
            yield rows, work(*arguments)
        return
    waiting: dict[Future[Any], Any] = {}
    try:
        for rows, work, arguments in jobs:
            x64 = jnp.result_type(float) == np.float64
            on_host = jax.tree.map(_on_host, arguments)
            waiting[_submitted(executor, _as_here, x64, work, on_host)] = rows
            if len(waiting) >= AHEAD:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    finally:
        for future in waiting:
            future.cancel()


def _instead_of(executor: Any) -> str:
    if hasattr(executor, "get_executor"):
        return ": give its `get_executor()`"
    if hasattr(executor, "apply_async"):
        return f", not a pool of `multiprocessing`. {REMEDY.removesuffix('.')}"
    return ""


def _submitted(executor: Executor, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
    try:
        return executor.submit(work, *arguments)
    except BrokenExecutor as error:
        _explain(error)
    except RuntimeError as error:
        raise ValueError(
            f"executor takes no work ({error}): make a new one, and use it before it is shut down, "
            "inside its `with` block."
        ) from error


def _as_here(x64: bool, work: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    """With the precision of the process and thread that asks for it."""
    with jax.enable_x64(x64):
        return work(*jax.tree.map(_on_device, arguments))


def _on_device(x: Any) -> Any:
    return jnp.asarray(x) if isinstance(x, np.ndarray) else x


def _on_host(x: Any) -> Any:
    """Arrays as NumPy's, which keep their precision wherever they are sent."""
    is_number = eqx.is_array(x) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(x) if is_number else x


def _finished(waiting: dict[Future[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """What is done, the failed last, so that no result is lost."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda future: future.exception() is not None):
        rows = waiting.pop(future)
        error = future.exception()
        if error is not None:
            _explain(error)
        yield rows, future.result()


def _explain(error: BaseException) -> NoReturn:
    if isinstance(error, BrokenExecutor):
        raise RuntimeError(
            f"a worker of the executor ended ({error}). What had been measured is kept where "
            "`save` was given. Causes: too little memory, a crash, or a metric that the worker "
            "cannot import, as those typed into a notebook or a script without "
            "`if __name__ == '__main__':`. Define it in a module, or use a ThreadPoolExecutor."
        ) from error
    is_of_pickle = any(text in str(error) for text in ("pickle", "local object"))
    is_of_pickle &= isinstance(error, (TypeError, AttributeError))
    if is_of_pickle or isinstance(error, pickle.PicklingError):
        raise TypeError(
            f"the work cannot be sent to another process ({error}). Define the metric, and the "
            "losses, by `def` at the top of a module and not inside a function or as a lambda, or "
            "use a ThreadPoolExecutor, or one that sends functions by value (loky, Dask)."
        ) from error
    raise error
