"""Dirichlet posteriors of probability vectors: λ = a − 1, T(p) = log p."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
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
from bayesmerge.families.layout import Layout
from bayesmerge.families.marginals import in_float64
from bayesmerge.families.special import (
    excess,
    gamma_entropy,
    gamma_remainders,
    log_peak,
    ratio_excess,
    smaller_difference,
    sum_of_others,
)
from bayesmerge.families.trees import keys_like, sum_leaves


class Dirichlet(AbstractConjugateFamily):
    """Independent Dirichlet(a) densities of probability vectors p, which lie on the last axis.

    Category counts c have the likelihood λ = c. The base measure is Lebesgue measure of all but
    the last coordinate.

    - `counts`: a − 1, a pytree shaped as p, floating point.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> dice = [bm.Dirichlet.from_concentrations(jnp.array([2.0, 2.0, 4.0]))] * 2
    >>> bm.merge(dice, [0.5, 0.5]).mode()
    Array([0.2, 0.2, 0.6], dtype=float32)

    ```
    """

    counts: PyTree
    layout: Layout = eqx.field(static=True)

    @classmethod
    def from_concentrations(cls, a: PyTree) -> "Dirichlet":
        """Dirichlet(a): `a` > 0, a pytree of arrays (…, K) with K ≥ 2 categories on the last axis.

        **Raises** `ValueError` for a concentration that is not positive and finite, or K < 2.
        """
        (counts,), layout = natural_concentrations("concentrations", "Dirichlet", a)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            if not shape or shape[-1] < 2:
                raise ValueError(
                    f"concentrations{name} has shape {shape}, and its last axis must hold at "
                    "least two categories. For a single probability use Beta."
                )
        return cls(counts, layout)

    @property
    def concentrations(self) -> PyTree:
        """a."""
        return shift(self.counts, 1.0)

    @property
    def natural_parameters(self) -> PyTree:
        return self.counts

    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(p) = log p."""
        return jax.tree.map(jnp.log, theta)

    def in_support(self, theta: PyTree) -> Bool[Array, ""]:
        def on_simplex(p: Array) -> Bool[Array, ""]:
            tolerance = 10 * jnp.sqrt(jnp.finfo(p.dtype).eps)
            return jnp.all(p >= 0) & jnp.all(jnp.abs(jnp.sum(p, -1) - 1) < tolerance)

        return jnp.all(jnp.stack([on_simplex(p) for p in jax.tree.leaves(theta)]))

    @over_batch
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether all concentrations are positive."""
        return all_above(-1.0, self.counts)

    @over_batch
    def log_partition(self) -> Float[Array, "*batch"]:
        """A(λ) = Σ log Γ(a_k) − log Γ(Σ a_k)."""
        a = self._require_proper(self, "log-partition").concentrations
        return sum_leaves(jax.tree.map(dirichlet_log_partition, a))

    @over_batch
    def entropy(self) -> Float[Array, "*batch"]:
        """A − ⟨λ, ∇A⟩ = Σ E(a_k) − E(Σa) − (K − 1) ψ(Σa), E(a) the entropy of a Gamma(a, 1)."""
        a = self._require_proper(self, "entropy").concentrations
        return sum_leaves(jax.tree.map(dirichlet_entropy, a))

    def _log_prob_inside(self, theta: PyTree) -> Float[Array, ""]:
        a = self._require_proper(self, "normalised density").concentrations
        return sum_leaves(jax.tree.map(dirichlet_log_prob, theta, a))

    def _kl_divergence(self, other: "Dirichlet") -> Float[Array, ""]:
        p, q = (d._require_proper(d, "divergence").concentrations for d in (self, other))
        return sum_leaves(jax.tree.map(dirichlet_divergence, p, q))

    @over_batch
    def mode(self) -> PyTree:
        """argmax of the density in p, (a − 1)/Σ(a − 1).

        **Raises** `ValueError` where an a < 1 puts the maximum on the boundary, or all a = 1.
        """
        tolerance = -8 * jnp.finfo(self.layout.dtypes[0]).eps
        total = jax.tree.map(lambda x: jnp.sum(x, -1, keepdims=True), self.counts)
        interior = all_above(tolerance, self.counts) & all_above(0.0, total)
        message = (
            "this Dirichlet has no mode inside the simplex: a concentration below 1 puts the "
            "maximum on the boundary, and all equal to 1 is flat. Use mean(), or add pseudo-counts."
        )
        q = require(
            self, interior, message, lambda: f"Concentrations {plain(self.concentrations)}."
        )
        return jax.tree.map(lambda c, n: jnp.maximum(c, 0) / n, q.counts, total)

    @over_batch
    def mean(self) -> PyTree:
        """E[p] = a/Σa."""
        a = self._require_proper(self, "mean").concentrations
        return jax.tree.map(lambda x: x / jnp.sum(x, -1, keepdims=True), a)

    @over_batch
    def variance(self) -> PyTree:
        """Var[p_k] = m_k(1 − m_k)/(Σa + 1), m = a/Σa and 1 − m_k = Σ_{j≠k} a_j/Σa."""
        a = self._require_proper(self, "variance").concentrations
        return jax.tree.map(lambda x: beta_variance(x, sum_of_others(x)), a)

    @over_batch
    def std(self) -> PyTree:
        a = self._require_proper(self, "standard deviation").concentrations
        return jax.tree.map(lambda x: beta_std(x, sum_of_others(x)), a)

    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        return concentrations_of({"a": jax.tree.leaves(self.counts)})

    def _marginals(self) -> list[Any]:
        a = [counts + 1 for counts in in_float64(self.counts)]
        return [beta_marginal(x, sum_of_others(x)) for x in a]

    @over_batch_with_key
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> PyTree:
        a = self._require_proper(self, "sample").concentrations

        def draw(key: PRNGKeyArray, x: Array) -> Array:
            return jax.random.dirichlet(key, x, shape + x.shape[:-1], x.dtype)

        return jax.tree.map(draw, keys_like(key, a), a)


def dirichlet_log_prob(p: Float[Array, "*B K"], a: Float[Array, "*B K"]) -> Float[Array, ""]:
    """Σ [a_k log p_k − log p_k − log Γ(a_k)] + log Γ(Σa), around p = a/Σa: a_k excess(p_kΣa, a_k)
    with p_kΣa − a_k = p_kΣ_{j≠k} a_j − a_kΣ_{j≠k} p_j."""
    total = jnp.sum(a, -1, keepdims=True)
    change = p * (sum_of_others(a) / a) - sum_of_others(p)
    away = a * ratio_excess(p * (total / a), change)
    return jnp.sum(log_peak(a) - away - jnp.log(p)) - jnp.sum(log_peak(total))


def dirichlet_log_partition(a: Float[Array, "*B K"]) -> Float[Array, ""]:
    """Σ log Γ(a_k) − log Γ(Σa), without the terms that cancel."""
    total = jnp.sum(a, -1, keepdims=True)
    log_share = -jnp.logaddexp(0, jnp.log(sum_of_others(a)) - jnp.log(a))
    return jnp.sum(a * log_share - log_peak(a)) + jnp.sum(log_peak(total))


def dirichlet_entropy(a: Float[Array, "*B K"]) -> Float[Array, ""]:
    total = jnp.sum(a, -1)
    free = a.shape[-1] - 1
    return jnp.sum(gamma_entropy(a)) - jnp.sum(gamma_entropy(total) + free * digamma(total))


def dirichlet_divergence(a: Float[Array, "*B K"], b: Float[Array, "*B K"]) -> Float[Array, ""]:
    """Σ D(a_k, b_k) − D(A, B), D the Bregman divergence of log Γ, A = Σa and B = Σb.

    With Stirling's series D(a, b) = b log(b/a) − (b − a) + ½ excess(b, a) + remainders, and the
    first terms are Σ b_k excess(a_k/A, b_k/B), all positive, where
    (a_kB)/(b_kA) − 1 = (a_k Σ_{j≠k} b_j − b_k Σ_{j≠k} a_j)/(b_kA), or, which has smaller terms
    where a and b are nearly equal, the same with b − a in the place of b.
    """
    A, B = jnp.sum(a, -1, keepdims=True), jnp.sum(b, -1, keepdims=True)
    share, others = a / A, sum_of_others(a) / A

    def terms(x: Array) -> tuple[Array, Array]:
        return share * (sum_of_others(x) / b), others * (x / b)

    change = smaller_difference(terms(b - a), terms(b))
    shares = b * ratio_excess(share * (B / b), change)
    parts = shares + 0.5 * excess(b, a) + gamma_remainders(a, b)
    return jnp.sum(parts) - jnp.sum(0.5 * excess(B, A) + gamma_remainders(A, B))


def beta_variance(a: Array, b: Array) -> Array:
    """ab/((a + b)²(a + b + 1)), without numbers larger than a + b."""
    total = a + b
    return (a / total) * (b / total) / (total + 1)


def beta_std(a: Array, b: Array) -> Array:
    """The root of `beta_variance`, also where that is too small a number."""
    total = a + b
    return jnp.sqrt(a / total) * jnp.sqrt(b / total) / jnp.sqrt(total + 1)


def beta_marginal(a: Any, b: Any) -> Any:
    import scipy.stats

    return scipy.stats.beta(a, b)
