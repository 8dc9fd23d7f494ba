r"""Modes of very many products of Gaussians in one small basis, with a bound on their error.

With exponents e = (γ, α) the precision and the linear parameter of a merge are affine,
Λ(e) = Σ_k e_kΛ_k and η(e) = Σ_k e_kη_k, so that the modes θ(e) = Λ(e)⁻¹η(e) lie near one subspace:
θ(e) ≈ Vc(e) with VᵀΛ(e)Vc = Vᵀη(e). The residual ρ = η(e) − Λ(e)Vc says how near,

    ‖Vc − θ‖ ≤ ‖ρ‖ / λ(e),    λ(e) = Σ_k e_k λ_min(Λ_k) ≤ λ_min(Λ(e)).

ρ is a combination of few columns, η_k and Λ_kV, so that its length is that of a combination of
columns of their small QR factor. Where the bound is largest, V grows by the residuals there, seen
through the Cholesky factor of a merge nearby.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bayesmerge.families.checks import all_finite
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.fit.tilted import product
from bayesmerge.linear_algebra import cho_solve, cholesky, eigh, qr, solve_triangular

BLOCK = 16
"""Directions that V grows by at once, or an eighth of those it has, whichever is more: matrices are
read once for all of them, and small systems are solved for all weightings."""

INVERSE_STEPS = 30
SAFETY = 0.9
"""λ_min as inverse iteration sees it, from above, times this: a Cholesky factor then proves it."""


class Modes(NamedTuple):
    """θ(e) ≈ `vectors` @ `coefficients`, a bound on ‖Vc − θ‖/‖θ‖, and for every e the number of a
    product nearby that has been factorised."""

    vectors: Float[np.ndarray, "P R"]
    coefficients: Float[np.ndarray, "A R"]
    error: Float[np.ndarray, " A"]
    nearest: Int[np.ndarray, " A"]
    references: list["Factorised"]


class NoBoundError(ValueError):
    """The factors do not show by how much the precisions of all products are positive."""


def modes_in_basis(
    factors: list[AbstractGaussian],
    exponents: Float[np.ndarray, "A K"],
    tolerance: float,
    largest: float = 1.0,
    progress: bool | str = False,
) -> Modes:
    """The modes of Π_k factor_k^{e_k} for all e, with relative errors of at most `tolerance`, or as
    small as rounding allows.

    **Raises** `NoBoundError` for negative exponents, for improper factors, and where V would need
    more than the share `largest` of P directions.
    """
    from tqdm import tqdm

    used = (exponents != 0).any(axis=0)
    factors, exponents = [q for q, u in zip(factors, used, strict=True) if u], exponents[:, used]
    if (exponents < 0).any():
        raise NoBoundError("some exponents are negative.")
    middle = exponents.mean(axis=0)
    references = [Factorised.of(q) for q in factors]
    stiffness = exponents @ np.array([_smallest(r) for r in references])
    if not (stiffness > 0).all():
        raise NoBoundError("some weighting is of improper factors only.")
    references.append(Factorised.of(_product(factors, jnp.asarray(middle))))
    nearest = _nearest(exponents, np.stack([*np.eye(len(factors)), middle]))
    space = _Space(factors)
    space.grow(np.stack([np.asarray(r.mode(), float) for r in references], axis=1))
    found = [np.zeros(0)] * len(exponents)
    error = np.full(len(exponents), np.inf)
    short = np.arange(len(exponents))
    with tqdm(total=len(exponents), desc="modes", disable=not progress, unit=" weightings") as bar:
        while len(short):
            c, residual, rounding = space.galerkin(exponents[short])
            distance = (residual + rounding) / stiffness[short]
            length = np.linalg.norm(c, axis=1)
            with np.errstate(divide="ignore"):
                error[short] = distance / np.maximum(length - distance, 0)
            for row, of_row in zip(short, c, strict=True):
                found[row] = of_row
            left = (error[short] > tolerance) & (residual > rounding)
            bar.update(len(short) - left.sum())
            short, c, distance = short[left], c[left], distance[left]
            if space.rank > largest * space.size and len(short):
                raise NoBoundError(f"{space.rank} directions are not enough for every mode.")
            rank = space.rank
            worst = np.argsort(-distance)[: max(BLOCK, rank // 8)]
            residuals = space.residuals(exponents[short[worst]], c[worst])
            near = nearest[short[worst]]
            for k in np.unique(near):
                space.grow(references[k].solve(residuals[:, near == k]))
            if space.rank == rank:
                break
    coefficients = np.stack([np.pad(c, (0, space.rank - len(c))) for c in found])
    return Modes(space.vectors, coefficients, error, nearest, references)


class Factorised(eqx.Module):
    """A product and the Cholesky factor of its precision, where that is a matrix."""

    gaussian: Any
    factor: Array | None

    @classmethod
    def of(cls, gaussian: Any) -> "Factorised":
        precision = gaussian.precision
        is_full = not precision.structure.is_entrywise
        return cls(gaussian, cholesky(precision.dense()) if is_full else None)

    def is_proper(self) -> bool:
        return bool(self.gaussian.is_proper() if self.factor is None else all_finite(self.factor))

    def mode(self) -> Array:
        return self.solve(_flat(self.gaussian)[:, None])[:, 0]

    def colour(self, u: PyTree) -> PyTree:
        """Λ^{-½}u."""
        if self.factor is None:
            return self.gaussian.colouring()(u)
        layout = self.gaussian.layout
        vector = solve_triangular(self.factor, layout.ravel(u), transpose=True)
        return layout.unravel(vector)

    def solve(self, columns: Any) -> Array:
        return _solve(self.gaussian, self.factor, jnp.asarray(columns, _dtype(self.gaussian)))


class _Space:
    """V with orthonormal columns, and Λ_kV for every factor."""

    def __init__(self, factors: list[Any]):
        self.factors = factors
        self.linear = np.stack([np.asarray(_flat(q), float) for q in factors], axis=1)
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
            np.hstack([image, np.asarray(_times(q, jnp.asarray(new, _dtype(q))), float)])
            for q, image in zip(self.factors, self.images, strict=True)
        ]

    def galerkin(self, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """c(e), ‖η(e) − Λ(e)Vc(e)‖, and what rounding may add to it."""
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
        epsilon = max(float(jnp.finfo(_dtype(q)).eps) for q in self.factors)
        return c, residual, epsilon * sum(np.linalg.norm(x, axis=0) for x in pulls)

    def residuals(self, exponents: np.ndarray, c: np.ndarray) -> np.ndarray:
        """η(e) − Λ(e)Vc(e), a column for every row."""
        pairs = zip(self.images, exponents.T, strict=True)
        images = sum(image @ (e[:, None] * c).T for image, e in pairs)
        return self.linear @ exponents.T - images


def _smallest(reference: Factorised) -> float:
    """A number that λ_min is not below; 0 where the product is improper."""
    if not reference.is_proper():
        return 0.0
    if reference.factor is None:
        return float(reference.gaussian.smallest_precision())
    seen = _inverse_iteration(reference.factor)
    shrinking = (SAFETY * 0.5**i * seen for i in range(10))
    return next(
        (float(s) for s in shrinking if _exceeds(reference.gaussian.precision.dense(), s)), 0.0
    )


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


@eqx.filter_jit
def _product(factors: list[Any], exponents: Float[Array, " K"]) -> Any:
    return product(factors, exponents)


@eqx.filter_jit
def _times(q: Any, columns: Float[Array, "P B"]) -> Float[Array, "P B"]:
    """ΛV."""
    layout = q.layout
    return jax.vmap(lambda v: layout.ravel(q.multiply(layout.unravel(v))), 1, 1)(columns)


@eqx.filter_jit
def _solve(q: Any, factor: Array | None, columns: Float[Array, "P B"]) -> Float[Array, "P B"]:
    """Λ⁻¹V."""
    if factor is not None:
        return cho_solve(factor, columns)
    layout = q.layout
    return jax.vmap(lambda v: layout.ravel(q.solve(layout.unravel(v))), 1, 1)(columns)


def _nearest(exponents: np.ndarray, places: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(places).query(exponents)[1]


def _flat(q: Any) -> Array:
    return q.layout.ravel(q.linear)


def _dtype(q: Any) -> Any:
    return jnp.result_type(*q.layout.dtypes)
