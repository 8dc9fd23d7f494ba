"""Gamma posteriors of positive rates: λ = (a − 1, b), T(x) = (log x, −x)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.families.base import over_batch, over_batch_with_key
from bayesmerge.families.checks import plain, require
from bayesmerge.families.conjugate import (
    AbstractConjugateFamily,
    all_above,
    concentrations_of,
    natural_concentrations,
    positive_leaves,
    shift,
)
from bayesmerge.families.layout import Layout
from bayesmerge.families.marginals import in_float64
from bayesmerge.families.show import IMPROPER, first
from bayesmerge.families.special import (
    excess,
    gamma_entropy,
    gamma_remainders,
    log_peak,
    log_ratio,
    ratio_excess,
    smaller_difference,
)
from bayesmerge.families.trees import keys_like, sum_leaves


class Gamma(AbstractConjugateFamily):
    """Independent Gamma(a, b) densities of positive numbers x, with base measure dx.

    Counts y_1 … y_n of a Poisson rate x have the likelihood λ = (Σy, n): events and exposure add.

    - `events`: a − 1, a pytree shaped as x, floating point.
    - `rate`: b, likewise.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> sites = [bm.Gamma.from_shape_rate(4.0, 1.0), bm.Gamma.from_shape_rate(6.0, 3.0)]
    >>> bm.merge(sites, [1.0, 1.0]).mode()
    Array(2., dtype=float32)

    ```
    """

    events: PyTree
    rate: PyTree
    layout: Layout = eqx.field(static=True)

    @classmethod
    def from_shape_rate(cls, a: PyTree, b: PyTree) -> "Gamma":
        """Gamma with shape `a` > 0 and rate `b` > 0, scalars or pytrees of one shape.

        **Raises** `ValueError` for a shape or rate that is not positive and finite.
        """
        (a, b), _ = positive_leaves("shape and rate", "Gamma", a, b)
        (events,), layout = natural_concentrations("shape", "Gamma", a)
        return cls(events, b, layout)

    @property
    def shape(self) -> PyTree:
        """a."""
        return shift(self.events, 1.0)

    @property
    def natural_parameters(self) -> PyTree:
        return self.events, self.rate

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(x) = (log x, −x)."""
        return jax.tree.map(jnp.log, theta), jax.tree.map(jnp.negative, theta)

    def in_support(self, theta: PyTree) -> Bool[Array, ""]:
        return jnp.all(jnp.stack([jnp.all(x >= 0) for x in jax.tree.leaves(theta)]))

    @over_batch
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether all shapes and rates are positive."""
        return all_above(-1.0, self.events) & all_above(0.0, self.rate)

    @over_batch
    def log_partition(self) -> Float[Array, "*batch"]:
        """A(λ) = log Γ(a) − a log b."""
        q = self._require_proper(self, "log-partition")
        return _total(lambda a, b: a * (log_ratio(a, b) - 1) - log_peak(a), q.shape, q.rate)

    @over_batch
    def entropy(self) -> Float[Array, "*batch"]:
        """a − log b + log Γ(a) + (1 − a) ψ(a)."""
        q = self._require_proper(self, "entropy")
        return _total(lambda a, b: gamma_entropy(a) - jnp.log(b), q.shape, q.rate)

    def _log_prob_inside(self, theta: PyTree) -> Float[Array, ""]:
        def leaf(x: Array, a: Array, b: Array) -> Array:
            return log_peak(a) - a * excess(b * x, a) - jnp.log(x)

        q = self._require_proper(self, "normalised density")
        return _total(leaf, theta, q.shape, q.rate)

    def _kl_divergence(self, other: "Gamma") -> Float[Array, ""]:
        """a' excess(m, m') + ½ excess(a', a) + remainders, a' and b' of `other`, m = a/b and
        m' = a'/b' the means: Stirling's series for log Γ, all large terms of which are positive."""

        def leaf(a: Array, b: Array, other_a: Array, other_b: Array) -> Array:
            ratio = (a / other_a) * (other_b / b)
            near = (a / other_a) * ((other_b - b) / b), (other_a - a) / other_a
            change = smaller_difference(near, (ratio, jnp.ones_like(ratio)))
            means = other_a * ratio_excess(ratio, change)
            return means + 0.5 * excess(other_a, a) + gamma_remainders(a, other_a)

        p, q = (g._require_proper(g, "divergence") for g in (self, other))
        return _total(leaf, p.shape, p.rate, q.shape, q.rate)

    @over_batch
    def mode(self) -> PyTree:
        """argmax of the density in x, (a − 1)/b.

        **Raises** `ValueError` where a < 1 (the maximum lies at the boundary 0) or b ≤ 0.
        """
        tolerance = -8 * jnp.finfo(self.layout.dtypes[0]).eps
        interior = all_above(tolerance, self.events) & all_above(0.0, self.rate)
        message = (
            "this Gamma has no mode inside (0, ∞): a shape below 1 puts the maximum on the "
            "boundary, and a rate must be positive. Use mean(), or add pseudo-counts."
        )
        q = require(
            self, interior, message, lambda: f"Shape {plain(self.shape)}, rate {plain(self.rate)}."
        )
        return jax.tree.map(lambda s, r: jnp.maximum(s, 0) / r, q.events, q.rate)

    @over_batch
    def mean(self) -> PyTree:
        """E[x] = a/b."""
        q = self._require_proper(self, "mean")
        return jax.tree.map(jnp.divide, q.shape, q.rate)

    @over_batch
    def variance(self) -> PyTree:
        """Var[x] = a/b²."""
        q = self._require_proper(self, "variance")
        return jax.tree.map(lambda a, b: a / b / b, q.shape, q.rate)

    @over_batch
    def std(self) -> PyTree:
        q = self._require_proper(self, "standard deviation")
        return jax.tree.map(lambda a, b: jnp.sqrt(a) / b, q.shape, q.rate)

    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        columns, note = concentrations_of({"shape": jax.tree.leaves(self.events)})
        rates = jax.tree.leaves(self.rate)
        proper = not note and all((rate > 0).all() for rate in rates)
        return columns | {"rate": [first(x) for x in rates]}, "" if proper else IMPROPER

    def _marginals(self) -> list[Any]:
        import scipy.stats

        pairs = zip(in_float64(self.events), in_float64(self.rate), strict=True)
        return [scipy.stats.gamma(events + 1, 0.0, 1 / rate) for events, rate in pairs]

    @over_batch_with_key
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> PyTree:
        q = self._require_proper(self, "sample")

        def draw(key: PRNGKeyArray, a: Array, b: Array) -> Array:
            full_shape = shape + a.shape
            return jax.random.gamma(key, a, full_shape, a.dtype) / jnp.broadcast_to(b, full_shape)

        return jax.tree.map(draw, keys_like(key, q.rate), q.shape, q.rate)


def _total(leaf: Callable[..., Array], *trees: PyTree) -> Float[Array, ""]:
    """Σ over all entries of all leaves."""
    return sum_leaves(jax.tree.map(lambda *x: jnp.sum(leaf(*x)), *trees))
