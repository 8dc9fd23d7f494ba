"""Modes of products of mixtures, by climbs that learn from those of other weightings."""

from typing import Any

import numpy as np
from jaxtyping import Array

from bayesmerge.families.checks import unchecked
from bayesmerge.merging import combined
from bayesmerge.mixtures.climb import minorizer, repeat
from bayesmerge.mixtures.maxima import MAX_STEPS
from bayesmerge.mixtures.warm_starts import modes_along
from bayesmerge.previews.modes.base import (
    AbstractModes,
    Group,
    Start,
    Sweep,
    colouring,
    within_memory,
)
from bayesmerge.previews.modes.merges import Merges


class Climbs(AbstractModes):
    r"""The highest mode of each product of mixtures, by expectation-maximisation,
    $\theta \leftarrow \arg\max_\theta \sum_{tk} \hat\pi_{tk}\alpha_t\lambda_{tk}^\top T(\theta)$,
    from many starts and from the modes of neighbouring weightings.

    It applies to mixtures, and is the only way that does.

    - `max_steps`: of every climb.

    **Raises** `ValueError` for `max_steps` below 1. Sweeps warn with a `ConvergenceWarning` where
    they were not enough.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> normal = lambda x: bm.IsotropicGaussian.from_mean_precision(jnp.array(x), 1.0)
    >>> q = bm.Mixture([0.75, 0.25], [normal(0.0), normal(9.0)])
    >>> options = {"modes": bm.previews.Climbs(), "progress": False}
    >>> bm.preview([q, normal(9.0)], [[0.5, 0.5]], lambda x: x, **options).values().round(3)
    array([9.])

    ```

    Source: FP equations 12 to 14, Algorithm 1.
    """

    max_steps: int = MAX_STEPS

    def __check_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}, and it is a number of steps, ≥ 1.")

    def obstacle(self, merges: Merges) -> str | None:
        if merges.is_mixture:
            return None
        return (
            f"the merged posterior is a {type(merges.shape).__name__}, and climbs are for products "
            "of mixtures. Use `bm.previews.Each()`, or leave out `modes`."
        )

    def pays(self, merges: Merges) -> bool:
        return True

    def sweep(self, merges: Merges, progress: bool | str) -> Sweep:
        product = combined([*merges.posteriors.values()], merges.weights, merges.prior)
        modes = modes_along(product, max_steps=self.max_steps, progress=progress)
        weightings = product.exponents, modes.responsibilities
        size = within_memory(merges.closed_form)
        group = Group(_touching, product.factors, weightings, np.arange(len(merges)), size)
        return Sweep([group])


def _touching(factors: list[Any], at: tuple[Array, Array]) -> Start:
    """The mode of what touches the product there from below: a mode of both."""
    exponents, responsibilities = at
    with unchecked():
        below = minorizer(factors, repeat(factors, exponents) * responsibilities)
        return Start(below.mode(), colouring(below))
