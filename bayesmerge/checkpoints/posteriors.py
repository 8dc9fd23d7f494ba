"""Posteriors on disk: one safetensors file, arrays under readable keys, structure as JSON.

The key of an array is the expression that finds it in what `load` returns, such as
`posteriors["digits"].linear["W"]`. The file's metadata say of what family each posterior is and
how its parameters θ nest; nothing in a file is ever executed.
"""

import functools
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesmerge.checkpoints.nesting import (
    Like,
    UnlikeError,
    is_custom,
    leaf_key,
    nested,
    nesting,
    shaped,
)
from bayesmerge.families import AbstractExponentialFamily, Beta, Dirichlet, Gamma, Layout
from bayesmerge.families.gaussian import NAMES, AbstractGaussian, gaussian
from bayesmerge.files import other_kind, readable, whole, writable
from bayesmerge.fit.tilted import Tilted
from bayesmerge.mixtures import Mixture
from bayesmerge.priors import ExactPrior
from bayesmerge.tasks import named

Read: TypeAlias = Callable[[str], np.ndarray]

SUFFIX = ".safetensors"
METADATA = "bayesmerge.posteriors"
MAGIC = b"{"
VERSION = 2
"""1 without containers that `load` takes from `like`."""

DTYPES = ("float32", "float64")
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Saved(NamedTuple):
    """What a file holds: q_t by task name, and p_0 if it was saved with them."""

    posteriors: dict[str, Any]
    prior: Any | None


CONJUGATE: dict[type, tuple[str, ...]] = {
    Beta: ("successes", "failures"),
    Dirichlet: ("counts",),
    Gamma: ("events", "rate"),
}
"""The fields that hold natural parameters, each shaped as θ."""

BY_NAME: dict[str, Any] = {f.__name__: f for f in (*NAMES.values(), *CONJUGATE)}


