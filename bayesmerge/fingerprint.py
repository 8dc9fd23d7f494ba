"""What a computation starts from, in a few bytes: so that a file of another one is refused."""

import dataclasses
import enum
import functools
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PYTHON = "the version of Python"
CODE = "the code of "
STATE = "not compared"
SCALARS = bool, int, float, complex, str, bytes, enum.Enum, np.generic
STDLIB = sysconfig.get_path("stdlib")


def digest(*arrays: Any, words: Any = ()) -> str:
    """A hash of arrays, with their dtypes and shapes, and of `words`."""
    seen = hashlib.sha256(repr(words).encode(errors="backslashreplace"))
    for array in arrays:
        array = np.asarray(array)
        seen.update(f"{array.dtype} {array.shape}".encode())
        seen.update(np.ascontiguousarray(array).tobytes())
    return seen.hexdigest()


def fingerprint(**parts: Any) -> dict[str, str]:
    """Hashes by name: of every part, of the code of every function in it, and of each value that
    such a function refers to by name, in its closure or its module.

    Arrays, numbers, text, containers, dataclasses, functions and attributes of other objects are
    seen; streams, C extensions and the code of installed packages are not.
    """
    reader = _Reader()
    found = {name: reader.digest(part).hex() for name, part in parts.items()}
    named = {name: digest(words=seen) for name, seen in reader.named.items()}
    python = importlib.util.MAGIC_NUMBER.hex()
    return {PYTHON: python} | found | named | dict.fromkeys(reader.streams, STATE)


def as_fingerprint(text: str) -> dict[str, str]:
    """What was saved as JSON, or nothing for a text of another kind."""
    try:
        saved = json.loads(text)
    except ValueError:
        return {}
    return saved if isinstance(saved, dict) else {}


