r"""Modes along a line of weightings, exactly, by one generalised eigendecomposition.

Where exponents span two dimensions, e = s·u + t·w, so do the precisions, Λ(e) = sA + tB. One basis
X makes both diagonal, XᵀAX = D and XᵀBX = I, and

    θ(e) = X (sD + tI)⁻¹ Xᵀη(e).
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float


class Line(NamedTuple):
    """θ(e) = X `coefficients`, and sD + t, the diagonal of XᵀΛ(e)X."""

    vectors: Float[np.ndarray, "P P"]
    coefficients: Float[np.ndarray, "A P"]
    precisions: Float[np.ndarray, "A P"]


def modes_on_line(factors: list[Any], exponents: Float[np.ndarray, "A K"]) -> Line:
    """The modes of Π_k factor_k^{e_k}, proper Gaussians, for e in a plane through zero.

    **Raises** `ValueError` for other e.
    """
    dimensions = _dimensions(exponents)
    if dimensions != 2:
        raise ValueError(
            f"the weightings span {dimensions} dimensions with γ, and those of a line span 2: use "
            "method='basis' or 'each'."
        )
    middle = exponents.mean(axis=0)
    end = exponents[np.argmax(np.linalg.norm(exponents - middle, axis=1))]
    values, vectors = scipy.linalg.eigh(_precision(factors, end), _precision(factors, middle))
    s, t = np.linalg.lstsq(np.stack([end, middle], axis=1), exponents.T, rcond=None)[0]
    linear = np.stack([np.asarray(q.layout.ravel(q.linear), float) for q in factors])
    precisions = s[:, None] * values + t[:, None]
    return Line(vectors, exponents @ linear @ vectors / precisions, precisions)


def is_line(exponents: Float[np.ndarray, "A K"]) -> bool:
    """Whether e span two dimensions."""
    return _dimensions(exponents) == 2


def _dimensions(exponents: Float[np.ndarray, "A K"]) -> int:
    """As many as rounding in float32 leaves in no doubt."""
    return int(np.linalg.matrix_rank(exponents, rtol=1e-6))


def _precision(factors: list[Any], exponents: Float[np.ndarray, " K"]) -> Any:
    pairs = zip(factors, exponents, strict=True)
    return sum(e * np.asarray(q.precision.dense(), float) for q, e in pairs)