def save(
    path: str | os.PathLike[str], posteriors: Mapping[Any, Any], prior: Any | None = None
) -> None:
    """Write posteriors to one file: all of it, or the file stays as it was.

    - `path`: ends in `.safetensors`.
    - `posteriors`: q_t by task name, which is kept as text: Gaussians, `Beta`, `Dirichlet`,
      `Gamma`, and `Mixture` of one of these; improper ones too. Batches keep their leading axes.
      θ may be any pytree; where it has other containers than dicts, lists and tuples, such as
      Equinox modules, `load` needs `like`.
    - `prior`: p_0, kept with them.

    **Raises** `TypeError` for other posteriors, such as products and exact priors; `ValueError` for
    another suffix, or a folder that does not exist; `OSError` where the file cannot be written.

    ```python
    >>> import tempfile, jax.numpy as jnp, bayesmerge as bm
    >>> q = bm.IsotropicGaussian.from_mean_precision({"w": jnp.array([1.0, 2.0])}, 3.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bm.checkpoints.save(f"{folder}/tasks.safetensors", {"digits": q})
    ...     bm.checkpoints.load(f"{folder}/tasks.safetensors").posteriors["digits"].mode()
    {'w': Array([1., 2.], dtype=float32)}

    ```
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = writable(path, (SUFFIX,))
    names, members = named(posteriors, "posteriors")
    for name in names:
        _require_usable(name, names)
    arrays: dict[str, np.ndarray] = {}
    tasks: list[dict[str, Any]] = [
        {"name": name, "posterior": _described(q, _key_of(name), arrays)}
        for name, q in zip(names, members, strict=True)
    ]
    described = None if prior is None else _described(prior, "prior", arrays)
    of_all = [*(task["posterior"] for task in tasks), described or tasks[0]["posterior"]]
    structure = {
        "version": 1 + any(is_custom(_theta_of(q)) for q in of_all),
        "tasks": tasks,
        "prior": described,
    }
    metadata = {METADATA: json.dumps(structure, ensure_ascii=False)}
    with whole(path) as unfinished:
        try:
            save_file(arrays, unfinished, metadata)
        except SafetensorError as error:
            raise _as_usual(error) from error


def _as_usual(error: Exception) -> Exception:
    """What safetensors says of a full disk, as other writers do."""
    number = re.search(r"os error (\d+)", str(error))
    if number is None:
        return ValueError(
            f"the posteriors do not fit into one file ({error}): save fewer in one, or give them "
            "shorter names."
        )
    return OSError(int(number[1]), os.strerror(int(number[1])))


def load(path: str | os.PathLike[str], like: Any = None) -> Saved:
    """Read what `save` wrote: the same families, parameters and dtypes, the tasks in their order.

    - `like`: a model, parameters or posterior with the containers of θ, needed where these are not
      only dicts, lists and tuples. Names and shapes of its leaves must be those in the file; their
      values are not used, and leaves that are no floating-point arrays are left out of θ.

    **Warns** where the file holds float64 and jax does not: then it is rounded to float32; and
    where it holds numbers that are not finite.

    **Raises** `FileNotFoundError`, and `ValueError` for a file that is damaged, of another kind,
    written by a newer version, or not like `like`.

    ```python
    >>> import tempfile, jax.numpy as jnp, bayesmerge as bm
    >>> p0 = bm.Beta.from_concentrations(2.0, 2.0)
    >>> coins = {"mint": p0, "thrown": bm.Beta.from_concentrations(5.0, 3.0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bm.checkpoints.save(f"{folder}/coins.safetensors", coins, p0)
    ...     saved = bm.checkpoints.load(f"{folder}/coins.safetensors")
    >>> bm.merge(saved.posteriors, [1.0, 1.0], saved.prior).mode()
    Array(0.6666667, dtype=float32)
    >>> import collections
    >>> theta = collections.OrderedDict(w=jnp.ones(2))
    >>> q = bm.IsotropicGaussian.from_mean_precision(theta, 3.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bm.checkpoints.save(f"{folder}/q.safetensors", {"a": q})
    ...     bm.checkpoints.load(f"{folder}/q.safetensors", like=theta).posteriors["a"].mode()["w"]
    Array([1., 1.], dtype=float32)

    ```
    """
    from safetensors import SafetensorError, safe_open

    path = readable(path)
    try:
        with safe_open(path, framework="numpy") as file:
            structure = json.loads((file.metadata() or {}).get(METADATA, "null"))
            if structure is not None and structure["version"] <= VERSION:
                _warn_of_rounding(file, path)
                return _saved(structure, file.get_tensor, None if like is None else Like.of(like))
    except UnlikeError as error:
        raise ValueError(f"'{path}' {error}") from None
    except (SafetensorError, *DAMAGE) as error:
        raise ValueError(
            f"'{path}' is no file of posteriors, or a damaged one: "
            f"{other_kind(path, MAGIC) or error}. Copy it again, or save the posteriors again."
        ) from error
    if structure is None:
        raise ValueError(
            f"'{path}' holds arrays and does not say of what posteriors: it was not written by "
            "`bayesmerge.checkpoints.save`. `safetensors.numpy.load_file` reads bare parameters."
        )
    raise ValueError(
        f"'{path}' has version {structure['version']} of the format, and up to {VERSION} is read "
        "here: it needs a newer bayesmerge."
    )


def _warn_of_rounding(file: Any, path: Path) -> None:
    keys = file.keys()
    wide = any(file.get_slice(key).get_dtype() == "F64" for key in keys)
    if wide and jnp.result_type(float) == jnp.float32:
        warnings.warn(
            f"'{path}' holds float64, and jax is set to float32, to which it is rounded now. To "
            'keep all digits, run `jax.config.update("jax_enable_x64", True)` at the start, or set '
            "the environment variable JAX_ENABLE_X64=1.",
            stacklevel=3,
        )


def _key_of(task: str) -> str:
    return f"posteriors[{json.dumps(task, ensure_ascii=False)}]"


def _require_usable(name: str, names: tuple[str, ...]) -> None:
    if names.count(name) > 1:
        raise ValueError(f"posteriors has two tasks named '{name}': names must differ as text.")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"task name {name!r} is not valid Unicode ({error}): rename it.") from None


def _described(q: Any, key: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the metadata say of `q`, whose arrays are added to `arrays`."""
    if type(q) is Mixture:
        arrays[f"{key}.log_weights"] = _array(q.log_weights, f"{key}.log_weights")
        components = _described(q.components, f"{key}.components", arrays)
        return {"family": "Mixture", "components": components}
    if type(q) not in BY_NAME.values():
        raise TypeError(
            f"{key} is a {type(q).__name__}, and {', '.join(BY_NAME)} and Mixture are saved. "
            f"{_instead_of(q)}"
        )
    _require_shapes(q, key)
    for field, value in _fields(q).items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            name = leaf_key(f"{key}.{field}", path)
            if name in arrays:
                raise ValueError(f"two leaves of θ are named {name}: its class must name them.")
            arrays[name] = _array(leaf, name)
    described = {"family": type(q).__name__, "theta": nesting(shaped(q.layout))}
    if isinstance(q, AbstractGaussian) and (options := vars(q.precision.structure)):
        described["structure"] = options
    return described