def settled(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """`before`, without what the computation itself changes, such as a count of calls."""
    return {name: x if after.get(name) == x else STATE for name, x in before.items()}


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what differs; code that two versions of Python have compiled is not compared."""
    unknown = (PYTHON, CODE) if saved.get(PYTHON) != now.get(PYTHON) else (PYTHON,)
    return [
        name
        for name in {**now, **saved}
        if saved.get(name) != now.get(name)
        and STATE not in (saved.get(name), now.get(name))
        and not name.startswith(unknown)
    ]


class _Reader:
    """Digests of objects, each read once: equal for equal content, wherever it lies in memory."""

    def __init__(self) -> None:
        self.named: dict[str, list[bytes]] = {}
        self.functions: dict[str, list[bytes]] = {}
        self.streams: list[str] = []
        self.known: dict[int, tuple[Any, bytes]] = {}

    def digest(self, x: Any) -> bytes:
        if x is None or isinstance(x, SCALARS):
            return _hash(type(x).__name__, repr(x))
        if id(x) not in self.known:
            self.known[id(x)] = x, _hash("a cycle")
            self.known[id(x)] = x, self.content(x)
        return self.known[id(x)][1]

    def content(self, x: Any) -> bytes:
        array = _as_array(x)
        if array is not None and not array.dtype.hasobject:
            return digest(array).encode()
        parts = self.parts(x) if array is None else array.tolist()
        return _hash(_name(x), *map(self.digest, parts))

    def parts(self, x: Any) -> Iterable[Any]:
        """What `x` is made of, without what is kept by name."""
        if isinstance(x, types.FunctionType):
            return self.function(x)
        if isinstance(x, type):
            return self.by_name({} if _is_installed(x) else _methods(x), x)
        if isinstance(x, types.MethodType):
            return x.__func__, x.__self__
        if isinstance(x, functools.partial):
            return x.func, x.args, x.keywords
        if isinstance(x, os.PathLike):
            return (os.fspath(x),)
        if isinstance(x, Mapping):
            return [part for pair in [*x.items()] for part in pair]
        if dataclasses.is_dataclass(x):
            return [type(x), *(getattr(x, field.name, None) for field in dataclasses.fields(x))]
        if isinstance(x, (set, frozenset)):
            return sorted(map(self.digest, [*x]))
        if isinstance(x, Collection):
            return [*x]
        if callable(getattr(x, "__wrapped__", None)):
            return (x.__wrapped__,)
        if not jax.tree_util.all_leaves([x]):
            return [type(x), *jax.tree.leaves(x, is_leaf=lambda part: part is not x)]
        if isinstance(x, Iterable):
            return self.stream(x)
        return [type(x), *self.by_name(_attributes(x), type(x))]

    def function(self, f: types.FunctionType) -> Iterable[Any]:
        """Its defaults, and which of the functions of its name it is."""
        content = self.by_name(_references(f), f)
        if not _is_installed(f):
            content.append(_code(f.__code__, f.__doc__))
            _keep(self.named, f"{CODE}{f.__qualname__}", content[-1])
        among = _keep(self.functions, f.__qualname__, _hash(*content))
        return f.__defaults__, f.__kwdefaults__, among

    def by_name(self, values: Mapping[str, Any], owner: Any) -> list[Any]:
        digests = [self.digest(value) for value in [*values.values()]]
        for name, seen in zip([*values], digests, strict=True):
            _keep(self.named, f"{name} in {owner.__qualname__}", seen)
        return digests

    def stream(self, x: Any) -> Iterable[Any]:
        """Nothing that could be compared, but for a bare wrapper of a list."""
        held = [*getattr(x, "__dict__", {}).values()]
        if len(held) == 1 and isinstance(held[0], (tuple, list)):
            _keep(self.named, "streams", self.digest(held[0]))
        else:
            self.streams.append("streams")
        return ()


def _keep(lists: dict[str, list[bytes]], name: str, seen: bytes) -> int:
    """The place of `seen` in the list of that name, where it is put unless it is there."""
    members = lists.setdefault(name, [])
    if seen not in members:
        members.append(seen)
    return members.index(seen)


def _hash(*parts: Any) -> bytes:
    seen = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode(errors="backslashreplace")
        seen.update(len(raw).to_bytes(8, "big") + raw)
    return seen.digest()


def _name(x: Any) -> str:
    own = getattr(x, "__qualname__", None) or getattr(x, "__name__", "")
    return f"{type(x).__qualname__} {own}"


def _as_array(x: Any) -> np.ndarray | None:
    """`x` as an array of numbers, if it is one."""
    if isinstance(x, type) or not hasattr(x, "__array__"):
        return None
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError):
        return None


def _is_installed(x: Any) -> bool:
    """Whether a function, class or module comes with Python, an installed package, or this one."""
    name = x.__name__ if isinstance(x, types.ModuleType) else x.__module__ or "builtins"
    if name in sys.builtin_module_names or name.partition(".")[0] == __package__:
        return True
    module = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
    file = getattr(module, "__file__", None) or ""
    is_in_package = "site-packages" in file or "dist-packages" in file
    return name != "__main__" and (file.startswith(STDLIB) or is_in_package)


def _attributes(x: Any) -> dict[str, Any]:
    """Those of an object; of an installed class's without what they are linked to."""
    held = {**getattr(x, "__dict__", {})}
    if isinstance(x, types.ModuleType) or (_is_installed(type(x)) and hasattr(x, "__name__")):
        return {}
    if not _is_installed(type(x)):
        return held
    return {
        name: value
        for name, value in held.items()
        if isinstance(value, (*SCALARS, Collection)) or hasattr(value, "dtype") or callable(value)
    }


def _methods(cls: type) -> dict[str, Any]:
    """What the user's own classes among the bases of `cls` define."""
    of_user = [base for base in reversed(cls.__mro__) if not _is_installed(base)]
    defined = {name: x for base in of_user for name, x in vars(base).items()}
    return {
        name: getattr(x, "__func__", getattr(x, "fget", x))
        for name, x in defined.items()
        if not name.startswith("__") or name == "__call__"
    }


def _references(f: types.FunctionType) -> dict[str, Any]:
    """What `f` encloses, and what it names in its module, or in a module of the user's."""
    cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
    found = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    if not _is_installed(f):
        names = {*_names(f.__code__)}
        found |= {name: f.__globals__[name] for name in sorted(names & {*f.__globals__})}
        for name, value in [*found.items()]:
            found |= _of_module(name, value, names)
    return found


def _of_module(at: str, module: Any, names: set[str]) -> dict[str, Any]:
    """What code with these names uses of a module of the user's, and of modules in it."""
    if not isinstance(module, types.ModuleType) or _is_installed(module):
        return {}
    found: dict[str, Any] = {}
    for name in sorted(names & {*vars(module)}):
        value = vars(module)[name]
        found[f"{at}.{name}"] = value
        if getattr(value, "__package__", "") == module.__name__:
            found |= _of_module(f"{at}.{name}", value, names)
    return found


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _code(code: types.CodeType, doc: str | None = None) -> bytes:
    """What `code` does, without its documentation and where it stands in a file."""
    constants = [
        _code(x) if isinstance(x, types.CodeType) else f"{type(x).__name__} {_text(x)}"
        for x in code.co_consts
        if doc is None or x != doc
    ]
    return _hash(code.co_code, *code.co_names, code.co_argcount, *constants)


def _text(constant: Any) -> str:
    is_set = isinstance(constant, frozenset)
    return repr(sorted(map(repr, constant)) if is_set else constant)
