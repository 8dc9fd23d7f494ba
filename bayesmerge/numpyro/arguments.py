"""What a model is called with: arrays that compiled programs take as arguments, and constants.

A model gets its arguments as NumPyro would give them, but for arrays, which are traced where the
model allows it. An array that it cannot use so (`np.asarray`, `float`, `if`) is a constant of the
programs, as is everything else: numbers, strings, lists, tables.
"""

import copy
import hashlib
import inspect
import itertools
import pickle
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from bayesmerge.arrays import as_array
from bayesmerge.numpyro.data import (
    described,
    is_array,
    is_data,
    require_usable,
    turned,
    warn_if_coarse,
)
from bayesmerge.numpyro.sites import TRACED_VALUES, ModelError

MOST_SHOWN = 12
"""Arguments that an error lists."""

OWN = ("bayesmerge", "equinox", "jaxtyping", "beartype")
"""Packages whose functions stand between the model and whoever passes it."""


class Hole:
    """The place of an array among the arguments."""

    def __init__(self, index: int):
        self.index = index


class Constants:
    """Arguments with holes for the arrays. Two are equal where they have equal values, and the same
    objects for what has no value to compare (functions)."""

    def __init__(self, tree: Any):
        self.tree = tree
        self.signature = _signature(tree)

    def __reduce__(self) -> tuple[Any, ...]:
        return Constants, (self.tree,)

    def __repr__(self) -> str:
        return "Constants(…)"

    def __hash__(self) -> int:
        return hash(self.signature)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Constants) and self.signature == other.signature


