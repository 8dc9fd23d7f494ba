"""Precisions made of dense matrices, each over some leaves of θ."""

import abc
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from bayesmerge.arrays import as_array
from bayesmerge.families.checks import all_finite, require, require_finite
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision.abstract import AbstractFactor, AbstractPrecision, away_from_zero
from bayesmerge.families.show import first
from bayesmerge.linear_algebra import cho_solve, cholesky, eigh, solve_triangular

Groups = tuple[tuple[int, ...], ...]


class AbstractMatrices(AbstractPrecision):
    """A dense matrix for every group of leaves, zero between groups."""

    @property
    @abc.abstractmethod
    def matrices(self) -> list[Any]:
        """One for each group."""

    @property
    @abc.abstractmethod
    def grouping(self) -> Groups:
        """The numbers of the leaves in every group."""

    @abc.abstractmethod
    def with_matrices(self, matrices: list[Any]) -> Any:
        """The same structure with other matrices."""

    def multiply(self, theta: PyTree) -> PyTree:
        pairs = zip(self.matrices, vectors(theta, self.grouping), strict=True)
        return assembled([M @ v for M, v in pairs], self.grouping, self.layout)

    def factor(self) -> "MatricesFactor":
        return MatricesFactor([cholesky(M) for M in self.matrices], self)

    def diagonal(self) -> PyTree:
        return assembled([jnp.diag(M) for M in self.matrices], self.grouping, self.layout)

    def block(self, leaves: tuple[int, ...]) -> Float[Array, "_ _"]:
        if leaves in self.grouping:
            return self.matrices[self.grouping.index(leaves)]
        sizes = [math.prod(shape) for shape in self.layout.shapes]
        found = jnp.zeros((sum(sizes[i] for i in leaves),) * 2, jnp.result_type(*self.matrices))
        to = _places(leaves, sizes)
        for group, M in zip(self.grouping, self.matrices, strict=True):
            at = _places(group, sizes)
            inside = [i for i in group if i in to]
            for i, j in itertools.product(inside, inside):
                found = found.at[to[i], to[j]].set(M[at[i], at[j]])
        return found

    def weakest(self) -> tuple[Float[Array, ""], PyTree]:
        values, directions = zip(*(eigh(M) for M in self.matrices), strict=True)
        least = jnp.stack([x[0] for x in values])
        lengths = (jnp.arange(len(least)) == jnp.argmin(least)).astype(least.dtype)
        along = [c * V[:, 0] for c, V in zip(lengths, directions, strict=True)]
        return jnp.min(least), assembled(along, self.grouping, self.layout)

    def sandwich(self, G: Any) -> Any:
        halves = [
            solve_triangular(cholesky(M), g) for M, g in zip(self.matrices, G.matrices, strict=True)
        ]
        return self.with_matrices([half.T @ half for half in halves])

    def absolute(self) -> Any:
        decomposed = [eigh(M) for M in self.matrices]
        return self.with_matrices(
            [(vectors * away_from_zero(values)[None]) @ vectors.T for values, vectors in decomposed]
        )

    def statistic(self, theta: PyTree) -> Any:
        """−½θθᵀ, block by block."""
        products = [-0.5 * jnp.outer(v, v) for v in vectors(theta, self.grouping)]
        return self.with_matrices(products).value

    def shown(self, linear: list[Any]) -> tuple[list[Any], list[Any]] | None:
        from scipy.linalg.lapack import dtrtri

        mean: dict[int, Any] = {}
        sd: dict[int, Any] = {}
        for group, M in zip(self.grouping, self.matrices, strict=True):
            eta = np.concatenate([linear[i].reshape(-1) for i in group])
            try:
                lower = np.linalg.cholesky(np.asarray(M, float))
            except np.linalg.LinAlgError:
                return None
            root, _ = dtrtri(lower, lower=1)
            mu, sigma = root.T @ (root @ eta), np.sqrt(np.sum(root**2, axis=0))
            ends = np.cumsum([0, *(linear[i].size for i in group)])
            for i, (a, b) in zip(group, itertools.pairwise(ends), strict=True):
                mean[i], sd[i] = first(mu[a:b]), first(sigma[a:b])
        return [mean[i] for i in range(len(linear))], [sd[i] for i in range(len(linear))]


