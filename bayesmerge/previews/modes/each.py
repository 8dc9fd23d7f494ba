"""Modes of one weighting after the other, each by itself."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from bayesmerge.families.checks import unchecked
from bayesmerge.fit.tilted import Tilted
from bayesmerge.merging import combined
from bayesmerge.previews.modes.base import (
    AbstractModes,
    Group,
    Start,
    Sweep,
    colouring,
    within_memory,
)
from bayesmerge.previews.modes.merges import Merges


class Each(AbstractModes):
    r"""Each mode by itself, $\hat\theta_\alpha = \Lambda_\alpha^{-1}\eta_\alpha$: for full
    Gaussians one Cholesky factorisation of a P×P matrix for every weighting.

    It applies to all posteriors but mixtures.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = [bm.IsotropicGaussian.from_mean_precision(jnp.array(x), 1.0) for x in (0.0, 4.0)]
    >>> options = {"modes": bm.previews.Each(), "progress": False}
    >>> bm.preview(q, [[0.5, 0.5]], lambda x: x, **options).values()
    array([2.])

    ```
    """

    def obstacle(self, merges: Merges) -> str | None:
        if merges.is_mixture:
            return (
                "products of mixtures have no modes in closed form. Use `bm.previews.Climbs()`, or "
                "leave out `modes`."
            )
        return None

    def pays(self, merges: Merges) -> bool:
        return True

    def sweep(self, merges: Merges, progress: bool | str) -> Sweep:
        merges.require_modes()
        models = [*merges.posteriors.values()], merges.prior
        size = within_memory(merges.closed_form)
        return Sweep([Group(_mode, models, merges.weights, np.arange(len(merges)), size)])


def _mode(models: tuple[list[Any], Any], alpha: Float[Array, " T"]) -> Start:
    qs, prior = models
    with unchecked():
        merged = combined(qs, alpha, prior)
        theta = merged.mode()
        gaussian = merged.laplace(theta) if isinstance(merged, Tilted) else merged
        return Start(theta, colouring(gaussian))