class Arguments(eqx.Module):
    """`args` and `kwargs` of a model, in two parts.

    - `arrays`: arguments of compiled programs.
    - `constants`: everything else; programs are compiled for it.
    - `digest`: of the constants' values, two words, by which a checkpoint knows its fit.
    """

    arrays: list[Array]
    constants: Constants = eqx.field(static=True)
    digest: UInt32[Array, " 2"]

    def __call__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the model gets them."""
        return _mapped(
            lambda _, x: self.arrays[x.index] if isinstance(x, Hole) else x, self.constants.tree
        )

    def named(self, function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
        """Every array and constant, with the name that it has in the model."""
        return _leaves(function, *self())


def bound(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    look: Callable[[Arguments], Any],
) -> Arguments:
    """Arguments with as many arrays traced as `look` allows, which runs the model.

    **Raises** `ModelError` where the model fails with its arguments as they were given.
    """
    given = list(_leaves(function, args, kwargs))
    require_usable(given)
    arrays = {i: as_array(x, name) for i, (name, x) in enumerate(given) if is_array(x)}

    def split(traced: dict[int, Array]) -> Arguments:
        return _split(args, kwargs, traced)

    try:
        traced = _traceable(given, arrays, lambda traced: look(split(traced)))
    except TRACED_VALUES as error:
        raise ModelError(
            "the model looks at values of its latent sites while it runs (`if`, `float`, "
            "`np.asarray`), so that its structure would depend on what is drawn: use `jnp.where` "
            "for `if`, and `jnp` for `np`."
        ) from error
    except ModelError as error:
        if error.__cause__ is None:
            raise
        given_words = shown(function, split({}))
        raise ModelError(f"{error}. Its arguments: {given_words}.") from error.__cause__
    fixed = [name for i, (name, leaf) in enumerate(given) if i not in traced and is_data(leaf)]
    if fixed:
        _tell_once(function, fixed)
    warn_if_coarse(given)
    return split(traced)


def _traceable(
    given: list[tuple[str, Any]],
    arrays: dict[int, Array],
    look: Callable[[dict[int, Array]], Any],
) -> dict[int, Array]:
    """The leaves to trace, by their numbers: all arrays, or those that the model allows, or where
    it fails with its arguments as they are all that can be arrays."""

    def works(traced: dict[int, Array]) -> bool:
        try:
            look(traced)
        except Exception:  # Whatever it is, traced arrays are its cause where others work.
            return False
        return True

    if works(arrays):
        return arrays
    try:
        look({})
    except Exception:
        more = {i: array for i, (_, x) in enumerate(given) if (array := turned(x)) is not None}
        everything = dict(sorted((arrays | more).items()))
        if more and works(everything):
            return everything
        raise
    traced: dict[int, Array] = {}
    for i, array in arrays.items() if len(arrays) > 1 else ():
        traced |= {i: array} if works(traced | {i: array}) else {}
    return traced


def shown(function: Callable[..., Any], arguments: Arguments) -> str:
    """The arguments with their types and shapes, for errors."""
    words = [f"{name} ({described(x)})" for name, x in arguments.named(function)]
    more = [f"{len(words) - MOST_SHOWN} more"] if len(words) > MOST_SHOWN else []
    return ", ".join(words[:MOST_SHOWN] + more) or "none"


def _mapped(f: Callable[[str, Any], Any], x: Any, path: str = "") -> Any:
    """`x` with `f(path, leaf)` for its leaves, in containers of the same kind and order."""
    if isinstance(x, dict):
        new = copy.copy(x)
        new.update({key: _mapped(f, value, f"{path}[{key!r}]") for key, value in x.items()})
        return new
    if isinstance(x, (list, tuple)) and _is_opened(x):
        fields = getattr(x, "_fields", None)
        names = [f".{name}" for name in fields] if fields else [f"[{i}]" for i in range(len(x))]
        parts = [_mapped(f, value, path + name) for name, value in zip(names, x, strict=True)]
        return type(x)(*parts) if fields else type(x)(parts)
    if x is None or isinstance(x, (Hole, list, tuple)) or _is_leaf(x):
        return f(path, x)
    paths, structure = jax.tree_util.tree_flatten_with_path(x)
    leaves = [f(path + jax.tree_util.keystr(way), leaf) for way, leaf in paths]
    return jax.tree.unflatten(structure, leaves)


def _is_opened(x: Any) -> bool:
    """Lists and tuples with arrays in them; others are constants as a whole."""
    if isinstance(x, (int, float, str)):
        return False
    if isinstance(x, dict):
        return any(map(_is_opened, x.values()))
    if isinstance(x, (list, tuple)):
        return any(map(_is_opened, x))
    return isinstance(x, Hole) or is_array(x) or not _is_leaf(x)


def _is_leaf(x: Any) -> bool:
    return (
        x is None or isinstance(x, Iterator) or jax.tree_util.treedef_is_leaf(jax.tree.structure(x))
    )


def _by_name(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    plain = _positional(function) or _positional(_origin(function))
    for i, value in enumerate(args):
        yield plain[i] if i < len(plain) else f"argument {i}", value
    yield from kwargs.items()


def _positional(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _leaves(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """The leaves of all arguments, in the order in which `_mapped` meets them."""
    found: list[tuple[str, Any]] = []
    for name, value in _by_name(function, args, kwargs):
        _mapped(lambda path, x: found.append((path, x)), value, name)
    return iter(found)


def _split(args: tuple[Any, ...], kwargs: dict[str, Any], traced: dict[int, Array]) -> Arguments:
    places = {i: place for place, i in enumerate(traced)}
    numbers = itertools.count()

    def part(_: str, leaf: Any) -> Any:
        i = next(numbers)
        return Hole(places[i]) if i in traced else _kept(leaf)

    tree = tuple(_mapped(part, x) for x in args), {k: _mapped(part, x) for k, x in kwargs.items()}
    constants = Constants(tree)
    return Arguments(list(traced.values()), constants, _digest(constants.signature))


def _kept(leaf: Any) -> Any:
    """`leaf`, safe from what its owner does to it later."""
    if callable(leaf) or isinstance(leaf, jax.Array):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:
        return leaf


def _signature(x: Any) -> Any:
    """What tells constants apart, hashable."""
    if isinstance(x, Hole):
        return x.index
    if isinstance(x, dict):
        return type(x), tuple((type(k), k, _signature(v)) for k, v in x.items())
    if isinstance(x, (list, tuple)) and _is_opened(x):
        return type(x), tuple(map(_signature, x))
    if not isinstance(x, (list, tuple)) and not _is_leaf(x):
        leaves, structure = jax.tree.flatten(x)
        return structure, tuple(map(_signature, leaves))
    if callable(x):
        return _Same(x)
    try:
        return type(x), hashlib.sha256(pickle.dumps(x)).hexdigest()
    except Exception:
        return _Same(x)


class _Same:
    """An object, equal to itself alone."""

    def __init__(self, held: Any):
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self.held is other.held


def _digest(signature: Any) -> UInt32[Array, " 2"]:
    """A hash of the values in a signature, the same in every process."""

    def words(part: Any) -> Iterator[str]:
        if isinstance(part, tuple):
            for x in part:
                yield from words(x)
        elif isinstance(part, (str, int)):
            yield repr(part)

    digest = hashlib.sha256(" ".join(words(signature)).encode()).digest()
    return jnp.asarray(np.frombuffer(digest, "<u4")[:2].astype(np.uint32))


def _origin(function: Any) -> Any:
    """The function that was written, beneath handlers and wrappers."""
    for attribute in ("__wrapped__", "fn", "func", "__func__"):
        inner = getattr(function, attribute, None)
        if callable(inner) and inner is not function:
            return _origin(inner)
    return function


def _package(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__")).split(".")[0]


def depth_of_caller() -> int:
    """The stack level of the first function outside of this package, for a warning."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and _package(frame) in OWN:
        frame, depth = frame.f_back, depth + 1
    return depth


_told: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _tell_once(function: Callable[..., Any], names: list[str]) -> None:
    origin = _origin(function)
    try:
        if origin in _told:
            return
        _told.add(origin)
    except TypeError:
        pass
    listed = ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
    warnings.warn(
        f"{listed} of the model '{getattr(origin, '__name__', origin)}' are constants of its "
        "compiled programs: a shard with other values costs a compilation of its own. They are "
        "lists or tables, or arrays at whose values the model looks (`np.asarray`, `float`, `if`, "
        "`range`). To have one program for all shards pass arrays, `jnp.asarray(x)`, compute with "
        "them by `jnp` in the model, and pass what its structure depends on (numbers of groups, "
        "options) as Python integers and strings. This warning comes once for every model.",
        stacklevel=depth_of_caller(),
    )
