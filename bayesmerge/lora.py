"""Low-rank adapters among parameters: their factors A and B do not average, their products do."""

import itertools
import re
import warnings
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import is_concrete

FACTOR = re.compile(
    r"(?<![a-z])lora[\W_]*(?:embedding[\W_]*)?(a|b|down|up)(?![a-z])", re.IGNORECASE
)
"""`lora_A`, `lora_b`, `lora_down`, `lora_embedding_A`, `['lora']['A']`, …"""

PARTNER = {"a": "b", "down": "up"}


def warn_of_factors(points: list[PyTree], exponents: Float[Array, "*A F"]) -> None:
    """A warning where both factors of an adapter differ among the `points` that are summed, those
    with an exponent."""
    if is_concrete(exponents):
        used = np.any(np.atleast_2d(np.asarray(exponents)) != 0, axis=0)
        points = [point for point, use in zip(points, used, strict=True) if use]
    if len(points) < 2:
        return
    pair = next((p for p in _pairs(points[0]) if all(_differs(points, i) for i in p[1])), None)
    if pair is None:
        return
    names, _ = pair
    warnings.warn(
        f"parameters '{names[0]}' and '{names[1]}' are the factors of a low-rank adapter, and both "
        "differ among the models: a weighted sum of A and of B is not the weighted sum of the "
        "products BA, which is what the adapters add to the weights. Merge the products (B @ A for "
        "every layer, or the weights with the adapters added, as `merge_and_unload` of PEFT makes "
        "them). Merging A and B is right where one of them is the same in all models.",
        stacklevel=4,
    )


def _pairs(theta: PyTree) -> list[tuple[tuple[str, str], tuple[int, int]]]:
    """Names and positions of the leaves that are A and B of one adapter."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(theta)]
    positions = {path.lower(): i for i, path in enumerate(paths)}
    pairs = []
    for i, path in enumerate(paths):
        for found in FACTOR.finditer(path):
            partner = PARTNER.get(found[1].lower())
            if partner is None:
                continue
            other = (path[: found.start(1)] + partner + path[found.end(1) :]).lower()
            if other in positions:
                j = positions[other]
                pairs.append(((path, paths[j]), (i, j)))
    return pairs


def _differs(points: list[PyTree], leaf: int) -> bool:
    """Whether a leaf differs among the points, as far as one can see."""
    leaves: list[Any] = [jax.tree.leaves(point)[leaf] for point in points]
    if not is_concrete(leaves):
        return True
    return any(not np.array_equal(x, y) for x, y in itertools.pairwise(leaves))
