"""Full Gaussians: any positive-definite precision Λ over the flattened parameters."""

import itertools
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from bayesmerge.arrays import as_array, require_same_labels
from bayesmerge.families.base import over_batch
from bayesmerge.families.checks import all_finite, require, require_finite
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.show import IMPROPER, first
from bayesmerge.linear_algebra import cho_solve, cholesky, eigh, solve_triangular

MOST_PRINTED = 1000
"""Parameters of which `repr` factorises a precision."""


class FullGaussian(AbstractGaussian):
    """N(θ | μ, Λ⁻¹) with any positive-definite precision Λ over the flattened parameters.

    Natural parameters λ = (Λμ, Λ) with T(θ) = (θ, −½θθᵀ). Rows and columns of Λ follow
    `layout.ravel(theta)`. The mode is computed by one Cholesky factorisation, never an inverse; its
    relative error is about κ(Λ)·ε, κ the condition number after scaling Λ to a unit diagonal.

    - `linear`: Λμ, a pytree shaped as θ, floating point.
    - `precision`: Λ, shape (P, P).

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> Lambda = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> q = bm.FullGaussian.from_mean_precision({"a": jnp.array(1.0), "b": jnp.array(0.0)}, Lambda)
    >>> q.linear["a"], q.linear["b"]
    (Array(2., dtype=float32), Array(1., dtype=float32))

    ```
    """

    linear: PyTree
    precision: Float[Array, "*batch P P"]
    layout: Layout = eqx.field(static=True)
    breadth: ClassVar[int] = 2

    @classmethod
    def from_mean_precision(cls, mean: PyTree, precision: ArrayLike) -> "FullGaussian":
        """N(mean, precision⁻¹).

        - `mean`: μ, any pytree of floating-point arrays with P entries.
        - `precision`: Λ, shape (P, P), symmetric and positive definite.

        **Raises** `TypeError` for integer parameters, `ValueError` for a matrix of another shape,
        not symmetric, not positive definite or not finite.
        """
        require_same_labels(mean, precision)
        mean, layout = as_arrays(mean, "mean")
        mean = require_finite(mean, "mean")
        precision = _symmetric(precision, layout)
        linear = layout.unravel(precision @ layout.ravel(mean))
        linear = require_finite(linear, "mean times precision")
        q = cls(linear=linear, precision=precision, layout=layout)
        message = "precision must be positive definite for a proper posterior, and it is not."
        return require(q, q.is_proper(), message, q._eigenvalue_detail)

    @classmethod
    def from_natural_parameters(cls, linear: PyTree, precision: ArrayLike) -> "FullGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½θᵀΛθ) with η = `linear`, Λ = `precision`."""
        linear, layout = as_arrays(linear, "linear")
        linear = require_finite(linear, "linear")
        return cls(linear=linear, precision=_symmetric(precision, layout), layout=layout)

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(θ) = (θ, −½θθᵀ)."""
        vector = self.layout.ravel(theta)
        return theta, -0.5 * jnp.outer(vector, vector)

    @over_batch
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether Λ has a Cholesky factor."""
        return all_finite(cholesky(self.precision))

    def multiply(self, theta: PyTree) -> PyTree:
        return self.layout.unravel(self.precision @ self.layout.ravel(theta))

    def solve(self, vector: PyTree) -> PyTree:
        return self._solve(self._unchecked_factor(), vector)

    def sandwich(self, G: Float[Array, "P P"]) -> Float[Array, "P P"]:
        half = solve_triangular(self._unchecked_factor(), G)
        return half.T @ half

    def entries(self, x: PyTree, y: PyTree) -> Float[Array, "P P"]:
        product = jnp.outer(self.layout.ravel(x), self.layout.ravel(y))
        return 0.5 * (product + product.T)

    @over_batch
    def smallest_precision(self) -> Float[Array, "*batch"]:
        """The smallest eigenvalue of Λ."""
        return eigh(self.precision)[0][0]

    def widen(self) -> AbstractGaussian:
        raise TypeError("a FullGaussian is already the widest Gaussian family.")

    @over_batch
    def covariance(self) -> Float[Array, "*batch P P"]:
        """Λ⁻¹, shape (P, P)."""
        return self._covariance(self._factor("covariance"))

    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        from scipy.linalg.lapack import dtrtri

        eta = jax.tree.leaves(self.linear)
        ends = np.cumsum([0, *map(math.prod, self.layout.shapes)])

        def by_leaf(vector: Any) -> list[Any]:
            return [first(vector[a:b]) for a, b in itertools.pairwise(ends)]

        diagonal = by_leaf(np.diag(self.precision))
        naturals = {"linear": [first(x) for x in eta], "precision": diagonal}
        if self.layout.size > MOST_PRINTED:
            return naturals, f"mean and sd are not printed of more than {MOST_PRINTED} parameters"
        try:
            factor = np.linalg.cholesky(self.precision.astype(float))
        except np.linalg.LinAlgError:
            return naturals, IMPROPER
        root, _ = dtrtri(factor, lower=1)
        mean = root.T @ (root @ np.concatenate([x.reshape(-1) for x in eta]))
        return {"mean": by_leaf(mean), "sd": by_leaf(np.sqrt(np.sum(root**2, axis=0)))}, ""

    def _unchecked_factor(self) -> Float[Array, "P P"]:
        return cholesky(self.precision)

    def _factor(self, what: str) -> Float[Array, "P P"]:
        factor = self._unchecked_factor()
        message = (
            f"this FullGaussian is improper and has no {what}: its precision is not positive "
            "definite. A quotient of posteriors, or negative weights, can take away more than "
            "there is: multiply by a prior, or use smaller weights."
        )
        return require(factor, all_finite(factor), message, self._eigenvalue_detail)

    def _eigenvalue_detail(self) -> str:
        return f"Its smallest eigenvalue is {self.smallest_precision()}."

    def _covariance(self, factor: Float[Array, "P P"]) -> Float[Array, "P P"]:
        return cho_solve(factor, jnp.eye(self.layout.size, dtype=factor.dtype))

    def _solve(self, factor: Float[Array, "P P"], linear: PyTree) -> PyTree:
        return self.layout.unravel(cho_solve(factor, self.layout.ravel(linear)))

    def _log_determinant(self, factor: Float[Array, "P P"]) -> Float[Array, ""]:
        return 2 * jnp.sum(jnp.log(jnp.diag(factor)))

    def _correlate(self, factor: Float[Array, "P P"], noise: PyTree) -> PyTree:
        vector = self.layout.ravel(noise)
        return self.layout.unravel(solve_triangular(factor, vector, transpose=True))

    def _marginal_variance(self, factor: Float[Array, "P P"]) -> PyTree:
        return self.layout.unravel(jnp.diag(self._covariance(factor)))

    def _spread_divergence(
        self, factor: Float[Array, "P P"], other: "FullGaussian"
    ) -> Float[Array, ""]:
        half = solve_triangular(factor, other._factor("divergence"))
        log_ratio = other._log_determinant(other._factor("divergence"))
        log_ratio = log_ratio - self._log_determinant(factor)
        return jnp.sum(half**2) - self.layout.size - log_ratio


def _symmetric(precision: ArrayLike, layout: Layout) -> Float[Array, "P P"]:
    """`precision` with rounding errors of symmetry removed, or an error where it has more."""
    matrix = as_array(precision, "precision", jnp.result_type(*layout.dtypes))
    if matrix.shape != (layout.size, layout.size):
        raise ValueError(
            f"precision has shape {matrix.shape}, and a full precision over {layout.size} "
            f"parameters has shape {(layout.size, layout.size)}."
        )
    matrix = require_finite(matrix, "precision")
    asymmetry = jnp.max(jnp.abs(matrix - matrix.T))
    allowed = jnp.sqrt(jnp.finfo(matrix.dtype).eps) * jnp.max(jnp.abs(matrix))
    message = "precision must be symmetric, and it is not."
    matrix = require(
        matrix,
        asymmetry <= allowed,
        message,
        lambda: f"The largest difference of mirrored entries is {asymmetry}.",
    )
    return 0.5 * (matrix + matrix.T)
