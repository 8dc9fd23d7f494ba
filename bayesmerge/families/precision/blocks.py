"""A dense matrix for each leaf of θ, or for groups of leaves, and nothing between them."""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.layout import Layout
from bayesmerge.families.precision.abstract import (
    AbstractPrecision,
    AbstractStructure,
    ImplicitMatrix,
)
from bayesmerge.families.precision.matrices import AbstractMatrices, Groups, symmetric, vectors
from bayesmerge.families.show import leaf_name


class BlockPrecision(AbstractMatrices):
    """Λ = diag(Λ_1, …, Λ_G).

    - `value`: Λ_g, a matrix for every group of leaves.
    - `groups`: the numbers of the leaves in each.
    """

    value: tuple[Float[Array, "*batch _ _"], ...]
    layout: Layout = eqx.field(static=True)
    groups: Groups = eqx.field(static=True)

    @property
    def structure(self) -> "Blocks":
        return Blocks(self.groups)

    @property
    def grouping(self) -> Groups:
        return self.groups

    @property
    def matrices(self) -> list[Any]:
        return [*self.value]

    def with_matrices(self, matrices: list[Any]) -> "BlockPrecision":
        return BlockPrecision(tuple(matrices), self.layout, self.groups)


class Blocks(AbstractStructure):
    """Λ = diag(Λ_1, …, Λ_G), a dense matrix for each group of leaves.

    - `groups`: names of leaves that share a block, as patterns: `[["layer1.*"], ["out.w",
      "out.b"]]` (`"layer.0.w"` is the leaf `theta["layer"][0].w`). Other leaves have a block each,
      and so have all by default.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> theta = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    >>> def loss(theta, batch):
    ...     x, y = batch
    ...     return 0.5 * (x @ theta["w"] + theta["b"] - y) ** 2
    >>> target = bm.Target(loss, (jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.ones(2)))
    >>> q = bm.expand(target, theta, structure=bm.Blocks())
    >>> for matrix in q.precision.value:
    ...     print(matrix)
    [[2.]]
    [[1. 2.]
     [2. 5.]]

    ```
    """

    name: ClassVar[str] = "blocks"
    is_entrywise: ClassVar[bool] = False
    groups: Any = eqx.field(static=True, default=None)

    def __init__(self, groups: Sequence[Sequence[str]] | Groups | None = None):
        if isinstance(groups, str) or any(isinstance(group, str) for group in groups or ()):
            raise TypeError(
                f"groups is {groups!r}, and it is a sequence of groups, each a sequence of names "
                "of leaves: `Blocks([['layer1.*'], ['out.w', 'out.b']])`."
            )
        self.groups = None if groups is None else tuple(tuple(group) for group in groups)

    def over(self, layout: Layout) -> "Blocks":
        """The groups by numbers of leaves.

        **Raises** `ValueError` for a pattern that no leaf matches, or two groups that share one.
        """
        if self._is_numbered(layout):
            return self
        names = [leaf_name(name) for name in layout.names]
        group_of: dict[int, int] = {}
        for number, patterns in enumerate(self.groups or ()):
            for pattern in patterns:
                found = [i for i, n in enumerate(names) if fnmatch.fnmatchcase(n, str(pattern))]
                if not found:
                    raise ValueError(
                        f"groups holds {pattern!r}, and no leaf of θ has that name: they are "
                        f"{names}."
                    )
                for i in found:
                    if group_of.setdefault(i, number) != number:
                        raise ValueError(
                            f"groups {group_of[i]} and {number} both hold the leaf '{names[i]}': a "
                            "leaf is in one block."
                        )
        alone = [(i,) for i in range(len(names)) if i not in group_of]
        together = [
            tuple(i for i in sorted(group_of) if group_of[i] == number)
            for number in range(len(self.groups or ()))
        ]
        return Blocks(tuple(sorted([*alone, *filter(None, together)])))

    def _is_numbered(self, layout: Layout) -> bool:
        numbers = [i for group in self.groups or () for i in group]
        return sorted(map(repr, numbers)) == sorted(map(repr, range(len(layout.names))))

    def of(self, value: Any, layout: Layout) -> BlockPrecision:
        groups = self.over(layout).groups
        sizes = _sizes(groups, layout)
        matrices = [*value] if isinstance(value, (list, tuple)) else value
        if not isinstance(matrices, list) or len(matrices) != len(groups):
            raise ValueError(
                f"precision must be a sequence of {len(groups)} matrices, one for each group of "
                f"leaves, of sizes {sizes}; it is {type(value).__name__} of length "
                f"{len(value) if hasattr(value, '__len__') else 1}."
            )
        checked = [
            symmetric(M, size, f"precision[{g}]", layout)
            for g, (M, size) in enumerate(zip(matrices, sizes, strict=True))
        ]
        return BlockPrecision(tuple(checked), layout, groups)

    def of_matrix(self, matrix: ImplicitMatrix, layout: Layout) -> BlockPrecision:
        groups = self.over(layout).groups
        return BlockPrecision(tuple(matrix.restricted(g).dense() for g in groups), layout, groups)

    def convert(self, precision: AbstractPrecision) -> BlockPrecision:
        groups = self.over(precision.layout).groups
        return BlockPrecision(tuple(map(precision.block, groups)), precision.layout, groups)

    def outer(self, x: PyTree, y: PyTree, layout: Layout) -> BlockPrecision:
        groups = self.over(layout).groups
        products = map(jnp.outer, vectors(x, groups), vectors(y, groups))
        return BlockPrecision(tuple(0.5 * (m + m.T) for m in products), layout, groups)

    def joined(self, other: "Blocks") -> "Blocks":
        """Leaves that share a block in one of the two share one in the result."""
        merged: list[set[int]] = []
        for group in (*self.groups, *other.groups):
            touching = [m for m in merged if m & set(group)]
            merged = [m for m in merged if not m & set(group)]
            merged.append(set(group).union(*touching))
        return Blocks(tuple(sorted(tuple(sorted(m)) for m in merged)))

    def largest_block(self, layout: Layout) -> int:
        return max(_sizes(self.over(layout).groups, layout))


def _sizes(groups: Groups, layout: Layout) -> list[int]:
    return [sum(math.prod(layout.shapes[i]) for i in group) for group in groups]
