r"""Products of Gaussians around points, $\prod_f \mathcal N(\theta_f, P_f^{-1})^{e_f}$, as large as
whole models: one pass over the parameters, leaf by leaf, that neither copies nor holds factors.

They are defined where no factor has any precision, too: the product is there centred on an average
of the points, the limit of P_f + εI for ε → 0.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from bayesmerge.arrays import as_array, require_same_rows
from bayesmerge.families.checks import is_concrete, require, require_finite
from bayesmerge.families.gaussian import AbstractGaussian, gaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import (
    AbstractStructure,
    DensePrecision,
    Diagonal,
    DiagonalPrecision,
    Full,
    Isotropic,
    ScalarPrecision,
    join,
)
from bayesmerge.linear_algebra import eigh


class Named(NamedTuple):
    """A point or a precision, and what messages call it."""

    name: str
    value: Any


class Factor(NamedTuple):
    """Which point and which precision a factor has, by position."""

    point: int
    precision: int


class Natural(NamedTuple):
    """Λμ and Λ of what is multiplied, a leaf or a vector and its matrix."""

    linear: Array
    precision: Array


def multiplied(
    points: Sequence[Named],
    precisions: Sequence[Named],
    factors: Sequence[Factor],
    exponents: Float[Array, "*A F"],
    shares: Float[Array, "*A M"],
    also: AbstractGaussian | None = None,
    power: Float[Array, "*A"] | None = None,
    signed: Collection[str] = (),
) -> Any:
    r"""$\prod_f \mathcal N(\theta_f, P_f^{-1})^{e_f}$, proper or not.

    - `points`: θ, M pytrees of floating-point arrays.
    - `precisions`: P ≥ 0, pytrees shaped as θ (diagonal), matrices (P, P), or scalars.
    - `factors`: F pairs of them.
    - `exponents`: e, (F,) or (A, F).
    - `shares`: of every point in the centre where nothing is known, (M,) or (A, M).
    - `also`, `power`: one more factor and its exponent.
    - `signed`: names of the precisions that may be negative on the diagonal, as Hessians are.

    **Returns** the smallest Gaussian that holds all, a batch of A if the exponents are.

    **Raises** `ValueError` for what is not finite, not shaped as the first point, or negative on
    the diagonal.
    """
    layout = Layout.of(points[0].value, points[0].name)
    for point in points[1:]:
        layout.require_same(
            Layout.of(point.value, point.name), f"{points[0].name} and {point.name}"
        )
    for i, leaf in enumerate(layout.names):
        alike = [p for p in precisions if len(jax.tree.leaves(p.value)) == len(layout.names)]
        require_same_rows([(p.name + leaf, jax.tree.leaves(p.value)[i]) for p in (*points, *alike)])
    precisions = [_opened(precision) for precision in precisions]
    kinds = [_structure(precision, layout) for precision in precisions]
    own = [] if also is None else [also.precision.structure]
    entries = functools.reduce(join, [*kinds, *own])
    which = tuple(factors)
    if also is not None:
        also.layout.require_same(layout, f"the prior and {points[0].name}")
    if not entries.is_entrywise:
        thetas = [layout.ravel(_as_jax(point.value)) for point in points]
        matrices = [_matrix(precision.value, layout) for precision in precisions]
        extra = None if also is None else _natural_matrix(also, layout)
        found, sound = _product(thetas, matrices, which, exponents, shares, extra, power, True)
        linear: Any = _unravelled(layout, found.linear)
        merged: Any = gaussian(linear, DensePrecision(found.precision, layout))
        return _checked(merged, [sound], points, precisions, signed)
    leaves = [jax.tree.leaves(point.value) for point in points]
    stiffness = [
        jax.tree.leaves(p.value) if kind == Diagonal() else [p.value] * len(layout.names)
        for p, kind in zip(precisions, kinds, strict=True)
    ]
    products, flags = [], []
    for i, dtype in enumerate(layout.dtypes):
        means = [jnp.asarray(theta[i]) for theta in leaves]
        taus = [jnp.asarray(tau[i], dtype) for tau in stiffness]
        extra = None if also is None else _natural_leaf(also, i)
        found, sound = _product(means, taus, which, exponents, shares, extra, power, False)
        if is_concrete(found):
            jax.block_until_ready(found)  # or copies of all leaves wait at once
        products.append(found)
        flags.append(sound)
    unflatten = lambda x: jax.tree.unflatten(layout.structure, x)  # noqa: E731
    linear = unflatten([p.linear for p in products])
    if entries == Diagonal():
        shaped = [
            jnp.broadcast_to(_column(p.precision, p.linear), p.linear.shape) for p in products
        ]
        merged = gaussian(linear, DiagonalPrecision(unflatten(shaped), layout))
    else:
        tau = products[0].precision.astype(jnp.result_type(*layout.dtypes))
        merged = gaussian(linear, ScalarPrecision(tau, layout))
    return _checked(merged, flags, points, precisions, signed)


class _Sound(NamedTuple):
    """What is finite, what is not negative, and whether the product is finite."""

    points: Bool[Array, " M"]
    precisions: Bool[Array, " K"]
    positive: Bool[Array, " K"]
    product: Bool[Array, ""]


@eqx.filter_jit
def _product(
    means: list[Array],
    precisions: list[Array],
    factors: tuple[Factor, ...],
    exponents: Float[Array, "*A F"],
    shares: Float[Array, "*A M"],
    also: Natural | None,
    power: Float[Array, "*A"] | None,
    full: bool,
) -> tuple[Natural, _Sound]:
    def one(e: Array, shares: Array, power: Array | None) -> Natural:
        e = e.astype(means[0].dtype)
        linear: Any = 0.0
        precision: Any = 0.0
        known: Any = 0.0
        for f, (i, j) in enumerate(factors):
            weighed = e[f] * precisions[j]
            precision = precision + weighed
            linear = linear + (weighed @ means[i] if full else weighed * means[i])
            known = known + (jnp.abs(e[f]) * precisions[j] if full else jnp.abs(weighed))
        if also is not None and power is not None:
            gamma = power.astype(means[0].dtype)
            linear, precision = linear + gamma * also.linear, precision + gamma * also.precision
            known = known + jnp.abs(gamma) * also.precision
        centre: Any = sum(s.astype(x.dtype) * x for s, x in zip(shares, means, strict=True))
        complete = _complete_matrix if full else _complete
        return complete(Natural(linear, precision), known, centre)

    if exponents.ndim == 1:
        found = one(exponents, shares, power)
    elif full:
        found = jax.lax.map(lambda row: one(*row), (exponents, shares, power))
    else:
        found = jax.vmap(one)(exponents, shares, power)
    diagonals = [jnp.diag(p) if full else p for p in precisions]
    return found, _Sound(
        _each(means, lambda x: jnp.all(jnp.isfinite(x))),
        _each(precisions, lambda x: jnp.all(jnp.isfinite(x))),
        _each(diagonals, lambda x: jnp.all(x >= 0)),
        jnp.all(jnp.isfinite(found.linear)) & jnp.all(jnp.isfinite(found.precision)),
    )


def _each(arrays: list[Array], holds: Callable[[Array], Array]) -> Bool[Array, " K"]:
    return jnp.stack([holds(x) for x in arrays]) if arrays else jnp.ones(0, bool)


def _complete(product: Natural, known: Array, centre: Array) -> Natural:
    """The product, with next to no precision around `centre` where nothing is known."""
    least = _least(centre.dtype)
    return Natural(
        jnp.where(known == 0, least * centre, product.linear),
        jnp.where(known == 0, least, product.precision),
    )


def _complete_matrix(product: Natural, known: Array, centre: Array) -> Natural:
    """Where a combination of entries is unknown to all, the product of Σe_fP_f and a weak
    Gaussian about `centre` along it: its mode is Λ⁺η + (I − Λ⁺Λ)c."""
    blank = jnp.diag(known) == 0
    scale = jnp.sqrt(jnp.where(blank, 1, jnp.abs(jnp.diag(known))))
    correlation = known / jnp.outer(scale, scale) + jnp.diag(blank.astype(known.dtype))
    size, eps = len(centre), float(jnp.finfo(centre.dtype).eps)
    values, vectors = eigh(correlation)
    free = (jnp.abs(values) < 20 * size**0.5 * eps)[None, :]
    along = vectors / scale[:, None] ** 2
    along = along / jnp.linalg.norm(along, axis=0)[None, :]
    along = jnp.where(free, eps ** (1 / 6) * scale[:, None] * along, 0)
    weak = Natural(along @ (along.T @ centre), along @ along.T)
    least = jnp.where(blank, _least(centre.dtype), 0)
    return Natural(
        product.linear + weak.linear + least * centre,
        product.precision + weak.precision + jnp.diag(least),
    )


def _least(dtype: Any) -> float:
    """A power of two, by which no parameter of ordinary size underflows: products with it are
    exact."""
    return 2.0 ** (np.log2(float(jnp.finfo(dtype).tiny)) // 2)


def _checked(
    merged: Any,
    flags: list[_Sound],
    points: Sequence[Named],
    precisions: Sequence[Named],
    signed: Collection[str],
) -> Any:
    sound: _Sound = jax.tree.map(lambda *x: jnp.all(jnp.stack(x), axis=0), *flags)
    allowed = jnp.array([p.name in signed for p in precisions], bool)
    sound = sound._replace(positive=sound.positive | allowed)
    message = "the models or precisions to merge hold NaN, infinite or negative values."
    if not is_concrete(sound):
        holds = jnp.all(jnp.stack([jnp.all(x) for x in sound]))
        return require(merged, holds, message)
    for point, fine in zip(points, sound.points.tolist(), strict=True):
        if not fine:
            require_finite(point.value, point.name)
    for precision, fine, positive in zip(
        precisions, sound.precisions.tolist(), sound.positive.tolist(), strict=True
    ):
        if not fine:
            require_finite(precision.value, precision.name)
        if not positive:
            not_negative(precision)
    if not sound.product:
        raise ValueError(
            "the merged natural parameters are not finite, and all models and precisions are: "
            "their products overflow, or the weights sum to 0 and no task knows anything of some "
            "entries, which then have no average. Scale the precisions, or choose other weights."
        )
    return merged


def not_negative(precision: Named) -> None:
    """An error that names the first negative entry on the diagonal of a precision, if any."""
    is_tree = not jax.tree_util.all_leaves([precision.value])
    for path, leaf in jax.tree_util.tree_leaves_with_path(precision.value):
        values = np.asarray(leaf)
        if not is_tree and values.ndim == 2 and values.shape[0] == values.shape[1]:
            values = np.diagonal(values)
        bad = np.argwhere(values < 0)
        if len(bad):
            index = tuple(bad[0].tolist())
            where = f" at leaf '{jax.tree_util.keystr(path)}'," if path else " at"
            raise ValueError(
                f"{precision.name} must not be negative on its diagonal, and it is{where} index "
                f"{index}: {values[index]:.6g} ({len(bad)} such entries)."
            )


def _structure(precision: Named, layout: Layout) -> AbstractStructure:
    """Isotropic for a scalar, full for a matrix (P, P), or diagonal."""
    value = precision.value
    shape = jnp.shape(value) if jax.tree_util.all_leaves([value]) else None
    if shape == ():
        return Isotropic()
    if shape == (layout.size, layout.size):
        return Full()
    if jax.tree.structure(value) == layout.structure:
        shapes = tuple(jnp.shape(x) for x in jax.tree.leaves(value))
        if shapes == layout.shapes:
            return Diagonal()
    layout.require_same(Layout.of(value, precision.name), f"the parameters and {precision.name}")
    return Diagonal()


def _opened(precision: Named) -> Named:
    """A precision, where it is one container of numbers as an array."""
    name, value = precision
    return Named(name, as_array(value, name) if jax.tree_util.all_leaves([value]) else value)


def _matrix(value: Any, layout: Layout) -> Float[Array, "P P"]:
    dtype = jnp.result_type(*layout.dtypes)
    if not jax.tree_util.all_leaves([value]) or jnp.shape(value) == layout.shapes[0]:
        return jnp.diag(layout.ravel(_as_jax(value)).astype(dtype))
    value = jnp.asarray(value, dtype)
    if value.shape == ():
        return value * jnp.eye(layout.size, dtype=dtype)
    return Full().of(value, layout).value


def _natural_matrix(q: AbstractGaussian, layout: Layout) -> Natural:
    return Natural(layout.ravel(q.linear), q.precision.dense())


def _natural_leaf(q: Any, i: int) -> Natural:
    linear = jax.tree.leaves(q.linear)[i]
    return Natural(linear, q.precision.of_leaf(i).astype(linear.dtype))


def _unravelled(layout: Layout, linear: Float[Array, "*A P"]) -> PyTree:
    return layout.unravel(linear) if linear.ndim == 1 else jax.vmap(layout.unravel)(linear)


def _column(tau: Array, like: Array) -> Array:
    return tau.reshape(tau.shape + (1,) * (like.ndim - tau.ndim))


def _as_jax(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, tree)
