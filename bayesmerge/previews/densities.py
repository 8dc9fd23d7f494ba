"""Marginal densities of posteriors as curves, in coordinates of θ or of a model's sites."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmerge.families.layout import Layout
from bayesmerge.families.show import leaf_name
from bayesmerge.previews.pictures.densities import Curve

MOST = 12
"""Entries that are drawn where none are named."""

MOST_NAMED = 40
NUM_DRAWS = 20_000
TAIL = 5e-4


class Entry(NamedTuple):
    """One entry of a leaf: `w[3]`."""

    name: str
    leaf: int
    place: int


def all_entries(layout: Layout) -> "list[Entry]":
    """The entries of θ in order, as many as there can be names for."""
    return _entries([leaf_name(name) or "theta" for name in layout.names], layout.shapes)


def curves(posterior: Any, entries: list[Entry]) -> list[Curve]:
    """Marginal densities in the coordinates of θ."""
    if not hasattr(posterior, "marginals"):
        return _of_draws(
            jax.tree.leaves(posterior.sample(jax.random.key(0), (NUM_DRAWS,))), entries
        )
    shapes, marginals = posterior.layout.shapes, jax.tree.leaves(posterior.marginals())
    return [_of_marginal(entry_of(marginals[e.leaf], shapes[e.leaf], e.place)) for e in entries]


def site_entries(draws: Mapping[str, Any]) -> list[Entry]:
    return _entries(list(draws), [x.shape[1:] for x in draws.values()])


def site_curves(draws: Mapping[str, Any], entries: list[Entry]) -> list[Curve]:
    """Kernel density estimates from draws by site."""
    return _of_draws(list(draws.values()), entries)


def chosen(entries: list[Entry], names: Iterable[str] | None, size: int) -> tuple[list[Entry], str]:
    """The entries to draw, and what to say of those that are not."""
    if names is None:
        left_out = size - MOST
        some = f"the first {MOST} of {size} entries; choose others by names=[…]"
        return entries[:MOST], some if left_out > 0 else ""
    names = [names] if isinstance(names, str) else list(names)
    found: list[Entry] = []
    for name in names:
        matching = [e for e in entries if name in (e.name, e.name.partition("[")[0])]
        if not matching:
            raise ValueError(
                f"names has {name!r}, and there are {[e.name for e in entries[:MOST]]}"
                f"{' …' if len(entries) > MOST else ''}: name entries, or leaves for all of theirs."
            )
        found += matching
    if not found or len(found) > MOST_NAMED:
        raise ValueError(
            f"names are of {len(found)} entries, and 1 to {MOST_NAMED} can be drawn side by side."
        )
    return found, ""


def entry_of(marginal: Any, shape: tuple[int, ...], index: int) -> Any:
    """The distribution of one entry of a leaf."""
    if hasattr(marginal, "entry"):
        return marginal.entry(shape, index)
    return marginal.dist(*(np.broadcast_to(x, shape).reshape(-1)[index] for x in marginal.args))


def _entries(names: list[str], shapes: Any) -> list[Entry]:
    found = []
    for leaf, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        for i in range(math.prod(shape)):
            place = ",".join(str(int(j)) for j in np.unravel_index(i, shape)) if shape else ""
            found.append(Entry(f"{name}[{place}]" if shape else name, leaf, i))
    return found


def _of_marginal(marginal: Any) -> Curve:
    """At quantiles and at equal distances, so that peaks and gaps between them are seen."""
    at = marginal.ppf(np.linspace(TAIL, 1 - TAIL, 160))
    x = np.unique(np.concatenate([at, np.linspace(at[0], at[-1], 240)]))
    return x, marginal.pdf(x)


def _of_draws(leaves: list[Any], entries: list[Entry]) -> list[Curve]:
    try:
        from arviz_stats.base import array_stats
    except ImportError as error:
        raise ImportError(
            "densities of draws need arviz-stats: pip install 'bayesmerge[numpyro]'."
        ) from error

    def one(entry: Entry) -> Curve:
        values = np.asarray(leaves[entry.leaf], float).reshape(NUM_DRAWS, -1)[:, entry.place]
        x, y, _ = array_stats.kde(values)
        return np.asarray(x), np.asarray(y)

    return [one(entry) for entry in entries]
