"""Modes of products of mixtures along a grid of weightings: each learns from its neighbours.

A mode is known by its responsibilities, so that what is kept for a weighting are as many numbers as
there are components, however large the models are.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial import cKDTree

from bayesmerge.mixtures import starts
from bayesmerge.mixtures.climb import Ridge, climbs, default_tolerance, values
from bayesmerge.mixtures.maxima import MAX_STEPS, warn_if_short
from bayesmerge.mixtures.product import Product

BATCH, FEW = 64, 8
NEIGHBOURS = 6
PILOTS = 8
PILOT_STEPS = 32
STEPS_AT_ONCE = 6
ROUNDS = 20
SMALL = 2**16
"""Natural parameters times components up to which every weighting gets a search of its own."""


class Modes(NamedTuple):
    """One for every weighting: responsibilities for `Product.on_ridge`, Σα_t log q_t(θ) up to a
    constant, the gradient in posterior standard deviations, and the steps of the climb."""

    responsibilities: Float[np.ndarray, "A R"]
    value: Float[np.ndarray, " A"]
    gradient: Float[np.ndarray, " A"]
    steps: Int[np.ndarray, " A"]

    def updated(self, rows: Int[np.ndarray, " B"], of_rows: "Modes") -> "Modes":
        """The same, with those of the weightings `rows` replaced."""
        columns = [x.copy() for x in self]
        for column, new in zip(columns, of_rows, strict=True):
            column[rows] = new
        return Modes(*columns)


def modes_along(
    product: Product, *, max_steps: int = MAX_STEPS, progress: bool | str = False
) -> Modes:
    """The modes of `product` at all its weightings, exponents (A, T): by `Product.maxima` for each
    where that is cheap, else with warm starts.

    **Warns** with a `ConvergenceWarning` where `max_steps` were not enough.

    **Raises** `ValueError` for a weighting without any maximum.
    """
    ridge = Ridge.of(product.factors)
    if ridge.size() * len(ridge.at_centre) <= SMALL:
        best = product.maxima("highest", max_steps=max_steps).best()
        kept = best.responsibilities, best.log_density, best.gradient, best.steps
        found = Modes(*map(np.asarray, kept))
    else:
        found = _with_warm_starts(product, ridge, max_steps, progress)
    converged = found.gradient <= default_tolerance(product.layout)
    warn_if_short(converged, found.gradient, found.steps)
    return found


def _with_warm_starts(
    product: Product, ridge: Ridge, max_steps: int, progress: bool | str
) -> Modes:
    """At a few pilot weightings `Product.maxima` searches. Every weighting climbs from where it is
    highest: at the blend, the highest component mean, or what the pilots' responsibilities show.
    Then those to which a neighbour's responsibilities show a higher place climb from it, round
    after round, until no neighbour has anything new."""
    alphas = np.asarray(product.exponents)
    pilots = np.unique(np.linspace(0, len(alphas) - 1, PILOTS).round().astype(int))
    searched = product.with_exponents(product.exponents[pilots])
    best = searched.maxima("highest", max_steps=PILOT_STEPS).best()
    places = *_at_means(ridge), best.responsibilities
    tolerance = jnp.asarray(default_tolerance(product.layout))
    found = Modes(*_in_batches(_first, ridge, (alphas,), (*places, tolerance), progress))
    _require_maxima(found.value, alphas)
    found = _finished(ridge, alphas, found, tolerance, max_steps)
    near, is_new = _nearest(alphas), np.full(len(alphas), True)
    for _ in range(ROUNDS):
        asked = np.flatnonzero(is_new[near].any(axis=1))
        if not len(asked):
            break
        lent = alphas[asked], found.responsibilities[near[asked]]
        height, r = _in_batches(_lent, ridge, lent)
        noise = 64 * np.finfo(height.dtype).eps * (1 + np.abs(found.value[asked]))
        is_higher = height > found.value[asked] + noise
        rows = asked[is_higher]
        unknown, none = np.full(len(rows), np.inf), np.zeros(len(rows), int)
        begun = Modes(r[is_higher], height[is_higher], unknown, none)
        found = _finished(ridge, alphas, found.updated(rows, begun), tolerance, max_steps)
        is_new = np.isin(np.arange(len(alphas)), rows)
    return found


def _finished(
    ridge: Ridge, alphas: np.ndarray, found: Modes, tolerance: Float[Array, ""], max_steps: int
) -> Modes:
    """Those that have not arrived climb on, a few steps at a time."""
    while True:
        is_short = ~(found.gradient <= float(tolerance)) & (found.steps < max_steps)
        rows = np.flatnonzero(is_short & np.isfinite(found.value))
        if not len(rows):
            return found
        at = alphas[rows], found.responsibilities[rows]
        on = Modes(*_in_batches(_further, ridge, at, (tolerance,)))
        found = found.updated(rows, on._replace(steps=found.steps[rows] + on.steps))


@eqx.filter_jit
def _at_means(ridge: Ridge) -> tuple[Float[Array, "S R"], Float[Array, "S T"]]:
    """Responsibilities and log q_t at the mean of every component."""
    log_joint = starts.log_joint_at_means(ridge)
    return jax.vmap(ridge.responsibilities)(log_joint), jax.vmap(ridge.log_factors)(log_joint)


@eqx.filter_jit
def _first(
    ridge: Ridge,
    alphas: Float[Array, "A T"],
    r_means: Float[Array, "S R"],
    log_means: Float[Array, "S T"],
    r_pilots: Float[Array, "M R"],
    tolerance: Float[Array, ""],
) -> tuple[Array, ...]:
    """A few steps from the highest of blend, component mean and pilots."""
    mean = r_means[jnp.argmax(alphas @ log_means.T, axis=1)]
    shared = jnp.concatenate([starts.blend(ridge), r_pilots])
    shared = jnp.broadcast_to(shared[None], (len(alphas), *shared.shape))
    _, r = _lent(ridge, alphas, jnp.concatenate([mean[:, None], shared], axis=1))
    return _further(ridge, alphas, starts.tilted(ridge, r), tolerance)


@eqx.filter_jit
def _further(
    ridge: Ridge, alphas: Float[Array, "A T"], r: Float[Array, "A R"], tolerance: Float[Array, ""]
) -> tuple[Array, ...]:
    ends = climbs(ridge, alphas, r, 0.1 * tolerance, jnp.asarray(STEPS_AT_ONCE), True)
    return ends.responsibilities, ends.value, ends.gradient, ends.steps


@eqx.filter_jit
def _lent(ridge: Ridge, alphas: Float[Array, "A T"], r: Float[Array, "A B R"]) -> tuple[Array, ...]:
    """The best of the neighbours' responsibilities, and how high it leads."""
    count = r.shape[1]
    height = values(ridge, jnp.repeat(alphas, count, axis=0), r.reshape(-1, r.shape[-1]))
    best = jnp.argmax(height.reshape(-1, count), axis=1)
    row = jnp.arange(len(alphas))
    return height.reshape(-1, count)[row, best], r[row, best]


