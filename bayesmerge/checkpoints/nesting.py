"""How parameters θ nest, as JSON.

A file holds no classes: containers other than dicts, lists and tuples are described by the names of
their leaves, and are taken from a pytree like the saved one.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayesmerge.families import Layout
from bayesmerge.families.base import AbstractPosterior


class UnlikeError(Exception):
    """A file has parameters that are not in `like`, or cannot be made without it."""


def shaped(layout: Layout) -> Any:
    """θ with shapes and dtypes for leaves."""
    leaves = zip(layout.shapes, layout.dtypes, strict=True)
    return jax.tree.unflatten(layout.structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def leaf_key(field: str, path: tuple[Any, ...]) -> str:
    return field + "".join(map(_step, path))


def _step(key: Any) -> str:
    """One step on the way to a leaf, as Python writes it."""
    name = getattr(key, "key", getattr(key, "idx", None))
    if type(name) in (str, int):
        return f"[{json.dumps(name, ensure_ascii=False)}]"
    return f"[{name!r}]" if name is not None else str(key)


def nesting(theta: Any) -> Any:
    """Containers as JSON: a leaf is an object with its shape and dtype."""
    if theta is None:
        return None
    if isinstance(theta, jax.ShapeDtypeStruct):
        return {"shape": [*theta.shape], "dtype": theta.dtype.name}
    if type(theta) is dict and all(type(key) in (str, int) for key in theta):
        return {"dict": [[key, nesting(child)] for key, child in theta.items()]}
    if type(theta) in (list, tuple):
        return {type(theta).__name__: [nesting(child) for child in theta]}
    children = jax.tree_util.tree_leaves_with_path(theta, is_leaf=lambda child: child is not theta)
    return {
        "class": f"{type(theta).__module__}.{type(theta).__qualname__}",
        "children": [[leaf_key("", path), nesting(child)] for path, child in children],
    }


def nested(nesting: Any) -> Any:
    """The pytree that `nesting` described, its leaves with shapes and dtypes but no values."""
    if nesting is None:
        return None
    if "class" in nesting:
        raise UnlikeError(
            f"has parameters in a {nesting['class']}, and a file holds no classes: give a model, "
            "parameters or a posterior with this class, such as "
            "bayesmerge.checkpoints.load(path, like=model)."
        )
    ((kind, content), *rest) = nesting.items()
    if rest:
        return _leaf(nesting)
    if kind == "dict":
        return {key: nested(child) for key, child in content}
    return {"list": list, "tuple": tuple}[kind](nested(child) for child in content)


def _leaf(leaf: dict[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(int(n) for n in leaf["shape"]), np.dtype(leaf["dtype"]))


def is_custom(nesting: Any) -> bool:
    """Whether there are containers other than dicts, lists and tuples."""
    if nesting is None or "shape" in nesting:
        return False
    ((kind, content), *_) = nesting.items()
    return kind == "class" or any(
        is_custom(child[1] if kind == "dict" else child) for child in content
    )


def _leaves(nesting: Any, at: str = "") -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
    """The leaves that `nesting` described, with their names."""
    if nesting is None:
        return
    if "shape" in nesting:
        yield at, _leaf(nesting)
        return
    if "class" in nesting:
        children = nesting["children"]
    elif "dict" in nesting:
        children = [[f"[{json.dumps(k, ensure_ascii=False)}]", x] for k, x in nesting["dict"]]
    else:
        ((_, content),) = nesting.items()
        children = [[f"[{i}]", child] for i, child in enumerate(content)]
    for step, child in children:
        yield from _leaves(child, f"{at}{step}")


class Like(NamedTuple):
    """The names and shapes of the leaves of a pytree, and its structure."""

    shapes: dict[str, tuple[int, ...]]
    structure: Any

    @classmethod
    def of(cls, like: Any) -> "Like":
        """Of a posterior's θ, or of the floating-point leaves of a pytree."""
        is_posterior = isinstance(like, AbstractPosterior)
        theta = shaped(like.layout) if is_posterior else eqx.filter(like, _is_parameter)
        paths = jax.tree_util.tree_leaves_with_path(theta)
        shapes = {leaf_key("", path): tuple(jnp.shape(leaf)) for path, leaf in paths}
        return cls(shapes, jax.tree.structure(theta))

    def filled(self, description: Any) -> Any:
        """The pytree with the leaves that `nesting` described."""
        saved = dict(_leaves(description))
        for name in (*saved, *self.shapes):
            if name not in self.shapes or name not in saved:
                has, lacks = ("like", "it") if name in self.shapes else ("it", "like")
                raise UnlikeError(
                    f"is not as `like`: {has} has a leaf '{name}', and {lacks} has none."
                )
            if saved[name].shape != self.shapes[name]:
                raise UnlikeError(
                    f"is not as `like`: leaf '{name}' has shape {saved[name].shape} in it, and "
                    f"{self.shapes[name]} in like."
                )
        return jax.tree.unflatten(self.structure, [saved[name] for name in self.shapes])


def _is_parameter(x: Any) -> bool:
    is_shape = isinstance(x, jax.ShapeDtypeStruct)
    return eqx.is_inexact_array_like(x) or (is_shape and jnp.issubdtype(x.dtype, jnp.inexact))
