"""Marginal densities of posteriors as curves, in coordinates of θ or of a model's sites."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesmerge.families.layout import Layout
from bayesmerge.families.show import leaf_name
from bayesmerge.previews.pictures.marginals import Curve

MOST = 12
"""Entries that are drawn where none are named."""

MOST_NAMED = 40
NUM_DRAWS = 20_000
TAIL = 5e-4


Leaves = list[tuple[str, tuple[int, ...]]]
"""Names and shapes."""


class Entry(NamedTuple):
    """One entry of a leaf: `w[3]`."""

    name: str
    leaf: int
    place: tuple[int, ...]


def leaves_of(layout: Layout) -> Leaves:
    """Of θ."""
    names = [leaf_name(name) for name in layout.names]
    return list(zip(names, layout.shapes, strict=True))


def curves(posterior: Any, entries: list[Entry]) -> list[Curve]:
    """Marginal densities in the coordinates of θ."""
    if not hasattr(posterior, "marginals"):
        return _of_draws(
            jax.tree.leaves(posterior.sample(jax.random.key(0), (NUM_DRAWS,))), entries
        )
    shapes, marginals = posterior.layout.shapes, jax.tree.leaves(posterior.marginals())
    return [_of_marginal(entry_of(marginals[e.leaf], shapes[e.leaf], e.place)) for e in entries]


def leaves_of_sites(draws: Mapping[str, Any]) -> Leaves:
    return [(name, x.shape[1:]) for name, x in draws.items()]


def site_curves(draws: Mapping[str, Any], entries: list[Entry]) -> list[Curve]:
    """Kernel density estimates from draws by site."""
    return _of_draws(list(draws.values()), entries)


def chosen(leaves: Leaves, names: Iterable[str] | None) -> tuple[list[Entry], str]:
    """The entries to draw, and what to say of those that are not."""
    every = (e for leaf in range(len(leaves)) for e in _entries(leaves, leaf))
    if names is None:
        size = sum(math.prod(shape) for _, shape in leaves)
        some = f"the first {MOST} of {size} entries; choose others by names=[…]"
        return list(itertools.islice(every, MOST)), some if size > MOST else ""
    found: list[Entry] = []
    for name in [names] if isinstance(names, str) else names:
        matching = [e for leaf in range(len(leaves)) for e in _matching(leaves, leaf, name)]
        if not matching:
            known = [e.name for e in itertools.islice(every, MOST)]
            raise ValueError(
                f"names has {name!r}, and there are {known} …: name entries, or leaves for all of "
                "theirs."
            )
        found += matching
    if not 0 < len(found) <= MOST_NAMED:
        raise ValueError(
            f"names are of {len(found)} entries, and 1 to {MOST_NAMED} can be drawn side by side."
        )
    return found, ""


def entry_of(marginal: Any, shape: tuple[int, ...], place: tuple[int, ...]) -> Any:
    """The distribution of one entry of a leaf."""
    if hasattr(marginal, "entry"):
        return marginal.entry(shape, place)
    return marginal.dist(*(np.broadcast_to(x, shape)[place] for x in marginal.args))


def _entries(leaves: Leaves, leaf: int) -> Iterator[Entry]:
    name, shape = leaves[leaf]
    for place in np.ndindex(shape):
        yield Entry(f"{name}[{','.join(map(str, place))}]" if shape else name, leaf, place)


def _matching(leaves: Leaves, leaf: int, wanted: str) -> list[Entry]:
    """All entries of a leaf that is wanted itself, or the one that is."""
    name, shape = leaves[leaf]
    if wanted == name:
        return list(itertools.islice(_entries(leaves, leaf), MOST_NAMED + 1))
    index = wanted.removeprefix(f"{name}[").removesuffix("]").split(",")
    if wanted != f"{name}[{','.join(index)}]" or not all(i.strip().isdecimal() for i in index):
        return []
    place = tuple(map(int, index))
    inside = len(place) == len(shape) and all(i < n for i, n in zip(place, shape, strict=True))
    return [Entry(f"{name}[{','.join(map(str, place))}]", leaf, place)] if inside else []


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
        values = np.asarray(leaves[entry.leaf][(slice(None), *entry.place)], float)
        x, y, _ = array_stats.kde(values)
        return np.asarray(x), np.asarray(y)

    return [one(entry) for entry in entries]
