"""Fits made of many small steps: progress, minibatches, stopping, resuming, and what is kept when a
step goes wrong."""

import abc
import contextlib
import functools
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import all_finite
from bayesmerge.families.show import one_line
from bayesmerge.files import other_kind, readable, whole, writable
from bayesmerge.fingerprint import (
    PYTHON,
    as_fingerprint,
    differences,
    fingerprint,
    settled,
)
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.keys import as_key

Schedule: TypeAlias = Callable[[Int[Array, ""]], Any]
Told: TypeAlias = dict[str, np.ndarray]
Carry: TypeAlias = tuple["State", dict[str, Array], Int[Array, ""], Bool[Array, ""], PyTree]

STEPS_AT_ONCE = 256
SECONDS_AT_ONCE = 0.5
SECONDS_BETWEEN_SAVES = 30.0
MAGIC = b"PK\x03\x04"


class AbstractMethod(eqx.Module):
    """A rule that improves an approximate posterior step by step."""

    shown: eqx.AbstractClassVar[str]
    """The quantity of `step` that the progress bar shows."""

    @abc.abstractmethod
    def step(
        self, inner: PyTree, target: AbstractTarget, t: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[PyTree, dict[str, Float[Array, ""]]]:
        """What is fitted after step t, and quantities to tell; `target` may be a minibatch."""

    @abc.abstractmethod
    def posterior(self, inner: PyTree) -> Any:
        """The posterior that `inner` stands for."""


class State(NamedTuple):
    """All that the next step depends on: to continue a fit, pass it as `state`.

    - `step`: t, the steps taken.
    - `key`: of the whole fit, as data; step t draws from `fold_in(key, t)`.
    - `inner`: what the method fits.
    """

    step: Int[Array, ""]
    key: Array
    inner: PyTree

    @property
    def taken(self) -> int:
        """The steps taken, of a batch of fits the fewest."""
        return int(np.min(self.step))


class Run(NamedTuple):
    """A fit, finished or not.

    - `posterior`: what it gave.
    - `history`: its quantities (`"elbo"`, `"loss"`, …) by name, one number a step, as arrays.
    - `state`: from which `run` continues.
    """

    posterior: Any
    history: Told
    state: State


class DivergenceError(FloatingPointError):
    """A step gave numbers that are not finite. `run` holds the fit before that step."""

    run: Run

    def __init__(self, message: str, run: Run):
        super().__init__(message)
        self.run = run


def run(
    method: AbstractMethod,
    target: AbstractTarget,
    start: PyTree,
    *,
    num_steps: int,
    key: Array,
    batch_size: int | None = None,
    state: State | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Run:
    r"""Take `num_steps` steps of a method.

    What comes out depends on the key and the number of steps alone, not on interruptions.

    - `method`: `VON`, `MixtureVON`, `IVON`, `Training` or `NaturalGradient`, with their options.
    - `target`: ℓ. A stream gives one minibatch to every step.
    - `start`: what the method starts from, a state of the method.
    - `num_steps`: in all, those of `state` or `checkpoint` included.
    - `key`: of all randomness. A batch of K keys, with K starts in a leading axis of `start`, makes
      K fits side by side; what is returned then has that axis.
    - `batch_size`: examples a step; by default all.
    - `state`: of an earlier run to continue.
    - `checkpoint`: a file (`.npz`) to save the state to, every half minute and at the end, also
      where that is an interruption; if it exists the fit continues from it. It is refused by
      another fit: it knows the options, arrays and key it belongs to, and the code of functions
      with the values that they refer to by name, but not streams.
    - `progress`: whether to show a progress bar, or a name for it.

    **Returns** a `Run`.

    **Raises** `DivergenceError` at the first step whose numbers are not finite, with the last good
    state, and `ValueError` for a checkpoint of another fit.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import VON, run
    >>> target = bm.Target(lambda theta, y: jnp.cosh(theta - y), jnp.array([0.0, 1.0]))
    >>> start = bm.FullGaussian.from_mean_precision(jnp.array([0.0]), jnp.eye(1))
    >>> method = VON(prior=None, curvature="hessian", step_size=0.5, num_samples=32)
    >>> first = run(method, target, start, num_steps=5, key=jax.random.key(0), progress=False)
    >>> both = run(method, target, start, num_steps=9, key=jax.random.key(0), state=first.state,
    ...            progress=False)
    >>> len(both.history["elbo"]), int(both.state.step)
    (4, 9)

    ```
    """
    from tqdm import tqdm

    key = as_key(key, batch=True)
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}, and it must not be negative.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, and it must be at least 1, or None for all.")
    if batch_size is not None and target.is_streamed:
        raise ValueError(
            f"batch_size is {batch_size}, and the data are a stream whose minibatches have sizes "
            "of their own: leave batch_size out, or pass arrays."
        )
    if state is None:
        words = _words(key)
        state = State(jnp.zeros(words.shape[:-1], int), words, start)
    told: list[Told] = []
    file = None
    if checkpoint is not None:
        starts = {
            "method": method,
            "data": target,
            "start": state.inner,
            "key": state.key,
            "batch_size": batch_size,
        }
        file = Checkpoint(checkpoint, starts)
        state, told = file.load(state)
    if state.taken > num_steps:
        raise ValueError(
            f"num_steps is {num_steps}, and the fit to continue has taken {state.taken} already: "
            "num_steps counts those too."
        )
    name = one_line(progress) if isinstance(progress, str) else None
    with tqdm(total=num_steps, initial=state.taken, desc=name, disable=not progress) as bar:
        keeping = contextlib.nullcontext() if file is None else file.kept()
        with keeping as keep:
            chunks = _chunks(method, target, state, num_steps, batch_size)
            for state, quantities, good in chunks:
                told.append(quantities)
                if keep is not None:
                    keep(state, told)
                bar.update(state.taken - bar.n)
                if len(quantities[method.shown]):
                    latest = np.mean(quantities[method.shown][-1])
                    bar.set_postfix({method.shown: f"{latest:.5g}"})
                if not good:
                    raise DivergenceError(
                        f"step {state.taken} gave numbers that are not finite, and the fit "
                        "stopped before it; the last good state is the `run` of this error. Use a "
                        "smaller step size or learning rate, more samples, a prior, or look for "
                        "log(0) and overflow in the loss.",
                        _finished(method, state, told),
                    )
    return _finished(method, state, told)


def _words(key: Array) -> Array:
    """Two words that a key is made of, whatever its kind."""
    is_key = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return (jax.random.key_data(key) if is_key else key)[..., -2:]


def _key(words: Array) -> PRNGKeyArray:
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _finished(method: AbstractMethod, state: State, told: list[Told]) -> Run:
    names = told[0] if told else ()
    history = {name: np.concatenate([part[name] for part in told]) for name in names}
    return Run(method.posterior(state.inner), history, state)


def _chunks(
    method: AbstractMethod,
    target: AbstractTarget,
    state: State,
    num_steps: int,
    batch_size: int | None,
) -> Iterator[tuple[State, Told, bool]]:
    """States after some steps each, what these told, and whether the next step is finite."""
    is_batch = state.step.ndim == 1
    advance: Callable[..., Any]
    if target.is_streamed:
        one = _each_step if is_batch else _step
        advance = functools.partial(_streamed, one, _skipped(target, state.taken))
    else:
        advance = functools.partial(_each if is_batch else _one, target, batch_size)
    steps = 1
    while state.taken < num_steps:
        begun = time.perf_counter()
        steps = min(steps, STEPS_AT_ONCE, num_steps - state.taken)
        state, told, taken, good = advance(method, state, jnp.asarray(steps))
        count, good = int(np.min(taken)), bool(np.all(good))
        yield state, {name: np.asarray(x)[..., :count].T for name, x in told.items()}, good
        if not good:
            return
        seconds = time.perf_counter() - begun
        steps = max(1, min(2 * steps, round(steps * SECONDS_AT_ONCE / max(seconds, 1e-6))))


def _skipped(target: AbstractTarget, steps: int) -> Iterator[AbstractTarget]:
    batches = target.stream()
    for _ in range(steps):
        next(batches)
    return batches


def _streamed(
    one: Callable[..., Any],
    batches: Iterator[AbstractTarget],
    method: AbstractMethod,
    state: State,
    steps: Int[Array, ""],
) -> tuple[State, dict[str, Any], int, bool]:
    told: list[dict[str, Array]] = []
    for _ in range(int(steps)):
        new, quantities, good = one(method, state, next(batches))
        if not jnp.all(good):
            return state, _stacked(told, quantities), len(told), False
        state = new
        told.append(quantities)
    return state, _stacked(told, quantities), len(told), True


def _stacked(told: list[dict[str, Array]], names: dict[str, Array]) -> dict[str, Any]:
    rows = {name: [np.asarray(part[name]) for part in told] for name in names}
    return {name: np.reshape(rows[name], (len(told), *names[name].shape)).T for name in names}


def _try(
    method: AbstractMethod, state: State, target: AbstractTarget
) -> tuple[State, dict[str, Array], Bool[Array, ""]]:
    """The next state, and whether it is finite."""
    key = jax.random.fold_in(_key(state.key), state.step)
    inner, told = method.step(state.inner, target, state.step, key)
    floats = eqx.filter(inner, eqx.is_inexact_array)
    new = State(state.step + 1, state.key, inner)
    return new, told, all_finite((floats, told))


_step = eqx.filter_jit(_try)
_each_step = eqx.filter_jit(eqx.filter_vmap(_try, in_axes=(None, 0, None)))


def _advance(
    target: AbstractTarget,
    batch_size: int | None,
    method: AbstractMethod,
    state: State,
    steps: Int[Array, ""],
) -> tuple[State, dict[str, Array], Array, Array]:
    """Up to `steps` steps, fewer where one is not finite."""
    last = state.step + steps
    begin = state.step
    per_epoch = 1 if batch_size is None else target.num_batches(batch_size)

    def order(step: Int[Array, ""]) -> PyTree:
        root = jax.random.fold_in(_key(state.key), jnp.uint32(2**32 - 1))
        return target.order(jax.random.fold_in(root, step // per_epoch))

    def body(carry: Carry) -> Carry:
        state, told, _, _, shuffled = carry
        if batch_size is None:
            estimate = target
        else:
            starts = state.step % per_epoch == 0
            shuffled = jax.lax.cond(starts, lambda: order(state.step), lambda: shuffled)
            estimate = target.minibatch(shuffled, state.step % per_epoch, batch_size)
        new, quantities, good = _try(method, state, estimate)
        at = state.step - begin
        told = {name: told[name].at[at].set(x) for name, x in quantities.items()}
        kept = jax.tree.map(lambda x, y: jnp.where(good, x, y), new, state)
        return kept, told, at + good.astype(at.dtype), good, shuffled

    def unfinished(carry: Carry) -> Array:
        state, _, _, good, _ = carry
        return good & (state.step < last)

    shuffled = None if batch_size is None else order(state.step)
    quantities = jax.eval_shape(lambda: _try(method, state, target)[1])
    told = {name: jnp.zeros(STEPS_AT_ONCE, x.dtype) for name, x in quantities.items()}
    carry = (state, told, jnp.array(0), jnp.array(True), shuffled)
    state, told, taken, good, _ = jax.lax.while_loop(unfinished, body, carry)
    return state, told, taken, good


_one = eqx.filter_jit(_advance)
_each = eqx.filter_jit(eqx.filter_vmap(_advance, in_axes=(None, None, None, 0, None)))


class Checkpoint:
    """A file that holds a state and its history; written beside and renamed, never half.

    - `path`: ends in `.npz`.
    - `starts`: what the fit follows from, by name; a file that differs in it is refused.
    """

    SUFFIX: ClassVar[str] = ".npz"

    def __init__(self, path: Any, starts: Mapping[str, Any]):
        self.path = writable(path, (self.SUFFIX,), "checkpoint")
        self.starts = starts
        self.seen = fingerprint(**starts)
        self.is_settled = False

    def load(self, like: State) -> tuple[State, list[Told]]:
        """The saved state, shaped as `like`; or `like` where there is no file."""
        if not self.path.exists():
            return like, []
        try:
            with np.load(readable(self.path, "checkpoint"), allow_pickle=False) as saved:
                arrays = dict(saved)
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"checkpoint '{self.path}' cannot be read: "
                f"{other_kind(self.path, MAGIC) or error}. If it is no file of `run`, give another "
                "name; if it is a damaged one, delete it and start anew."
            ) from error
        self._require_same_fit(str(arrays.get("fingerprint", "")))
        leaves, structure = jax.tree.flatten(like)
        restored = [jnp.asarray(arrays[f"state {i}"], x.dtype) for i, x in enumerate(leaves)]
        told = {n.removeprefix("told "): x for n, x in arrays.items() if n.startswith("told")}
        return jax.tree.unflatten(structure, restored), [told] if told else []

    def save(self, state: State, told: list[Told]) -> None:
        """Write state and history."""
        if not self.is_settled:
            self.seen = settled(self.seen, fingerprint(**self.starts))
            self.is_settled = True
        names = told[0] if told else ()
        arrays = {f"state {i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
        arrays["fingerprint"] = np.array(json.dumps(self.seen))
        arrays |= {f"told {name}": np.concatenate([part[name] for part in told]) for name in names}
        with whole(self.path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def kept(self) -> Iterator[Callable[[State, list[Told]], None]]:
        """A function to be told of every state, which saves some of them; the last one is saved at
        the end, whatever ends it."""
        latest: list[Any] = []
        saved = time.perf_counter()

        def keep(state: State, told: list[Told]) -> None:
            nonlocal saved
            latest[:] = [state, told]
            if time.perf_counter() - saved > SECONDS_BETWEEN_SAVES:
                self._save_if_possible(state, told)
                saved = time.perf_counter()

        try:
            yield keep
        finally:
            if latest:
                self._save_if_possible(*latest)

    def _save_if_possible(self, state: State, told: list[Told]) -> None:
        try:
            self.save(state, told)
        except OSError as error:
            warnings.warn(f"the fit goes on and is not saved: {error}.", stacklevel=2)

    def _require_same_fit(self, saved_text: str) -> None:
        saved = as_fingerprint(saved_text)
        if differing := differences(saved, self.seen):
            raise ValueError(
                f"checkpoint '{self.path}' is of another fit: the method's options, the data, the "
                f"start, the key or the batch size differ ({', '.join(differing)}). Continue with "
                "the same arguments, or give another file name."
            )
        if saved[PYTHON] != self.seen[PYTHON]:
            warnings.warn(
                f"checkpoint '{self.path}' was written by another version of Python, so that it "
                "cannot be told whether the code of losses is the same: make sure that it is.",
                stacklevel=4,
            )
        self.seen, self.is_settled = saved, True