def _in_batches(
    function: Callable[..., tuple[Array, ...]],
    ridge: Ridge,
    rows: tuple[np.ndarray, ...],
    others: tuple[Array, ...] = (),
    progress: bool | str = False,
) -> list[np.ndarray]:
    """`function(ridge, *rows, *others)`, a batch of rows of one size after the other."""
    from tqdm import tqdm

    count, parts = len(rows[0]), []
    with tqdm(total=count, desc="modes", disable=not progress, unit=" weightings") as bar:
        for first, size in _batches(count):
            index = np.minimum(np.arange(first, first + size), count - 1)
            kept = min(size, count - first)
            part = function(ridge, *(jnp.asarray(x[index]) for x in rows), *others)
            parts.append([np.asarray(x)[:kept] for x in part])
            bar.update(kept)
    return [np.concatenate(x) for x in zip(*parts, strict=True)]


def _batches(count: int) -> Iterator[tuple[int, int]]:
    """Where each begins and its size, one of two for which programs are compiled."""
    first = 0
    while first < count:
        size = BATCH if count - first > BATCH // 2 else FEW
        yield first, size
        first += size


def _nearest(alphas: Float[np.ndarray, "A T"]) -> Int[np.ndarray, "A B"]:
    """The `NEIGHBOURS` nearest weightings of every one."""
    others = np.arange(2, 2 + NEIGHBOURS)
    return np.minimum(cKDTree(alphas).query(alphas, k=others)[1], len(alphas) - 1)


def _require_maxima(value: Float[np.ndarray, " A"], alphas: Float[np.ndarray, "A T"]) -> None:
    lost = np.flatnonzero(~np.isfinite(value))
    if len(lost):
        row = int(lost[0])
        raise ValueError(
            f"row {row} of the weightings, exponents {alphas[row].round(6).tolist()} (that of the "
            "prior first, if there is one), subtracts more precision than the posteriors have: the "
            "product has no maximum. Use smaller weights."
        )
