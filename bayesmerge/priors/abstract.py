"""What a prior promises, of whatever kind it is."""

import abc
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import AbstractStructure


class AbstractPrior(eqx.Module):
    """p_0, with the energy R_0(θ) = −log p_0(θ) up to a constant."""

    is_closed: eqx.AbstractClassVar[bool]
    """Whether p_0^γ is a posterior that multiplies others; otherwise p_0 stays as it is."""

    @abc.abstractmethod
    def energy(self, theta: PyTree) -> Float[Array, ""]:
        """R_0(θ)."""

    @abc.abstractmethod
    def site(self, theta: PyTree, structure: AbstractStructure) -> Any:
        """What stands for p_0 in a posterior around θ: p_0 itself where it is closed, or else its
        expansion, exp(−∇R_0(θ)ᵀδ − ½‖δ‖²_H) with δ the distance from θ and those entries of
        H = ∇²R_0(θ) that a structure keeps."""

    @property
    @abc.abstractmethod
    def start(self) -> PyTree | None:
        """Where to look for modes from, or `None` where it says nothing of that."""

    @property
    @abc.abstractmethod
    def given(self) -> Any:
        """What users pass for it."""

    @property
    @abc.abstractmethod
    def gaussian(self) -> AbstractGaussian | None:
        """p_0 where it is a Gaussian, which optimisers use by its linear term and precision."""

    @property
    @abc.abstractmethod
    def is_flat(self) -> bool:
        """Whether it carries no information."""

    @abc.abstractmethod
    def require_layout(self, layout: Layout, what: str) -> None:
        """Nothing, or an error where θ is not shaped as `layout`."""

    def gradient(self, theta: PyTree) -> PyTree:
        """∇R_0(θ)."""
        return jax.grad(self.energy)(theta)
