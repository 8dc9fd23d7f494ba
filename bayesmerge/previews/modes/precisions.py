"""What a sweep asks of precisions beyond the methods of Gaussians: matrices and their factors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import all_finite
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import Full
from bayesmerge.linear_algebra import cho_solve, cholesky, eigh, qr, solve_triangular

INVERSE_STEPS = 30
SAFETY = 0.9
"""λ_min as inverse iteration sees it, from above, times this: a Cholesky factor then proves it."""


def is_dense(posterior: Any) -> bool:
    """Whether a posterior is a Gaussian of which the precision is one matrix."""
    is_gaussian = isinstance(posterior, AbstractGaussian)
    return is_gaussian and isinstance(posterior.precision.structure, Full)


def not_dense(posterior: Any) -> str:
    """That it is not, for `AbstractModes.obstacle`."""
    return (
        f"the merged posterior is a {type(posterior).__name__}, and this way is for Gaussians of "
        "which the precision is one matrix, as FullGaussian. Leave out `modes`."
    )


def as_matrix(gaussian: Any) -> Float[np.ndarray, "P P"]:
    """Λ."""
    return np.asarray(gaussian.precision.dense(), float)


def linear_term(gaussian: Any) -> Float[np.ndarray, " P"]:
    """η = Λμ."""
    return np.asarray(gaussian.layout.ravel(gaussian.linear), float)


def dtype_of(gaussian: Any) -> Any:
    return jnp.result_type(*gaussian.layout.dtypes)


@eqx.filter_jit
def times(gaussian: Any, columns: Float[Array, "P B"]) -> Float[Array, "P B"]:
    """ΛV."""
    layout = gaussian.layout
    return jax.vmap(lambda v: layout.ravel(gaussian.multiply(layout.unravel(v))), 1, 1)(columns)


class Span(eqx.Module):
    """c ↦ Vc."""

    vectors: Float[Array, "P R"]
    layout: Layout = eqx.field(static=True)

    def __call__(self, coefficients: Float[Array, " R"]) -> PyTree:
        return self.layout.unravel(self.vectors @ coefficients)


class Factorised(eqx.Module):
    """A Gaussian and, where its precision is a matrix, the Cholesky factor."""

    gaussian: Any
    factor: Array | None

    @classmethod
    def of(cls, gaussian: Any) -> "Factorised":
        return cls(gaussian, cholesky(gaussian.precision.dense()) if is_dense(gaussian) else None)

    def mode(self) -> Float[np.ndarray, " P"]:
        """Λ⁻¹η."""
        return np.asarray(self.solve(linear_term(self.gaussian)[:, None]), float)[:, 0]

    def solve(self, columns: Float[np.ndarray, "P B"]) -> Array:
        """Λ⁻¹V."""
        return _solve(self, jnp.asarray(columns, dtype_of(self.gaussian)))

    def colour(self, u: PyTree) -> PyTree:
        """Λ^{-½}u."""
        if self.factor is None:
            return self.gaussian.colouring()(u)
        layout = self.gaussian.layout
        return layout.unravel(solve_triangular(self.factor, layout.ravel(u), transpose=True))

    def smallest_precision(self) -> float:
        """A number that λ_min is not below; 0 where the Gaussian is improper."""
        if self.factor is None:
            is_proper = bool(self.gaussian.is_proper())
            return float(self.gaussian.smallest_precision()) if is_proper else 0.0
        if not all_finite(self.factor):
            return 0.0
        seen = _inverse_iteration(self.factor)
        shrinking = (SAFETY * 0.5**i * seen for i in range(10))
        matrix = self.gaussian.precision.dense()
        return next((float(s) for s in shrinking if _exceeds(matrix, s)), 0.0)


@eqx.filter_jit
def _solve(of: Factorised, columns: Float[Array, "P B"]) -> Float[Array, "P B"]:
    if of.factor is not None:
        return cho_solve(of.factor, columns)
    q, layout = of.gaussian, of.gaussian.layout
    return jax.vmap(lambda v: layout.ravel(q.solve(layout.unravel(v))), 1, 1)(columns)


@eqx.filter_jit
def _inverse_iteration(factor: Float[Array, "P P"]) -> Float[Array, ""]:
    """The smallest eigenvalue, from above."""
    start = jax.random.normal(jax.random.key(0), (len(factor), min(4, len(factor))), factor.dtype)

    def step(_: Any, columns: Array) -> Array:
        return qr(cho_solve(factor, columns))[0]

    columns = jax.lax.fori_loop(0, INVERSE_STEPS, step, start)
    return 1 / eigh(columns.T @ cho_solve(factor, columns))[0][-1]


@eqx.filter_jit
def _exceeds(precision: Float[Array, "P P"], bound: Float[Array, ""]) -> Array:
    """Whether all eigenvalues are larger than `bound`."""
    shift = bound * jnp.eye(len(precision), dtype=precision.dtype)
    return all_finite(cholesky(precision - shift))
