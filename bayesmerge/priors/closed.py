"""Priors of an exponential family, whose powers are of the same family."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.families.checks import is_concrete
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import AbstractStructure
from bayesmerge.priors.abstract import AbstractPrior


class ClosedPrior(AbstractPrior):
    """p_0 of an exponential family.

    - `family`: p_0.
    """

    is_closed: ClassVar[bool] = True
    family: AbstractExponentialFamily

    def energy(self, theta: PyTree) -> Float[Array, ""]:
        """−log p_0(θ), normalised."""
        return -self.family.log_prob(theta)

    def site(self, theta: PyTree, structure: AbstractStructure) -> AbstractExponentialFamily:
        """p_0."""
        return self.family

    @property
    def start(self) -> PyTree:
        """Its mode."""
        return self.family.mode()

    @property
    def given(self) -> AbstractExponentialFamily:
        """p_0."""
        return self.family

    @property
    def gaussian(self) -> AbstractGaussian | None:
        """p_0, if it is a Gaussian."""
        return self.family if isinstance(self.family, AbstractGaussian) else None

    @property
    def is_flat(self) -> bool:
        """Whether it is a Gaussian of precision 0."""
        if self.gaussian is None or not is_concrete(self.family):
            return False
        return not any(np.any(np.asarray(x)) for x in jax.tree.leaves(self.family))

    def require_layout(self, layout: Layout, what: str) -> None:
        self.family.layout.require_same(layout, f"prior and {what}")

    def gradient(self, theta: PyTree) -> PyTree:
        if self.gaussian is None:
            return super().gradient(theta)
        return jax.tree.map(jnp.subtract, self.gaussian.multiply(theta), self.gaussian.linear)
