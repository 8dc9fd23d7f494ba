"""No prior."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.gaussian import AbstractGaussian, gaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import AbstractStructure, ScalarPrecision
from bayesmerge.priors.abstract import AbstractPrior


class FlatPrior(AbstractPrior):
    """p_0 ∝ 1, what `None` stands for."""

    is_closed: ClassVar[bool] = True

    def energy(self, theta: PyTree) -> Float[Array, ""]:
        """0."""
        return jnp.zeros((), jnp.result_type(*jax.tree.leaves(theta)))

    def site(self, theta: PyTree, structure: AbstractStructure) -> AbstractGaussian:
        """1, a Gaussian of precision zero."""
        layout = Layout.of(theta)
        zero = jnp.zeros((), jnp.result_type(*layout.dtypes))
        return gaussian(jax.tree.map(jnp.zeros_like, theta), ScalarPrecision(zero, layout))

    @property
    def start(self) -> None:
        """`None`."""
        return None

    @property
    def given(self) -> None:
        """`None`."""
        return None

    @property
    def gaussian(self) -> None:
        """`None`."""
        return None

    @property
    def is_flat(self) -> bool:
        """True."""
        return True

    def require_layout(self, layout: Layout, what: str) -> None:
        """Nothing."""