class MatricesFactor(AbstractFactor):
    """Cholesky factors, LLᵀ of every matrix."""

    lowers: list[Float[Array, "_ _"]]
    precision: AbstractMatrices

    def is_positive(self) -> Bool[Array, ""]:
        return all_finite(self.lowers)

    def solve(self, vector: PyTree) -> PyTree:
        return self._each(cho_solve, vector)

    def half_solve(self, noise: PyTree) -> PyTree:
        return self._each(lambda L, e: solve_triangular(L, e, transpose=True), noise)

    def log_determinant(self) -> Float[Array, ""]:
        return sum(2 * jnp.sum(jnp.log(jnp.diag(L))) for L in self.lowers)  # type: ignore[return-value]

    def inverse(self) -> Any:
        eyes = [jnp.eye(len(L), dtype=L.dtype) for L in self.lowers]
        return self.precision.with_matrices(
            [cho_solve(L, eye) for L, eye in zip(self.lowers, eyes, strict=True)]
        )

    def excess(self, other: "MatricesFactor") -> Float[Array, ""]:
        halves = [solve_triangular(L, M) for L, M in zip(self.lowers, other.lowers, strict=True)]
        trace: Any = sum(jnp.sum(half**2) for half in halves)
        log_ratio = other.log_determinant() - self.log_determinant()
        return trace - self.precision.layout.size - log_ratio

    def _each(self, solve: Any, tree: PyTree) -> PyTree:
        pairs = zip(self.lowers, vectors(tree, self.precision.grouping), strict=True)
        return assembled(
            [solve(L, v) for L, v in pairs], self.precision.grouping, self.precision.layout
        )


def _places(group: tuple[int, ...], sizes: list[int]) -> dict[int, slice]:
    """Where every leaf of a group is in its vector."""
    ends = itertools.accumulate(sizes[i] for i in group)
    return {i: slice(end - sizes[i], end) for i, end in zip(group, ends, strict=True)}


def vectors(theta: PyTree, groups: Groups) -> list[Float[Array, " _"]]:
    """θ as one vector a group."""
    leaves = jax.tree.leaves(theta)
    return [jnp.concatenate([jnp.ravel(leaves[i]) for i in group]) for group in groups]


def assembled(parts: Sequence[Array], groups: Groups, layout: Layout) -> PyTree:
    """The pytree shaped as θ whose `vectors` are `parts`."""
    leaves: dict[int, Array] = {}
    for group, vector in zip(groups, parts, strict=True):
        sizes = [math.prod(layout.shapes[i]) for i in group]
        pieces = jnp.split(vector, np.cumsum(sizes)[:-1].tolist())
        for i, piece in zip(group, pieces, strict=True):
            leaves[i] = piece.reshape(layout.shapes[i]).astype(layout.dtypes[i])
    return jax.tree.unflatten(layout.structure, [leaves[i] for i in range(len(layout.names))])


def symmetric(matrix: ArrayLike, size: int, name: str, layout: Layout) -> Float[Array, "_ _"]:
    """`matrix` with rounding errors of symmetry removed, or an error where it has more."""
    found = as_array(matrix, name, jnp.result_type(*layout.dtypes))
    if found.shape != (size, size):
        kind = "full precision" if name == "precision" else "block"
        raise ValueError(
            f"{name} has shape {found.shape}, and a {kind} over {size} parameters has shape "
            f"{(size, size)}."
        )
    found = require_finite(found, name)
    asymmetry = jnp.max(jnp.abs(found - found.T), initial=0)
    allowed = jnp.sqrt(jnp.finfo(found.dtype).eps) * jnp.max(jnp.abs(found), initial=0)
    found = require(
        found,
        asymmetry <= allowed,
        f"{name} must be symmetric, and it is not.",
        lambda: f"The largest difference of mirrored entries is {asymmetry}.",
    )
    return 0.5 * (found + found.T)
