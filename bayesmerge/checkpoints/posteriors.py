"""Posteriors on disk: one safetensors file, arrays under readable keys, structure as JSON.

The key of an array is the expression that finds it in what `load` returns, such as
`posteriors["digits"].linear["W"]`. The file's metadata say of what family each posterior is and
how its parameters θ nest; nothing in a file is ever executed.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesmerge.families import (
    AbstractExponentialFamily,
    Beta,
    DiagonalGaussian,
    Dirichlet,
    FullGaussian,
    Gamma,
    IsotropicGaussian,
    Layout,
)
from bayesmerge.files import whole
from bayesmerge.mixtures import Mixture
from bayesmerge.tasks import named

Shapes: TypeAlias = list[tuple[int, ...]]
Read: TypeAlias = Callable[[str], np.ndarray]

SUFFIX = ".safetensors"
METADATA = "bayesmerge.posteriors"
VERSION = 1
DTYPES = ("float32", "float64")
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Saved(NamedTuple):
    """What a file holds: q_t by task name, and p_0 if it was saved with them."""

    posteriors: dict[str, Any]
    prior: Any | None


def _of_theta(layout: Layout) -> Shapes:
    return [*layout.shapes]


def _scalar(layout: Layout) -> Shapes:
    return [()]


def _matrix(layout: Layout) -> Shapes:
    return [(layout.size, layout.size)]


# The fields that hold natural parameters, and the shapes of their leaves.
FAMILIES: dict[type, dict[str, Callable[[Layout], Shapes]]] = {
    IsotropicGaussian: {"linear": _of_theta, "precision": _scalar},
    DiagonalGaussian: {"linear": _of_theta, "precision": _of_theta},
    FullGaussian: {"linear": _of_theta, "precision": _matrix},
    Beta: {"successes": _of_theta, "failures": _of_theta},
    Dirichlet: {"counts": _of_theta},
    Gamma: {"events": _of_theta, "rate": _of_theta},
}
BY_NAME = {family.__name__: family for family in FAMILIES}


def save(
    path: str | os.PathLike[str], posteriors: Mapping[Any, Any], prior: Any | None = None
) -> None:
    """Write posteriors to one file: all of it, or the file stays as it was.

    - `path`: ends in `.safetensors`.
    - `posteriors`: q_t by task name: Gaussians, `Beta`, `Dirichlet`, `Gamma`, and `Mixture` of
      one of these; improper ones too. Batches keep their leading axes.
    - `prior`: p_0, kept with them.

    **Raises** `TypeError` for other posteriors, and for parameters θ in containers other than
    dicts, lists and tuples; `ValueError` for another suffix, or a folder that does not exist.

    ```python
    >>> import tempfile, jax.numpy as jnp, bayesmerge as bm
    >>> q = bm.IsotropicGaussian.from_mean_precision({"w": jnp.array([1.0, 2.0])}, 3.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bm.checkpoints.save(f"{folder}/tasks.safetensors", {"digits": q})
    ...     bm.checkpoints.load(f"{folder}/tasks.safetensors").posteriors["digits"].mode()
    {'w': Array([1., 2.], dtype=float32)}

    ```
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path is '{path}', and its name must end in {SUFFIX}.")
    if not path.parent.is_dir():
        raise ValueError(
            f"path is '{path}', and there is no folder '{path.parent}': make it first."
        )
    names, members = named(posteriors, "posteriors")
    for name in names:
        _require_usable(name, names)
    arrays: dict[str, np.ndarray] = {}
    tasks = [
        {"name": name, "posterior": _described(q, _key_of(name), arrays)}
        for name, q in zip(names, members, strict=True)
    ]
    structure = {
        "version": VERSION,
        "tasks": tasks,
        "prior": None if prior is None else _described(prior, "prior", arrays),
    }
    with whole(path) as unfinished:
        unfinished.touch()
        permissions = unfinished.stat().st_mode
        save_file(arrays, unfinished, {METADATA: json.dumps(structure, ensure_ascii=False)})
        unfinished.chmod(permissions)  # safetensors lets nobody else read what it writes


