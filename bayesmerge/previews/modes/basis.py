"""Modes in a small basis, with a bound on their error."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesmerge.previews.modes.base import (
    AbstractModes,
    Found,
    Group,
    Obstacle,
    Start,
    Sweep,
    within_memory,
)
from bayesmerge.previews.modes.merges import Merges
from bayesmerge.previews.modes.precisions import Span, dtype_of, not_dense
from bayesmerge.previews.modes.reduced_basis import modes_in_basis

FEWEST = 30
"""Weightings from which the factorisations that a basis needs are fewer than one each."""


class Basis(AbstractModes):
    r"""Modes of full Gaussians in one small basis, $\hat\theta_\alpha = Vc_\alpha$, which is grown
    until a bound on the relative error of every mode is below a tolerance: thousands of weightings
    for the price of dozens of Cholesky factorisations.

    It applies to full Gaussians and weightings with α ≥ 0 and γ ≥ 0, without draws.

    - `tolerance`: of $\|\hat\theta - \theta\|/\|\theta\|$, > 0. The bounds are the `mode error` of
      the preview.
    - `largest`: the share of P directions, in (0, 1], beyond which it gives up.

    **Raises** `ValueError` for options outside these ranges. Sweeps warn where rounding allows no
    error as small as `tolerance`.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = [bm.FullGaussian.from_mean_precision(jnp.full(2, x), jnp.eye(2)) for x in (1.0, 4.0)]
    >>> options = {"modes": bm.previews.Basis(tolerance=1e-2), "progress": False}
    >>> seen = bm.preview(q, bm.simplex_grid(2, 0.1), lambda x: x[0], **options)
    >>> bool(seen.details["mode error"].max() < 1e-2)
    True

    ```

    Source: Rozza, Huynh & Patera (2008), reduced bases for parametric linear systems.
    """

    tolerance: float = 1e-3
    largest: float = 1.0

    def __check_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(
                f"tolerance is {self.tolerance}, and a relative error cannot be bounded by it: "
                "give a number > 0, such as 1e-3; exact modes are `bm.previews.Each()`."
            )
        if not 0 < self.largest <= 1:
            raise ValueError(
                f"largest is {self.largest}, and it is a share of the dimensions of θ: give a "
                "number in (0, 1]."
            )

    def obstacle(self, merges: Merges) -> str | None:
        if not merges.is_dense:
            return not_dense(merges.shape)
        if merges.drawn:
            return (
                "it factorises few merges, and draws need the factor of each. Use "
                "`bm.previews.Each()`, or leave out `modes`."
            )
        if (merges.exponents < 0).any():
            return (
                "some exponents are negative, and there is no bound on the error of their modes. "
                "Use `bm.previews.Each()`, or leave out `modes`."
            )
        return None

    def pays(self, merges: Merges) -> bool:
        return merges.is_large and len(merges) >= FEWEST

    def sweep(self, merges: Merges, progress: bool | str) -> Found:
        found = modes_in_basis(
            merges.factors, merges.exponents, self.tolerance, self.largest, progress
        )
        if isinstance(found, Obstacle):
            return found
        if not (found.error <= self.tolerance).all():
            warnings.warn(
                f"modes in the basis may be wrong by {np.max(found.error):.2g} of their length, "
                f"where tolerance={self.tolerance:g} was asked: rounding allows no better. Use "
                "float64 (jax.config.update('jax_enable_x64', True)), or modes=Each().",
                stacklevel=5,
            )
        first = merges.factors[0]
        span = Span(jnp.asarray(found.vectors, dtype_of(first)), first.layout)
        coefficients = found.coefficients.astype(dtype_of(first))
        size = within_memory(first.linear)

        def group(rows: np.ndarray, colour: Any) -> Group:
            return Group(_mode, (span, colour), coefficients[rows], rows, size)

        if not merges.refined:
            return Sweep([group(np.arange(len(merges)), None)], found.error)
        groups = [
            group(np.flatnonzero(found.nearest == k), found.references[k].colour)
            for k in np.unique(found.nearest)
        ]
        return Sweep(groups, found.error)


def _mode(models: tuple[Span, Any], coefficients: Float[Array, " R"]) -> Start:
    span, colour = models
    return Start(span(coefficients), colour)
