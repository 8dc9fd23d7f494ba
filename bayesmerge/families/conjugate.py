"""What families with conjugate likelihoods share: Beta, Gamma, Dirichlet.

Their log-partition A(λ) gives everything: log q = ⟨λ, T⟩ − A, entropy A − ⟨λ, ∇A⟩, divergence
A(λ') − A(λ) − ⟨λ' − λ, ∇A(λ)⟩. But A grows with the counts and these differences do not, so that
float32 would lose them at counts of a thousand. Each family writes them out in the functions of
`special`, and the identities are tests.
"""

import abc
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from bayesmerge.arrays import X64, as_array, to_numpy
from bayesmerge.families.base import (
    AbstractExponentialFamily,
    over_batch,
    over_batches,
)
from bayesmerge.families.checks import (
    all_finite,
    is_concrete,
    largest,
    require,
    require_finite,
    smallest,
)
from bayesmerge.families.layout import Layout
from bayesmerge.families.marginals import quantiles
from bayesmerge.families.show import IMPROPER, first
from bayesmerge.families.trees import sum_leaves

WHOLE = 2**24
"""Up to which float32 has every whole number."""


class AbstractConjugateFamily(AbstractExponentialFamily):
    """A family over a set with a boundary, on which and outside of which densities need care."""

    layout: eqx.AbstractVar[Layout]

    @abc.abstractmethod
    def in_support(self, theta: PyTree) -> Bool[Array, ""]:
        """Whether θ lies in the (closed) set where the density lives."""

    @abc.abstractmethod
    def _log_prob_inside(self, theta: PyTree) -> Float[Array, ""]:
        """log q(θ) for θ away from the boundary."""

    @abc.abstractmethod
    def _kl_divergence(self, other: Any) -> Float[Array, ""]:
        """KL(q ‖ other) for two posteriors that are no batches."""

    @over_batch
    def log_density(self, theta: PyTree) -> Float[Array, "*batch"]:
        """⟨λ, T(θ)⟩, defined for improper objects too; −∞ outside the support."""
        theta = self._theta(theta)
        terms = jax.tree.map(_product, self.natural_parameters, self.sufficient_statistics(theta))
        inside = self.in_support(theta)
        return jnp.where(inside, sum_leaves(jax.tree.map(jnp.sum, terms)), -jnp.inf)

    @over_batch
    def log_prob(self, theta: PyTree) -> Float[Array, "*batch"]:
        """⟨λ, T(θ)⟩ − A(λ)."""
        theta = self._theta(theta)
        inside = self.in_support(theta) & all_finite(self.sufficient_statistics(theta))
        safe = jax.tree.map(lambda x, m: jnp.where(inside, x, m), theta, self.mean())
        at_boundary = self.log_density(theta) - self.log_partition()
        return jnp.where(inside, self._log_prob_inside(safe), at_boundary)

    def quantile(self, p: ArrayLike | Sequence[Any]) -> PyTree:
        marginals = jax.tree.leaves(self.marginals())
        return quantiles(marginals, p, self.layout, len(self.batch_shape))

    def log_ratio(self, theta: PyTree, reference: PyTree) -> Float[Array, ""]:
        """⟨λ, T(θ) − T(θ')⟩."""
        return self.log_density(theta) - self.log_density(reference)

    def log_ratio_to_mean(self, theta: PyTree, mean: PyTree) -> Float[Array, ""]:
        """⟨λ, T(θ) − T(m)⟩."""
        return self.log_density(theta) - self.log_density(mean)

    def kl_divergence(self, other: Any) -> Float[Array, "*batch"]:
        """A(λ') − A(λ) − ⟨λ' − λ, ∇A(λ)⟩, λ' of `other`: the Bregman divergence of A."""
        self.layout.require_same(other.layout)
        return over_batches(lambda p, q: p._kl_divergence(q), *self.aligned_with(other))

    def aligned_with(self, other: AbstractExponentialFamily) -> tuple[Any, Any]:
        if type(other) is not type(self):
            raise TypeError(
                f"a {type(self).__name__} and a {type(other).__name__} are not members of one "
                "exponential family, so their product has no closed form here."
            )
        return self, other


def _product(natural: Array, statistic: Array) -> Array:
    """λT with 0 · log 0 = 0."""
    return jnp.where(natural == 0, 0, natural * statistic)


def shift(tree: PyTree, by: float) -> PyTree:
    """Every leaf plus `by`: between concentrations a and natural parameters a − 1."""
    return jax.tree.map(lambda x: x + by, tree)


def concentrations_of(counts: dict[str, list[Any]]) -> tuple[dict[str, list[Any]], str]:
    """The first a of every leaf of a − 1, and whether they are improper."""
    proper = all((x > -1).all() for leaves in counts.values() for x in leaves)
    columns = {name: [first(x) + 1 for x in leaves] for name, leaves in counts.items()}
    return columns, "" if proper else IMPROPER


def natural_concentrations(name: str, family: str, *trees: PyTree) -> tuple[Any, Layout]:
    """a − 1 for pytrees of concentrations a, which must be large enough to be told from 0 then."""
    leaves, layout = positive_leaves(name, family, *trees)
    least = float(jnp.finfo(layout.dtypes[0]).eps) ** 0.5
    message = (
        f"the {name} of a {family} must be above {least:.1g} in {layout.dtypes[0]}: natural "
        "parameters are a − 1, in which smaller ones drown. Enable float64, or use larger ones."
    )
    return require(shift(leaves, -1.0), all_above(least, leaves), message), layout


def all_above(bound: ArrayLike, *trees: PyTree) -> Bool[Array, ""]:
    """Whether every entry of every leaf is finite and above `bound`."""
    above = [jnp.all((x > bound) & jnp.isfinite(x)) for x in jax.tree.leaves(trees)]
    return jnp.all(jnp.stack(above))


def positive_leaves(
    name: str, family: str, *trees: PyTree[ArrayLike]
) -> tuple[tuple[PyTree, ...], Layout]:
    """Pytrees of concentrations or rates as floating-point arrays of one layout, all positive."""
    arrays = [jax.tree.map(lambda x: _floating(x, name), t) for t in trees]
    layout = Layout.of(arrays[0], name)
    for other in arrays[1:]:
        layout.require_same(Layout.of(other, name), f"the {name} of a {family}")
    finite = require_finite(tuple(arrays), name)
    _warn_if_coarse(finite, name)
    checked = require(
        finite,
        all_above(0.0, arrays),
        f"the {name} of a {family} must be positive.",
        lambda: f"The smallest is {smallest(arrays).item()}.",
    )
    return checked, layout


def _floating(values: Any, name: str) -> Array:
    array = to_numpy(values, name)
    return as_array(array, name, jnp.result_type(array, float))


def _warn_if_coarse(trees: PyTree, name: str) -> None:
    """Said where values are known; a compiled program has no room for it."""
    most = largest(trees)
    if is_concrete(most) and most.dtype == jnp.float32 and most >= WHOLE:
        warnings.warn(
            f"the {name} are up to {most.item():.10g}, where float32 has only every "
            f"{np.spacing(np.float32(most)):g}: single events that are added later are lost. "
            f"Enable 64 bits by {X64}.",
            stacklevel=4,
        )