def load(path: str | os.PathLike[str]) -> Saved:
    """Read what `save` wrote: the same families, parameters and dtypes, the tasks in their order.

    **Warns** where the file holds float64 and jax does not: then it is rounded to float32.

    **Raises** `FileNotFoundError`, and `ValueError` for a file that is damaged, of another kind, or
    written by a newer version.

    ```python
    >>> import tempfile, jax.numpy as jnp, bayesmerge as bm
    >>> p0 = bm.Beta.from_concentrations(2.0, 2.0)
    >>> coins = {"mint": p0, "thrown": bm.Beta.from_concentrations(5.0, 3.0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bm.checkpoints.save(f"{folder}/coins.safetensors", coins, p0)
    ...     saved = bm.checkpoints.load(f"{folder}/coins.safetensors")
    >>> bm.merge(saved.posteriors, [1.0, 1.0], saved.prior).mode()
    Array(0.6666667, dtype=float32)

    ```
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is '{path}', and there is no such file.")
    try:
        with safe_open(path, framework="numpy") as file:
            structure = json.loads((file.metadata() or {}).get(METADATA, "null"))
            if structure is not None and structure["version"] <= VERSION:
                _warn_of_rounding(file, path)
                return _saved(structure, file.get_tensor)
    except (SafetensorError, *DAMAGE) as error:
        raise ValueError(
            f"'{path}' is no file of posteriors, or a damaged one: {error}. Copy it again, or save "
            "the posteriors again."
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
    if type(q) not in FAMILIES:
        raise TypeError(
            f"{key} is a {type(q).__name__}, and {', '.join(BY_NAME)} and Mixture are saved. Save "
            "the factors of a product, and multiply them again after loading."
        )
    _require_shapes(q, key)
    theta = _nesting(q.layout.structure, iter(zip(q.layout.shapes, q.layout.dtypes, strict=True)))
    for field in FAMILIES[type(q)]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(q, field)):
            name = _leaf_key(f"{key}.{field}", path)
            arrays[name] = _array(leaf, name)
    return {"family": type(q).__name__, "theta": theta}


def _saved(structure: dict[str, Any], read: Read) -> Saved:
    posteriors = {
        task["name"]: _rebuilt(task["posterior"], _key_of(task["name"]), read)
        for task in structure["tasks"]
    }
    prior = structure["prior"]
    return Saved(posteriors, None if prior is None else _rebuilt(prior, "prior", read))


def _rebuilt(description: dict[str, Any], key: str, read: Read) -> Any:
    """The posterior that `_described`."""
    if description["family"] == "Mixture":
        components = _rebuilt(description["components"], f"{key}.components", read)
        log_weights = _leaf(f"{key}.log_weights", read)
        mixture = Mixture(jnp.exp(log_weights), components)
        return eqx.tree_at(lambda m: m.log_weights, mixture, log_weights)
    if description["family"] not in BY_NAME:
        raise ValueError(f"{key} is of a family '{description['family']}' not known here")
    family = BY_NAME[description["family"]]
    theta = _nested(description["theta"])
    layout = Layout.of(theta)
    fields = {}
    for field, shapes in FAMILIES[family].items():
        skeleton = theta if shapes is _of_theta else 0
        fields[field] = jax.tree_util.tree_map_with_path(
            lambda path, _, at=f"{key}.{field}": _leaf(_leaf_key(at, path), read), skeleton
        )
    q = family(**fields, layout=layout)
    _require_shapes(q, key)
    return q


def _leaf(key: str, read: Read) -> Array:
    return jnp.asarray(_array(read(key), key))


def _require_shapes(q: AbstractExponentialFamily, key: str) -> None:
    for field, shapes in FAMILIES[type(q)].items():
        seen = [jnp.shape(leaf) for leaf in jax.tree.leaves(getattr(q, field))]
        expected = [q.batch_shape + shape for shape in shapes(q.layout)]
        if seen != expected:
            raise ValueError(f"{key}.{field} has shapes {seen}, and they must be {expected}")


def _array(leaf: Any, name: str) -> np.ndarray:
    array = np.asarray(leaf, order="C")
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


def _leaf_key(field: str, path: tuple[Any, ...]) -> str:
    steps = [step.key if hasattr(step, "key") else step.idx for step in path]
    return field + "".join(f"[{json.dumps(step, ensure_ascii=False)}]" for step in steps)


def _nesting(structure: Any, leaves: Any, at: str = "theta") -> Any:
    """A pytree's containers as JSON: a leaf is an object with its shape and dtype."""
    node = structure.node_data()
    if node is None:
        shape, dtype = next(leaves)
        return {"shape": [*shape], "dtype": dtype}
    container, keys = node
    if container is type(None):
        return None
    children = structure.children()
    if container is dict and all(type(key) in (str, int) for key in keys):
        pairs = zip(keys, children, strict=True)
        return {"dict": [[k, _nesting(child, leaves, f"{at}[{k!r}]")] for k, child in pairs]}
    if container in (list, tuple):
        parts = [_nesting(child, leaves, f"{at}[{i}]") for i, child in enumerate(children)]
        return {container.__name__: parts}
    what = f"dict with the keys {keys}" if container is dict else container.__name__
    raise TypeError(
        f"{at} is a {what}, and parameters are saved in dicts (with text or whole numbers for "
        "keys), lists and tuples. Write the model's parameters as a dict, fit the posterior over "
        "that, and rebuild the model from the merged dict."
    )


def _nested(nesting: Any) -> Any:
    """The pytree that `_nesting` described, its leaves with shapes and dtypes but no values."""
    if nesting is None:
        return None
    ((kind, content), *rest) = nesting.items()
    if rest:
        shape = tuple(int(n) for n in nesting["shape"])
        return jax.ShapeDtypeStruct(shape, np.dtype(nesting["dtype"]))
    if kind == "dict":
        return {key: _nested(child) for key, child in content}
    return {"list": list, "tuple": tuple}[kind](_nested(child) for child in content)
