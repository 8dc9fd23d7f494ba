"""How a parameter pytree θ lies in one flat vector of length P."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.arrays import as_array


@dataclasses.dataclass(frozen=True)
class Layout:
    """Structure, shapes and dtypes of a pytree θ. Layouts are equal when these are equal, so
    that two posteriors of one model combine wherever their layouts were made."""

    structure: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, theta: PyTree, name: str = "theta") -> "Layout":
        """The layout of `theta`.

        **Raises** `TypeError` for a leaf that is not a floating-point array, `ValueError` for a
        pytree without leaves or entries.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(theta)
        if all(0 in getattr(leaf, "shape", ()) for _, leaf in leaves):
            raise ValueError(
                f"{name} has no {'entries' if leaves else 'leaves'}: a posterior needs at least "
                "one parameter."
            )
        names = tuple(jax.tree_util.keystr(path) for path, _ in leaves)
        for leaf_name, (_, leaf) in zip(names, leaves, strict=True):
            _require_floating(leaf, f"{name}{leaf_name}")
        shapes = tuple(jnp.shape(leaf) for _, leaf in leaves)
        dtypes = tuple(jnp.result_type(leaf).name for _, leaf in leaves)
        return cls(structure, names, shapes, dtypes)

    def __repr__(self) -> str:
        shapes = dict(zip(self.names, self.shapes, strict=True))
        return f"Layout of {self.size} parameters, {shapes}"

    def __reduce__(self) -> tuple[Any, ...]:
        skeleton = jax.tree.unflatten(self.structure, range(len(self.names)))
        return _rebuild, (skeleton, self.names, self.shapes, self.dtypes)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    def ravel(self, theta: PyTree) -> Float[Array, " P"]:
        """θ as one vector, leaf after leaf, each in row-major order."""
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(theta)])

    def unravel(self, vector: Float[Array, " P"]) -> PyTree:
        """The pytree θ whose `ravel` is `vector`."""
        ends = [sum(math.prod(s) for s in self.shapes[: i + 1]) for i in range(len(self.shapes))]
        pieces = jnp.split(vector, ends[:-1])
        leaves = [
            piece.reshape(shape).astype(dtype)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def require_same(self, other: "Layout", what: str = "the two posteriors") -> None:
        """Nothing, or a `ValueError` that names the first leaf where the layouts differ."""
        if self == other:
            return
        difference = self._first_difference(other)
        raise ValueError(
            f"{what} must have the same parameters, and {difference}. Posteriors combine only "
            "over one model: the same pytree, shapes and dtypes."
        )

    def _first_difference(self, other: "Layout") -> str:
        mine, theirs = set(self.names), set(other.names)
        for name in (*self.names, *other.names):
            if name not in theirs:
                return f"leaf '{name or 'theta'}' is only in the first"
            if name not in mine:
                return f"leaf '{name or 'theta'}' is only in the second"
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            index = other.names.index(name)
            if shape != other.shapes[index]:
                return f"leaf '{name or 'theta'}' has shape {shape} and {other.shapes[index]}"
            if dtype != other.dtypes[index]:
                return f"leaf '{name or 'theta'}' has dtype {dtype} and {other.dtypes[index]}"
        return f"their tree structures are {self.structure} and {other.structure}"


def _rebuild(skeleton: PyTree, *fields: Any) -> Layout:
    """A layout from a copy: tree structures compare by identity of parts that copying renews."""
    return Layout(jax.tree.structure(skeleton), *fields)


def _require_floating(leaf: Any, name: str) -> None:
    if not hasattr(leaf, "dtype") and not isinstance(leaf, (int, float)):
        raise TypeError(
            f"{name} is {type(leaf).__name__}, and every leaf must be a floating-point array. "
            "Take the parameters out of the model first, e.g. with "
            "`equinox.partition(model, equinox.is_inexact_array)`."
        )
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {dtype}, and parameters must be floating point: a posterior over "
            "integers has no density here. Cast it with `.astype(float)`, or leave it out of theta."
        )
    if jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"{name} has dtype {dtype}, in which adding natural parameters loses whole factors. "
            "Hold posteriors in float32 (`.astype(jnp.float32)`) and cast the merged model back."
        )


def as_arrays(theta: PyTree, name: str = "theta") -> tuple[PyTree, Layout]:
    """`theta` with jax arrays for leaves, and its layout."""

    def one(path: Any, leaf: Any) -> Any:
        is_number = hasattr(leaf, "dtype") or isinstance(leaf, (int, float))
        return as_array(leaf, name + jax.tree_util.keystr(path)) if is_number else leaf

    arrays = jax.tree_util.tree_map_with_path(one, theta)
    return arrays, Layout.of(arrays, name)


def as_point(theta: PyTree, layout: Layout, name: str) -> PyTree:
    """`theta` with arrays of the layout's dtypes for leaves, or an error that names the first leaf
    which is not shaped as the layout's."""
    theta, own = as_arrays(theta, name)
    if own.structure != layout.structure or own.shapes != layout.shapes:
        raise ValueError(
            f"{name} is a point of the parameters and must be shaped as they are, and "
            f"{layout._first_difference(own)} (first: the parameters, second: {name})."
        )
    leaves = zip(jax.tree.leaves(theta), layout.dtypes, strict=True)
    return jax.tree.unflatten(layout.structure, [x.astype(dtype) for x, dtype in leaves])
