"""Diagonal Gaussians: a precision for every parameter, Λ = diag(τ)."""

from typing import ClassVar

from jaxtyping import PyTree

from bayesmerge.families.gaussian import AbstractGaussian, named_by
from bayesmerge.families.precision import AbstractStructure, Diagonal, DiagonalPrecision


@named_by(Diagonal)
class DiagonalGaussian(AbstractGaussian):
    """N(θ | μ, diag(τ)⁻¹): a precision for every parameter, leaf by leaf, never flattened.

    Natural parameters λ = (τμ, τ) with T(θ) = (θ, −½θ²), entry by entry. Merging these is
    Fisher-weighted averaging when τ is a Fisher information (GM §2).

    - `linear`: τμ, a pytree shaped as θ, floating point.
    - `precision`: a `DiagonalPrecision`, whose `value` is τ, a pytree shaped as θ.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> p = bm.DiagonalGaussian.from_mean_precision(jnp.array([0.0, 0.0]), jnp.array([1.0, 3.0]))
    >>> q = bm.DiagonalGaussian.from_mean_precision(jnp.array([4.0, 4.0]), jnp.array([3.0, 1.0]))
    >>> (p * q).mode()
    Array([3., 1.], dtype=float32)

    ```
    """

    linear: PyTree
    precision: DiagonalPrecision
    structure: ClassVar[AbstractStructure] = Diagonal()

    @classmethod
    def from_mean_precision(cls, mean: PyTree, precision: PyTree) -> "DiagonalGaussian":
        """N(mean, diag(precision)⁻¹).

        - `mean`: μ, any pytree of floating-point arrays.
        - `precision`: τ > 0, a pytree shaped as `mean`.

        **Raises** `TypeError` for integer parameters, `ValueError` for an entry τ ≤ 0, for what is
        not finite, and where the two pytrees differ.
        """
        return cls._from_mean_precision(mean, precision, cls.structure)

    @classmethod
    def from_natural_parameters(cls, linear: PyTree, precision: PyTree) -> "DiagonalGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½θᵀdiag(τ)θ), η = `linear`, τ = `precision`."""
        return cls._from_natural_parameters(linear, precision, cls.structure)
