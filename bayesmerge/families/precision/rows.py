"""Σ_s r_sr_sᵀ as a matrix of which a structure computes the entries that it keeps."""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.layout import Layout


class Rows(NamedTuple):
    """RᵀR.

    - `rows`: R, a row as `layout.ravel` makes it of something shaped as θ.
    """

    rows: Float[Array, "S P"]
    layout: Layout

    def diagonal(self) -> PyTree:
        return self.layout.unravel(jnp.sum(self.rows**2, axis=0))

    def dense(self) -> Float[Array, "P P"]:
        return self.rows.T @ self.rows

    def restricted(self, leaves: tuple[int, ...]) -> "Rows":
        sizes = [math.prod(shape) for shape in self.layout.shapes]
        ends = [0, *itertools.accumulate(sizes)]
        columns = [self.rows[:, ends[i] : ends[i + 1]] for i in leaves]
        return Rows(jnp.concatenate(columns, axis=1), self.layout)
