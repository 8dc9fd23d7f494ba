"""Where the merged modes of many weightings come from: one method for each kind of posterior."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bayesmerge.families.checks import unchecked
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import Full
from bayesmerge.fit.tilted import Tilted
from bayesmerge.merging import combined
from bayesmerge.mixtures.climb import minorizer, repeat
from bayesmerge.mixtures.product import Product
from bayesmerge.mixtures.warm_starts import modes_along
from bayesmerge.previews.pencil import is_line, modes_on_line
from bayesmerge.previews.reduced_basis import NoBoundError, modes_in_basis
from bayesmerge.priors import as_prior

Method: TypeAlias = Literal["auto", "each", "line", "basis"]
Colours: TypeAlias = Literal["none", "near", "exact"]
"""Whether Λ^{-½} is needed at every mode, and whether that of a merge nearby will do."""

BYTES_AT_ONCE = 2**28
WORTH_A_BASIS = 1e12
"""Operations in the Cholesky factorisations of all weightings from which a basis is faster."""

LARGEST_BASIS = 0.25
"""A share of P beyond which a factorisation for each weighting is as good."""

FEWEST_IN_BASIS = 30
FEWEST_ON_LINE = 60
"""Weightings from which the factorisations that a basis, or all eigenvectors, need pay."""


class Start(NamedTuple):
    """A merged mode θ̂, and u ↦ Λ^{-½}u with Λ the precision of the merged posterior, or of one
    near it: coordinates θ̂ + Λ^{-½}u in which it is a standard normal distribution."""

    theta: PyTree
    colour: Any


StartAt: TypeAlias = Callable[[Any, Any], Start]


class Sweep(NamedTuple):
    """`start_at(models, w)` for every w along the leading axis of `weightings`, which are those of
    the numbers `rows`, `batch_size` at a time."""

    start_at: StartAt
    models: Any
    weightings: PyTree
    rows: Int[np.ndarray, " R"]
    batch_size: int


class Sweeps(NamedTuple):
    """All of a preview, and bounds on the relative errors of modes, where they have some."""

    parts: list[Sweep]
    error: Float[np.ndarray, " A"] | None = None


def sweeps_of(
    posteriors: dict[str, Any],
    alpha: Float[Array, "A T"],
    prior: Any,
    method: Method,
    tolerance: float,
    colours: Colours,
    progress: bool | str,
) -> Sweeps:
    """The modes of p_0^γ Π_t q_t^{α_t}, for all rows α."""
    qs = [*posteriors.values()]
    merged = jax.eval_shape(lambda a: combined(qs, a, prior), alpha[0])
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, and it must be one of {get_args(Method)}.")
    is_matrix = isinstance(merged, AbstractGaussian) and merged.precision.structure == Full()
    if method in ("line", "basis") and not is_matrix:
        raise ValueError(
            f"method is '{method}', which is for full Gaussians, and the merged posterior is a "
            f"{type(merged).__name__}: leave method='auto'."
        )
    if isinstance(merged, Product):
        return Sweeps([_on_ridge(combined(qs, alpha, prior), colours, progress)])
    if colours != "none" and not isinstance(merged, (AbstractGaussian, Tilted)):
        raise _uncoloured(merged)
    if method == "basis" and colours == "exact":
        raise ValueError(
            "method is 'basis', which factorises few merges, and draws need the factor of each: "
            "leave method='auto'."
        )
    if is_matrix and method != "each":
        factors, exponents = _factors(qs, alpha, prior)
        large = len(exponents) * merged.layout.size**3 / 3 >= WORTH_A_BASIS
        if method == "line" or (large and method == "auto" and _pays_on_line(exponents)):
            _check_weightings(posteriors, alpha, prior)
            return Sweeps([_on_line(factors, exponents)])
        pays = large and len(exponents) >= FEWEST_IN_BASIS and colours != "exact"
        if method == "basis" or (method == "auto" and pays):
            try:
                largest = 1.0 if method == "basis" else LARGEST_BASIS
                return _in_basis(factors, exponents, tolerance, largest, colours, progress)
            except NoBoundError as error:
                if method == "basis":
                    raise ValueError(f"method is 'basis', and {error} Use 'each'.") from None
    _check_weightings(posteriors, alpha, prior)
    kept = jax.eval_shape(lambda q: q.blend(), merged)
    return Sweeps([Sweep(_each, (qs, prior), alpha, np.arange(len(alpha)), _at_once(kept))])


def _each(models: tuple[list[Any], Any], alpha: Float[Array, " T"]) -> Start:
    qs, prior = models
    with unchecked():
        merged = combined(qs, alpha, prior)
        theta = merged.mode()
        near = merged.laplace(theta) if isinstance(merged, Tilted) else merged
        return Start(theta, _colour(near))


def _on_ridge(product: Product, colours: Colours, progress: bool | str) -> Sweep:
    below = jax.eval_shape(lambda p: p.blend(), product.with_exponents(product.exponents[0]))
    if colours != "none" and not isinstance(below, AbstractGaussian):
        raise _uncoloured(below)
    modes = modes_along(product, progress=progress)
    weightings = product.exponents, modes.responsibilities
    rows = np.arange(len(product.exponents))
    return Sweep(_touching, product.factors, weightings, rows, _at_once(below))


def _uncoloured(merged: Any) -> TypeError:
    return TypeError(
        f"the merged posterior is a {type(merged).__name__}, and refinement and spreads are for "
        "Gaussians and their mixtures."
    )


def _touching(factors: list[Any], at: tuple[Array, Array]) -> Start:
    exponents, responsibilities = at
    with unchecked():
        below = minorizer(factors, repeat(factors, exponents) * responsibilities)
        return Start(below.mode(), _colour(below))


def _on_line(factors: list[Any], exponents: Float[np.ndarray, "A K"]) -> Sweep:
    line = modes_on_line(factors, exponents)
    layout, dtype = factors[0].layout, jnp.result_type(*factors[0].layout.dtypes)
    span = _Span(jnp.asarray(line.vectors, dtype), layout)
    weightings = line.coefficients.astype(dtype), line.precisions.astype(dtype)
    return Sweep(_in_pencil, span, weightings, np.arange(len(exponents)), _at_once(layout))


def _in_pencil(span: "_Span", at: tuple[Array, Array]) -> Start:
    coefficients, precisions = at

    def colour(u: PyTree) -> PyTree:
        return span(span.layout.ravel(u) / jnp.sqrt(precisions))

    return Start(span(coefficients), colour)


def _in_basis(
    factors: list[Any],
    exponents: Float[np.ndarray, "A K"],
    tolerance: float,
    largest: float,
    colours: Colours,
    progress: bool | str,
) -> Sweeps:
    modes = modes_in_basis(factors, exponents, tolerance, largest, progress)
    layout, dtype = factors[0].layout, jnp.result_type(*factors[0].layout.dtypes)
    span = _Span(jnp.asarray(modes.vectors, dtype), layout)
    coefficients, size = modes.coefficients.astype(dtype), _at_once(layout)
    if colours == "none":
        everything = Sweep(_spanned, (span, None), coefficients, np.arange(len(exponents)), size)
        return Sweeps([everything], modes.error)
    parts = []
    for k in np.unique(modes.nearest):
        rows = np.flatnonzero(modes.nearest == k)
        near = modes.references[k].colour
        parts.append(Sweep(_spanned, (span, near), coefficients[rows], rows, size))
    return Sweeps(parts, modes.error)


def _spanned(models: tuple["_Span", Any], coefficients: Float[Array, " R"]) -> Start:
    span, colour = models
    return Start(span(coefficients), colour)


class _Span(eqx.Module):
    """c ↦ Vc."""

    vectors: Float[Array, "P R"]
    layout: Layout = eqx.field(static=True)

    def __call__(self, coefficients: Float[Array, " R"]) -> PyTree:
        return self.layout.unravel(self.vectors @ coefficients)


def _colour(merged: Any) -> Callable[[PyTree], PyTree] | None:
    return merged.colouring() if isinstance(merged, AbstractGaussian) else None


def _factors(
    qs: list[Any], alpha: Float[Array, "A T"], prior: Any
) -> tuple[list[Any], Float[np.ndarray, "A K"]]:
    """All that is multiplied, and the exponents: γ and α where there is a prior."""
    exponents = np.asarray(alpha, float)
    if prior is None:
        return qs, exponents
    gamma = 1 - exponents.sum(axis=1)
    gamma[np.abs(gamma) < 1e-6] = 0
    return [prior, *qs], np.column_stack([gamma, exponents])


def _pays_on_line(exponents: Float[np.ndarray, "A K"]) -> bool:
    return len(exponents) >= FEWEST_ON_LINE and is_line(exponents)


def _at_once(kept: Any) -> int:
    """Of models, or merged posteriors, like `kept`."""
    if isinstance(kept, Layout):
        bytes_each = kept.size * max(np.dtype(dtype).itemsize for dtype in kept.dtypes)
    else:
        bytes_each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return max(1, BYTES_AT_ONCE // bytes_each)


def _check_weightings(posteriors: dict[str, Any], alpha: Array, prior: Any) -> None:
    """The error of `merge(…).mode()` at the first weighting that has one. Where factors are proper
    and no exponent is negative there is none, and nothing is merged to find out."""
    held = as_prior(prior)
    has_power = held.is_closed and not held.is_flat
    factors = [*posteriors.values(), *([held.given] if has_power else [])]
    gamma = 1 - jnp.sum(alpha, axis=1)
    suspect = jnp.any(alpha < 0, axis=1) | ~jnp.any(alpha > 0, axis=1)
    if has_power:
        suspect |= gamma < -1e-6
    if not all(_has_mode(q) for q in factors):
        suspect |= True
    for row in alpha[np.flatnonzero(np.asarray(suspect))]:
        combined(posteriors, row, prior).mode()


def _has_mode(q: Any) -> bool:
    try:
        q.mode()
    except ValueError:
        return False
    return True
