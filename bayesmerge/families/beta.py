"""Beta posteriors of probabilities: λ = (a − 1, b − 1), T(π) = (log π, log(1 − π)) (FP A.2)."""

from typing import Any, Literal

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
    shift,
)
from bayesmerge.families.dirichlet import (
    beta_marginal,
    beta_std,
    beta_variance,
    dirichlet_divergence,
    dirichlet_entropy,
    dirichlet_log_partition,
    dirichlet_log_prob,
)
from bayesmerge.families.layout import Layout
from bayesmerge.families.marginals import in_float64
from bayesmerge.families.special import log_ratio
from bayesmerge.families.trees import keys_like, sum_leaves


class Beta(AbstractConjugateFamily):
    """Independent Beta(a, b) densities of probabilities π, with base measure dπ.

    A coin seen with s heads and f tails has the likelihood λ = (s, f): counts are natural
    parameters, and merging coins adds them. It is a − 1 that adds, so the merged a and b are
    weighted averages only where Σα = 1.

    - `successes`: a − 1, a pytree shaped as π, floating point.
    - `failures`: b − 1, likewise.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> coins = [bm.Beta.from_concentrations(3.0, 2.0), bm.Beta.from_concentrations(5.0, 2.0)]
    >>> bm.merge(coins, [1.0, 1.0]).mode()
    Array(0.75, dtype=float32)

    ```
    """

    successes: PyTree
    failures: PyTree
    layout: Layout = eqx.field(static=True)

    @classmethod
    def from_concentrations(cls, a: PyTree, b: PyTree) -> "Beta":
        """Beta(a, b): `a`, `b` > 0, scalars or pytrees of one shape.

        **Raises** `ValueError` for a concentration that is not positive and finite.
        """
        (successes, failures), layout = natural_concentrations("concentrations", "Beta", a, b)
        return cls(successes, failures, layout)

    @property
    def concentrations(self) -> tuple[PyTree, PyTree]:
        """(a, b)."""
        return shift(self.successes, 1.0), shift(self.failures, 1.0)

    @property
    def natural_parameters(self) -> PyTree:
        return self.successes, self.failures

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(π) = (log π, log(1 − π))."""
        return jax.tree.map(jnp.log, theta), jax.tree.map(lambda p: jnp.log1p(-p), theta)

    def in_support(self, theta: PyTree) -> Bool[Array, ""]:
        inside = [jnp.all((p >= 0) & (p <= 1)) for p in jax.tree.leaves(theta)]
        return jnp.all(jnp.stack(inside))

    @over_batch
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether all concentrations are positive."""
        return all_above(-1.0, self.successes, self.failures)

    @over_batch
    def log_partition(self) -> Float[Array, "*batch"]:
        """A(λ) = log B(a, b)."""
        both = self._require_proper(self, "log-partition")._both()
        return sum_leaves(jax.tree.map(dirichlet_log_partition, both))

    @over_batch
    def entropy(self) -> Float[Array, "*batch"]:
        """log B(a, b) − (a − 1) ψ(a) − (b − 1) ψ(b) + (a + b − 2) ψ(a + b)."""
        both = self._require_proper(self, "entropy")._both()
        return sum_leaves(jax.tree.map(dirichlet_entropy, both))

    def _both(self) -> PyTree:
        """(a, b) on a last axis: a Beta is a Dirichlet of two categories."""
        return jax.tree.map(_pair, *self.concentrations)

    def _log_prob_inside(self, theta: PyTree) -> Float[Array, ""]:
        both = self._require_proper(self, "normalised density")._both()
        p = jax.tree.map(lambda x: _pair(x, 1 - x), theta)
        return sum_leaves(jax.tree.map(dirichlet_log_prob, p, both))

    def _kl_divergence(self, other: "Beta") -> Float[Array, ""]:
        p, q = (beta._require_proper(beta, "divergence")._both() for beta in (self, other))
        return sum_leaves(jax.tree.map(dirichlet_divergence, p, q))

    @over_batch
    def mode(self, coordinates: Literal["probability", "logit"] = "probability") -> PyTree:
        """The most probable π, of the density taken in `coordinates` (FP A.2, misprint 8).

        - `"probability"`: argmax of the density in π, (a − 1)/(a + b − 2).
        - `"logit"`: argmax of the density in θ = log π/(1 − π), log(a/b), returned as θ.

        **Raises** `ValueError` where the maximum lies on the boundary (a < 1 or b < 1) or is not
        unique (a = b = 1).
        """
        if coordinates == "logit":
            a, b = self._require_proper(self, "mode").concentrations
            return jax.tree.map(log_ratio, a, b)
        total = jax.tree.map(jnp.add, self.successes, self.failures)
        tolerance = -8 * jnp.finfo(self.layout.dtypes[0]).eps
        interior = all_above(tolerance, self.successes, self.failures) & all_above(0.0, total)
        message = (
            "this Beta has no mode inside (0, 1): a concentration below 1 puts the maximum on the "
            "boundary, and a = b = 1 is flat. Use mean(), mode('logit'), or add pseudo-counts."
        )
        q = require(self, interior, message, lambda: f"(a, b) = {plain(self.concentrations)}.")
        return jax.tree.map(lambda s, n: jnp.maximum(s, 0) / n, q.successes, total)

    @over_batch
    def mean(self) -> PyTree:
        """E[π] = a/(a + b)."""
        a, b = self._require_proper(self, "mean").concentrations
        return jax.tree.map(lambda x, y: x / (x + y), a, b)

    @over_batch
    def variance(self) -> PyTree:
        """Var[π] = ab/((a + b)²(a + b + 1))."""
        a, b = self._require_proper(self, "variance").concentrations
        return jax.tree.map(beta_variance, a, b)

    @over_batch
    def std(self) -> PyTree:
        a, b = self._require_proper(self, "standard deviation").concentrations
        return jax.tree.map(beta_std, a, b)

    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        leaves = {"a": jax.tree.leaves(self.successes), "b": jax.tree.leaves(self.failures)}
        return concentrations_of(leaves)

    def _marginals(self) -> list[Any]:
        counts = zip(in_float64(self.successes), in_float64(self.failures), strict=True)
        return [beta_marginal(s + 1, f + 1) for s, f in counts]

    @over_batch_with_key
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> PyTree:
        a, b = self._require_proper(self, "sample").concentrations

        def draw(key: PRNGKeyArray, x: Array, y: Array) -> Array:
            return jax.random.beta(key, x, y, shape + x.shape, x.dtype)

        return jax.tree.map(draw, keys_like(key, a), a, b)


def _pair(x: Array, y: Array) -> Float[Array, "*B 2"]:
    return jnp.stack([x, y], axis=-1)
