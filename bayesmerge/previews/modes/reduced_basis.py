r"""Modes of very many products of Gaussians in one small basis, with a bound on their error.

With exponents e = (γ, α) the precision and the linear parameter of a merge are affine,
Λ(e) = Σ_k e_kΛ_k and η(e) = Σ_k e_kη_k, so that the modes θ(e) = Λ(e)⁻¹η(e) lie near one subspace:
θ(e) ≈ Vc(e) with VᵀΛ(e)Vc = Vᵀη(e). The residual ρ = η(e) − Λ(e)Vc(e) says how near,

    ‖Vc − θ‖ ≤ ‖ρ‖ / λ(e),    λ(e) = Σ_k e_k λ_min(Λ_k) ≤ λ_min(Λ(e)).

ρ is a combination of few columns, η_k and Λ_kV, so that its length is that of a combination of
columns of their small QR factor. Where the bound is largest, V grows by the residuals there, seen
through the Cholesky factor of a merge nearby.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.fit.tilted import product
from bayesmerge.previews.modes.base import Obstacle
from bayesmerge.previews.modes.precisions import Factorised, dtype_of, linear_term, times

BLOCK = 16
"""Directions that V grows by at once, or an eighth of those it has, whichever is more: matrices are
read once for all of them, and small systems are solved for all weightings."""


class InBasis(NamedTuple):
    """θ(e) ≈ `vectors` @ `coefficients`, a bound on ‖Vc − θ‖/‖θ‖, and for every e the number of a
    product nearby that has been factorised."""

    vectors: Float[np.ndarray, "P R"]
    coefficients: Float[np.ndarray, "A R"]
    error: Float[np.ndarray, " A"]
    nearest: Int[np.ndarray, " A"]
    references: list[Factorised]


def modes_in_basis(
    factors: list[AbstractGaussian],
    exponents: Float[np.ndarray, "A K"],
    tolerance: float,
    largest: float = 1.0,
    progress: bool | str = False,
) -> InBasis | Obstacle:
    """The modes of Π_k factor_k^{e_k} for all e ≥ 0, with relative errors of at most `tolerance`,
    or as small as rounding allows; or an obstacle where some e are of improper factors only, or V
    would need more than the share `largest` of P directions.
    """
    from tqdm import tqdm

    used = (exponents != 0).any(axis=0)
    factors, exponents = [q for q, u in zip(factors, used, strict=True) if u], exponents[:, used]
    references = [Factorised.of(q) for q in factors]
    stiffness = exponents @ np.array([r.smallest_precision() for r in references])
    if not (stiffness > 0).all():
        return Obstacle(
            "some weighting is of improper posteriors only, and there is no bound on the error of "
            "its mode. Use `bm.previews.Each()`, or leave out `modes`."
        )
    middle = exponents.mean(axis=0)
    references.append(Factorised.of(_product(factors, jnp.asarray(middle))))
    nearest = _nearest(exponents, np.stack([*np.eye(len(factors)), middle]))
    space = _Space(factors)
    space.grow(np.stack([r.mode() for r in references], axis=1))
    coefficients, error = np.zeros((len(exponents), 0)), np.full(len(exponents), np.inf)
    left = np.arange(len(exponents))
    with tqdm(total=len(exponents), desc="modes", disable=not progress, unit=" weightings") as bar:
        while len(left):
            fit = space.fit(exponents[left])
            coefficients = np.pad(coefficients, ((0, 0), (0, space.rank - coefficients.shape[1])))
            coefficients[left] = fit.coefficients
            error[left] = fit.relative_error(stiffness[left])
            is_short = (error[left] > tolerance) & (fit.residual > fit.rounding)
            worst_first = np.argsort(-fit.distance(stiffness[left])[is_short])
            bar.update(len(left) - is_short.sum())
            left = left[is_short]
            if not len(left):
                break
            if space.rank > largest * space.size:
                return Obstacle(
                    f"{space.rank} of {space.size} directions are not enough for every mode. Use "
                    "`bm.previews.Each()`, or leave out `modes`."
                )
            worst = left[worst_first[: max(BLOCK, space.rank // 8)]]
            residuals = space.residuals(exponents[worst], coefficients[worst])
            rank = space.rank
            for k in np.unique(nearest[worst]):
                space.grow(references[k].solve(residuals[:, nearest[worst] == k]))
            if space.rank == rank:
                break
    coefficients = np.pad(coefficients, ((0, 0), (0, space.rank - coefficients.shape[1])))
    return InBasis(space.vectors, coefficients, error, nearest, references)


class _Fit(NamedTuple):
    """c(e), ‖η(e) − Λ(e)Vc(e)‖, and what rounding may add to it."""

    coefficients: Float[np.ndarray, "B R"]
    residual: Float[np.ndarray, " B"]
    rounding: Float[np.ndarray, " B"]

    def distance(self, stiffness: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """A bound on ‖Vc − θ‖, with λ(e)."""
        return (self.residual + self.rounding) / stiffness

    def relative_error(self, stiffness: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """A bound on ‖Vc − θ‖/‖θ‖."""
        distance = self.distance(stiffness)
        length = np.linalg.norm(self.coefficients, axis=1)
        with np.errstate(divide="ignore"):
            return distance / np.maximum(length - distance, 0)


class _Space:
    """V with orthonormal columns, and Λ_kV for every factor."""

    def __init__(self, factors: list[Any]):
        self.factors = factors
        self.linear = np.stack([linear_term(q) for q in factors], axis=1)
        self.size = len(self.linear)
        self.vectors = np.zeros((self.size, 0))
        self.images = [self.vectors for _ in factors]

    @property
    def rank(self) -> int:
        return self.vectors.shape[1]

    def grow(self, columns: Any) -> None:
        """Add what of the columns V does not have."""
        columns = np.asarray(columns, float)
        columns = columns / np.maximum(np.linalg.norm(columns, axis=0), np.finfo(float).tiny)
        for _ in range(2):
            columns = columns - self.vectors @ (self.vectors.T @ columns)
        basis, lengths, _ = np.linalg.svd(columns, full_matrices=False)
        new = basis[:, lengths > 1e-10]
        new, _ = np.linalg.qr(new - self.vectors @ (self.vectors.T @ new))
        self.vectors = np.hstack([self.vectors, new])
        self.images = [
            np.hstack([image, np.asarray(times(q, jnp.asarray(new, dtype_of(q))), float)])
            for q, image in zip(self.factors, self.images, strict=True)
        ]

    def fit(self, exponents: Float[np.ndarray, "B K"]) -> _Fit:
        """The modes in V of the products with these exponents."""
        small = np.stack([self.vectors.T @ image for image in self.images])
        right = exponents @ (self.vectors.T @ self.linear).T
        c = np.stack(
            [
                np.linalg.solve(np.tensordot(e, small, 1), b)
                for e, b in zip(exponents, right, strict=True)
            ]
        )
        R = np.linalg.qr(np.hstack([self.linear, *self.images]), mode="r")
        pull, *parts = np.split(R, len(self.factors) + self.rank * np.arange(len(self.images)), 1)
        pulls = [part @ (e[:, None] * c).T for part, e in zip(parts, exponents.T, strict=True)]
        residual = np.linalg.norm(pull @ exponents.T - sum(pulls), axis=0)
        epsilon = max(float(jnp.finfo(dtype_of(q)).eps) for q in self.factors)
        return _Fit(c, residual, epsilon * sum(np.linalg.norm(x, axis=0) for x in pulls))

    def residuals(
        self, exponents: Float[np.ndarray, "B K"], c: Float[np.ndarray, "B R"]
    ) -> Float[np.ndarray, "P B"]:
        """η(e) − Λ(e)Vc(e), a column for every row."""
        pairs = zip(self.images, exponents.T, strict=True)
        images = sum(image @ (e[:, None] * c).T for image, e in pairs)
        return self.linear @ exponents.T - images


@eqx.filter_jit
def _product(factors: list[Any], exponents: Float[Array, " K"]) -> Any:
    return product(factors, exponents)


def _nearest(
    exponents: Float[np.ndarray, "A K"], places: Float[np.ndarray, "L K"]
) -> Int[np.ndarray, " A"]:
    from scipy.spatial import cKDTree

    return cKDTree(places).query(exponents)[1]
