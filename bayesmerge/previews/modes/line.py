r"""Modes along a line of weightings, exactly, by one generalised eigendecomposition."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from bayesmerge.previews.modes.base import AbstractModes, Group, Start, Sweep, within_memory
from bayesmerge.previews.modes.merges import Merges
from bayesmerge.previews.modes.precisions import Span, as_matrix, dtype_of, linear_term, not_dense

FEWEST = 60
"""Weightings from which all eigenvectors cost less than a Cholesky factorisation each."""


class Line(AbstractModes):
    r"""Exact modes of full Gaussians along a line of weightings, by one generalised
    eigendecomposition.

    Where exponents span two dimensions, e = s·u + t·w, so do the precisions, Λ(e) = sA + tB. One
    basis X makes both diagonal, XᵀAX = D and XᵀBX = I, and

    $$\theta(e) = X (sD + tI)^{-1} X^\top\eta(e).$$

    It applies to full Gaussians and weightings that, with γ where there is a prior, span two
    dimensions, such as those of two tasks without one.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = [bm.FullGaussian.from_mean_precision(jnp.full(2, x), jnp.eye(2)) for x in (0.0, 4.0)]
    >>> options = {"modes": bm.previews.Line(), "progress": False}
    >>> bm.preview(q, bm.simplex_grid(2, 0.5), lambda x: x[0], **options).values().round(3)
    array([4., 2., 0.])

    ```
    """

    def obstacle(self, merges: Merges) -> str | None:
        if not merges.is_dense:
            return not_dense(merges.shape)
        dimensions = _dimensions(merges.exponents)
        if dimensions != 2:
            return (
                f"the weightings span {dimensions} dimensions with γ, and those of a line span 2. "
                "Use `bm.previews.Basis()` or `Each()`, or leave out `modes`."
            )
        return None

    def pays(self, merges: Merges) -> bool:
        return merges.is_large and len(merges) >= FEWEST

    def sweep(self, merges: Merges, progress: bool | str) -> Sweep:
        merges.require_modes()
        first = merges.factors[0]
        line, dtype = modes_on_line(merges.factors, merges.exponents), dtype_of(first)
        span = Span(jnp.asarray(line.vectors, dtype), first.layout)
        weightings = line.coefficients.astype(dtype), line.precisions.astype(dtype)
        size = within_memory(first.linear)
        return Sweep([Group(_mode, span, weightings, np.arange(len(merges)), size)])


class OnLine(NamedTuple):
    """θ(e) = X `coefficients`, and sD + t, the diagonal of XᵀΛ(e)X."""

    vectors: Float[np.ndarray, "P P"]
    coefficients: Float[np.ndarray, "A P"]
    precisions: Float[np.ndarray, "A P"]


def modes_on_line(factors: list[Any], exponents: Float[np.ndarray, "A K"]) -> OnLine:
    """The modes of Π_k factor_k^{e_k}, proper Gaussians, for e in a plane through zero."""
    middle = exponents.mean(axis=0)
    end = exponents[np.argmax(np.linalg.norm(exponents - middle, axis=1))]
    values, vectors = scipy.linalg.eigh(_precision(factors, end), _precision(factors, middle))
    s, t = np.linalg.lstsq(np.stack([end, middle], axis=1), exponents.T, rcond=None)[0]
    linear = np.stack([linear_term(q) for q in factors])
    precisions = s[:, None] * values + t[:, None]
    return OnLine(vectors, exponents @ linear @ vectors / precisions, precisions)


def _mode(span: Span, at: tuple[Array, Array]) -> Start:
    coefficients, precisions = at

    def colour(u: PyTree) -> PyTree:
        return span(span.layout.ravel(u) / jnp.sqrt(precisions))

    return Start(span(coefficients), colour)


def _dimensions(exponents: Float[np.ndarray, "A K"]) -> int:
    """As many as rounding in float32 leaves in no doubt."""
    return int(np.linalg.matrix_rank(exponents, rtol=1e-6))


def _precision(factors: list[Any], exponents: Float[np.ndarray, " K"]) -> Any:
    return sum(e * as_matrix(q) for q, e in zip(factors, exponents, strict=True))
