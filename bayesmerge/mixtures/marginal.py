"""The distribution of every entry of θ under a mixture, by itself."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class MixtureMarginal:
    """F(x) = Σ_k π_k F_k(x), entry by entry of a leaf, as SciPy's distributions are used.

    - `weights`: π, shape (K,).
    - `components`: a frozen distribution of `scipy.stats` whose parameters have a leading axis K.
    - `ndim`: of the leaf.
    """

    weights: Float[np.ndarray, " K"]
    components: Any
    ndim: int

    def pdf(self, x: Any) -> Any:
        """Σ_k π_k q_k(x)."""
        return self._average(self.components.pdf(self._for_each(x)))

    def cdf(self, x: Any) -> Any:
        """F(x)."""
        return self._average(self.components.cdf(self._for_each(x)))

    def ppf(self, p: Any) -> Any:
        """F⁻¹(p), between the least and the greatest of the components' quantiles."""
        ends = self.components.ppf(self._for_each(p))
        return _crossing(self.cdf, np.asarray(p, float), ends.min(self._axis), ends.max(self._axis))

    def entry(self, shape: tuple[int, ...], place: tuple[int, ...]) -> "MixtureMarginal":
        """Of one entry of the leaf, whose shape is given."""
        args: list[Any] = [
            np.broadcast_to(x, (len(self.weights), *shape)) for x in self.components.args
        ]
        parts = self.components.dist(*(x[(slice(None), *place)] for x in args))
        return MixtureMarginal(self.weights, parts, 0)

    @property
    def _axis(self) -> int:
        return -self.ndim - 1

    def _for_each(self, x: Any) -> Any:
        x = np.asarray(x, float)
        x = x.reshape((1,) * (self.ndim - x.ndim) + x.shape)
        return np.expand_dims(x, x.ndim - self.ndim)

    def _average(self, values: Any) -> Any:
        weights = self.weights.reshape(-1, *(1,) * self.ndim)
        return np.sum(weights * values, axis=self._axis)


def _crossing(cdf: Any, p: Any, low: Any, high: Any) -> Any:
    """x in [low, high] with F(x) = p, by bisection to the last digit: F may be flat there."""
    p = np.broadcast_to(p, low.shape)
    while True:
        middle = 0.5 * low + 0.5 * high
        inside = (low < middle) & (middle < high)
        if not inside.any():
            return np.where(np.isfinite(middle), middle, low)
        below = cdf(middle) < p
        low = np.where(inside & below, middle, low)
        high = np.where(inside & ~below, middle, high)
