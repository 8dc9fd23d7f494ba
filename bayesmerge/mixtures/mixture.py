"""Mixtures of one exponential family: q(θ) = Σ_k π_k q_k(θ) (FP-11)."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, logsumexp, softmax
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.arrays import as_array
from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.families.checks import is_concrete, require, require_finite
from bayesmerge.families.layout import Layout
from bayesmerge.families.marginals import quantiles
from bayesmerge.families.show import safely, show_mixture
from bayesmerge.keys import as_key
from bayesmerge.mixtures.marginal import MixtureMarginal
from bayesmerge.mixtures.maxima import MAX_STEPS, Maxima, Starts
from bayesmerge.mixtures.product import AbstractLazyPosterior, Product
from bayesmerge.mixtures.reduction import merge_pairs, nearest_member


class Mixture(AbstractLazyPosterior):
    r"""$q(\theta) = \sum_k \pi_k q_k(\theta)$, q_k members of one exponential family.

    Products with other posteriors are lazy (`Product`). Components' means and heights are computed
    once, so that densities and responsibilities need no factorisation, and are measured from the
    means, so that nothing cancels when these are large or many.

    - `weights`: π, shape (K,), ≥ 0; normalised to sum 1.
    - `components`: q_k, a batch of K normalised posteriors of one family (leaves with a leading
      axis K, such as `jax.vmap` or `jax.tree.map(jnp.stack, …)` make), or a sequence of K.

    **Raises** `ValueError` for no components, numbers that differ, weights that are negative, all
    zero or not finite, and improper components.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = bm.Mixture([0.25, 0.75], [
    ...     bm.IsotropicGaussian.from_mean_precision(jnp.array(-2.0), 1.0),
    ...     bm.IsotropicGaussian.from_mean_precision(jnp.array(2.0), 1.0)])
    >>> q.mean(), q.variance(), q.responsibilities(jnp.array(40.0))
    (Array(1., dtype=float32), Array(4., dtype=float32), Array([0., 1.], dtype=float32))

    ```

    Source: FP equation 11.
    """

    __repr__ = safely(show_mixture)

    log_weights: Float[Array, " K"]
    components: Any
    means: PyTree
    heights: Float[Array, " K"]

    def __init__(self, weights: ArrayLike | Sequence[float], components: Any):
        self.components = _as_batch(components)
        count = self.components.batch_shape[0]
        if is_concrete(self.components):
            require_finite(self.components, "components")
        given = weights
        weights = as_array(weights, "weights", float)
        if weights.shape != (count,):
            raise ValueError(
                f"weights have shape {weights.shape}, and for {count} components they must have "
                f"shape ({count},)."
            )
        if is_concrete(weights):
            weights = require_finite(weights, "weights")
        weights = require(
            weights,
            jnp.all(weights >= 0) & jnp.any(weights > 0),
            "weights of a mixture must not be negative, nor all zero.",
            lambda: f"They are {np.asarray(given).tolist()}.",
        )
        self.log_weights = log_softmax(jnp.log(weights))
        self.means, self.heights = _means_and_heights(self.components)

    @property
    def layout(self) -> Layout:
        """The layout of θ."""
        return self.components.layout

    @property
    def weights(self) -> Float[Array, " K"]:
        """π."""
        return jnp.exp(self.log_weights)

    @property
    def num_components(self) -> int:
        """K."""
        return self.log_weights.shape[0]

    def log_joint(self, theta: PyTree) -> Float[Array, " K"]:
        """log π_k q_k(θ) for every component."""
        below = jax.vmap(lambda q, mean: q.log_ratio_to_mean(theta, mean))
        return self.log_weights + self.heights + below(self.components, self.means)

    def log_prob(self, theta: PyTree) -> Float[Array, ""]:
        """log q(θ), normalised."""
        return logsumexp(self.log_joint(self.components._theta(theta)))

    def log_density(self, theta: PyTree) -> Float[Array, ""]:
        """log q(θ)."""
        return self.log_prob(theta)

    def log_ratio(self, theta: PyTree, reference: PyTree) -> Float[Array, ""]:
        """log q(θ)/q(θ')."""
        return self.log_prob(theta) - self.log_prob(reference)

    def responsibilities(self, theta: PyTree) -> Float[Array, " K"]:
        """π̂_k = π_k q_k(θ)/q(θ)."""
        return softmax(self.log_joint(self.components._theta(theta)))

    def minorizer(self, theta: PyTree) -> Any:
        """Π_k q_k^{π̂_k}, π̂ the responsibilities at θ: up to a constant it touches q at θ from
        below (Jensen), which is the E-step of FP-12 and FP-14."""
        return self.geometric_mean(self.responsibilities(theta))

    def blend(self) -> Any:
        """Π_k q_k^{π_k}, the geometric mean of the components."""
        return self.geometric_mean(self.weights)

    def mode(
        self, starts: Starts | PyTree | None = "means", *, max_steps: int = MAX_STEPS
    ) -> PyTree:
        """The highest of the maxima found from all means, or from `starts`, as `Product.mode`."""
        return Product([self], jnp.ones(1)).mode(starts, max_steps=max_steps)

    def maxima(
        self,
        starts: Starts | PyTree | None = "means",
        *,
        tolerance: float | None = None,
        max_steps: int = MAX_STEPS,
        accelerate: bool = True,
    ) -> Maxima:
        """The local maxima found from all means, or from `starts`, as `Product.maxima`."""
        return Product([self], jnp.ones(1)).maxima(
            starts, tolerance=tolerance, max_steps=max_steps, accelerate=accelerate
        )

    def is_proper(self) -> Bool[Array, ""]:
        """Whether q has a normaliser: always, for components have."""
        return jnp.all(jnp.isfinite(self.heights))

    def mean(self) -> PyTree:
        """E[θ] = Σ_k π_k μ_k."""
        return jax.tree.map(lambda m: m[0] + _average(self.weights, m - m[:1]), self.means)

    def variance(self) -> PyTree:
        """Var[θ] = Σ_k π_k (Var_k + (μ_k − E[θ])²), entry by entry."""

        def total(std: Array, means: Array) -> Array:
            return _average(self.weights, std**2 + self._deviations(means) ** 2)

        return jax.tree.map(total, _stds(self.components), self.means)

    def std(self) -> PyTree:
        """√Var[θ], entry by entry."""

        def total(std: Array, means: Array) -> Array:
            away = self._deviations(means)
            scale = jnp.max(jnp.maximum(std, jnp.abs(away)), axis=0)
            parts = (std / scale[None]) ** 2 + (away / scale[None]) ** 2
            return scale * jnp.sqrt(_average(self.weights, parts))

        return jax.tree.map(total, _stds(self.components), self.means)

    def _deviations(self, means: Array) -> Array:
        """μ_k − E[θ], from differences of means: π sums to 1 only nearly."""
        away = means - means[:1]
        return away - _average(self.weights, away)[None]

    def marginals(self) -> PyTree:
        """The distribution of every entry of θ by itself: a pytree shaped as θ with mixtures of
        distributions of `scipy.stats` for leaves (`pdf`, `cdf`, `ppf`), in float64. Not within
        `jax.jit`."""
        weights = np.asarray(self.weights, float)
        kept = np.flatnonzero(weights)
        parts = jax.tree.map(lambda x: x[kept], self.components).marginals()
        layout = self.layout
        leaves = [
            MixtureMarginal(weights[kept] / weights[kept].sum(), part, len(shape))
            for part, shape in zip(jax.tree.leaves(parts), layout.shapes, strict=True)
        ]
        return jax.tree.unflatten(layout.structure, leaves)

    def quantile(self, p: ArrayLike | Sequence[Any]) -> PyTree:
        """The value below which an entry of θ lies with probability p, for every entry by itself.

        - `p`: probabilities in [0, 1], of any shape, which the result has in front of every
          leaf's own.

        **Raises** `ValueError` for p outside of [0, 1]. Not within `jax.jit`.
        """
        return quantiles(jax.tree.leaves(self.marginals()), p, self.layout)

    def sample(self, key: PRNGKeyArray, shape: int | tuple[int, ...] = ()) -> PyTree:
        """Independent draws θ ~ q, `shape` in front of every leaf's own shape."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        which_key, key = jax.random.split(as_key(key))
        which = jax.random.categorical(which_key, self.log_weights, shape=shape)
        keys = jax.random.split(key, self.num_components)
        draws = _samples(self.components, keys, shape)

        def pick(drawn: Array) -> Array:
            index = which.reshape((1, *shape) + (1,) * (drawn.ndim - 1 - len(shape)))
            return jnp.take_along_axis(drawn, index, axis=0)[0]

        return jax.tree.map(pick, draws)

    def collapse(self) -> Any:
        """The member p of the components' family that is nearest, argmin_p KL(q ‖ p): it has the
        same E[T], for Gaussians the same mean and (what the structure keeps of the) covariance."""
        return nearest_member(self.weights, self.components)

    def reduce(self, count: int) -> "Mixture":
        """At most `count` components, by merging pairs to what `collapse` makes of them, each time
        the pair that costs least in a bound on KL(q ‖ reduced). E[T] is kept: for full and diagonal
        Gaussians mean and variance, for isotropic ones the mean and the average variance.

        **Raises** `ValueError` for `count` < 1, or not a whole number.

        Source: Runnalls (2007), *Kullback-Leibler Approach to Gaussian Mixture Reduction*.
        """
        _require_count(count)
        if count >= self.num_components:
            return self
        return Mixture(*merge_pairs(self.weights, self.components, count))

    def truncate(self, count: int | None = None, *, min_weight: float = 0.0) -> "Mixture":
        """The heaviest components, normalised again.

        - `count`: how many at most; by default all.
        - `min_weight`: components of smaller π_k are left out.

        **Raises** `ValueError` where none would be left.
        """
        if count is not None:
            _require_count(count)
        order = np.argsort(-np.asarray(self.log_weights), kind="stable")
        kept = order[np.asarray(self.weights)[order] >= min_weight][:count]
        if not len(kept):
            raise ValueError(
                f"min_weight {min_weight:.6g} leaves no component; the largest weight is "
                f"{float(jnp.max(self.weights)):.6g}."
            )
        kept = np.sort(kept)
        return Mixture(self.weights[kept], jax.tree.map(lambda x: x[kept], self.components))

    def geometric_mean(self, exponents: Float[Array, " K"]) -> Any:
        """Π_k q_k^{w_k}, w = `exponents`."""
        return jax.tree.map(lambda leaf: _average(exponents, leaf), self.components)


def _average(weights: Float[Array, " K"], leaf: Array) -> Array:
    return jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1)


@eqx.filter_jit
def _means_and_heights(components: Any) -> tuple[PyTree, Float[Array, " K"]]:
    """The means of the components, and their log-densities there."""

    def one(q: AbstractExponentialFamily) -> tuple[PyTree, Float[Array, ""]]:
        mean = q.mean()
        return mean, q.log_prob(mean)

    return jax.lax.map(one, components)


def _require_count(count: int) -> None:
    if count < 1 or count != int(count):
        raise ValueError(f"count is {count}, and a mixture has 1, 2, 3 … components.")


@eqx.filter_jit
def _stds(components: Any) -> PyTree:
    return jax.lax.map(lambda q: q.std(), components)


@eqx.filter_jit
def _samples(components: Any, keys: Array, shape: tuple[int, ...]) -> PyTree:
    return jax.lax.map(lambda pair: pair[0].sample(pair[1], shape), (components, keys))


@eqx.filter_jit
def _are_proper(components: Any) -> Bool[Array, ""]:
    return jnp.all(jax.lax.map(lambda q: q.is_proper(), components))


def _as_batch(components: Any) -> Any:
    if isinstance(components, (list, tuple)):
        if not components:
            raise ValueError("components is empty: a mixture needs at least one.")
        for q in components[1:]:
            if type(q) is not type(components[0]):
                raise TypeError(
                    f"components are a {type(components[0]).__name__} and a {type(q).__name__}, "
                    "and a mixture has components of one family."
                )
            components[0].layout.require_same(q.layout, "the components of a mixture")
        components = jax.tree.map(lambda *leaves: jnp.stack(leaves), *components)
    if not isinstance(components, AbstractExponentialFamily) or len(components.batch_shape) != 1:
        raise TypeError(
            "components must be a batch of posteriors of one family, with one leading axis K (from "
            "`jax.vmap` or `jax.tree.map(jnp.stack, …)`), or a sequence of them."
        )
    if components.batch_shape == (0,):
        raise ValueError("components is empty: a mixture needs at least one.")
    if is_concrete(components) and not _are_proper(components):
        raise ValueError(
            "a component is improper, and a mixture needs normalised components: a quotient of "
            "posteriors can subtract more than the posteriors have; multiply by a prior first."
        )
    return components