def _fields(q: Any) -> dict[str, Any]:
    """Natural parameters, by the expression that finds them."""
    if isinstance(q, AbstractGaussian):
        return {"linear": q.linear, "precision.value": q.precision.value}
    return {field: getattr(q, field) for field in CONJUGATE[type(q)]}


def _frozen(option: Any) -> Any:
    """Tuples, which JSON makes lists."""
    return tuple(map(_frozen, option)) if isinstance(option, (list, tuple)) else option


def _field(name: str, q: Any) -> Any:
    return _fields(q)[name]


def _like(family: Any, theta: Any, options: dict[str, Any]) -> Any:
    """A member of the family with shapes in the place of arrays."""
    layout = Layout.of(theta)
    if family in CONJUGATE:
        return family(**dict.fromkeys(CONJUGATE[family], theta), layout=layout)
    frozen = {name: _frozen(option) for name, option in options.items()}
    structure = type(family.structure)(**frozen).over(layout)
    precision = jax.eval_shape(lambda x: structure.outer(x, x, layout), theta)
    return gaussian(theta, precision)


def _instead_of(q: Any) -> str:
    if isinstance(q, Tilted):
        return (
            "Its prior is a function, which no file can hold: save the Gaussians `factor` and "
            "`near` of it, and after loading make `bayesmerge.fit.Tilted(factor, prior, near)`."
        )
    if isinstance(q, ExactPrior):
        return (
            "An exact prior is a function, which no file can hold: save the posteriors without it, "
            "and pass it to `merge` after loading."
        )
    return "Save the factors of a product, and multiply them again after loading."


def _theta_of(description: dict[str, Any]) -> Any:
    is_mixture = description["family"] == "Mixture"
    return _theta_of(description["components"]) if is_mixture else description["theta"]


def _saved(structure: dict[str, Any], read: Read, like: Like | None) -> Saved:
    posteriors = {
        task["name"]: _rebuilt(task["posterior"], _key_of(task["name"]), read, like)
        for task in structure["tasks"]
    }
    prior = structure["prior"]
    return Saved(posteriors, None if prior is None else _rebuilt(prior, "prior", read, like))


def _rebuilt(description: dict[str, Any], key: str, read: Read, like: Like | None) -> Any:
    """The posterior that `_described`."""
    if description["family"] == "Mixture":
        components = _rebuilt(description["components"], f"{key}.components", read, like)
        log_weights = _leaf(f"{key}.log_weights", read)
        mixture = Mixture(jnp.exp(log_weights), components)
        return eqx.tree_at(lambda m: m.log_weights, mixture, log_weights)
    if description["family"] not in BY_NAME:
        raise ValueError(f"{key} is of a family '{description['family']}' not known here")
    family = BY_NAME[description["family"]]
    theta = nested(description["theta"]) if like is None else like.filled(description["theta"])
    q = _like(family, theta, description.get("structure", {}))
    for field, skeleton in _fields(q).items():
        paths, shape = jax.tree_util.tree_flatten_with_path(skeleton)
        leaves = [_leaf(leaf_key(f"{key}.{field}", path), read) for path, _ in paths]
        value = jax.tree.unflatten(shape, leaves)
        q = eqx.tree_at(functools.partial(_field, field), q, value)
    _require_shapes(q, key)
    return q


def _leaf(key: str, read: Read) -> Array:
    return jnp.asarray(_array(read(key), key))


def _require_shapes(q: AbstractExponentialFamily, key: str) -> None:
    theta = jax.tree.unflatten(
        q.layout.structure,
        [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in zip(q.layout.shapes, q.layout.dtypes, strict=True)
        ],
    )
    options = vars(q.precision.structure) if isinstance(q, AbstractGaussian) else {}
    expected_fields = _fields(_like(type(q), theta, options))
    for field, value in _fields(q).items():
        seen = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
        expected = [q.batch_shape + leaf.shape for leaf in jax.tree.leaves(expected_fields[field])]
        if seen != expected:
            raise ValueError(f"{key}.{field} has shapes {seen}, and they must be {expected}")


def _array(leaf: Any, name: str) -> np.ndarray:
    array = np.asarray(leaf, order="C")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    no_number = np.isnan(array) if name.endswith("log_weights") else ~np.isfinite(array)
    if no_number.any():
        index = tuple(np.argwhere(no_number)[0].tolist())
        raise ValueError(
            f"{name} must be finite, and at index {index} it is {array[index]} ({no_number.sum()} "
            "such entries): fit the posterior again"
        )
    if array.dtype.name not in DTYPES:
        raise TypeError(
            f"{name} has dtype {array.dtype}, and natural parameters are float32 or float64: cast "
            "the posterior back with `jax.tree.map(lambda x: x.astype(jnp.float32), posterior)`."
        )
    return array
