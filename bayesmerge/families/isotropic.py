"""Isotropic Gaussians: one precision for all parameters, Λ = τI."""

from typing import ClassVar

from jaxtyping import ArrayLike, PyTree

from bayesmerge.families.gaussian import AbstractGaussian, named_by
from bayesmerge.families.precision import AbstractStructure, Isotropic, ScalarPrecision


@named_by(Isotropic)
class IsotropicGaussian(AbstractGaussian):
    """N(θ | μ, I/τ): one precision τ for all parameters.

    Natural parameters λ = (τμ, τ) with T(θ) = (θ, −½‖θ‖²). Merging with N(θ_t, I) is simple
    averaging (FP-9).

    - `linear`: τμ, a pytree shaped as θ, floating point.
    - `precision`: a `ScalarPrecision`, whose `value` is τ.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> q = bm.IsotropicGaussian.from_mean_precision({"w": jnp.array([1.0, 3.0])}, 2.0)
    >>> (q * q).mode()["w"], (q * q).precision.value
    (Array([1., 3.], dtype=float32), Array(4., dtype=float32))

    ```
    """

    linear: PyTree
    precision: ScalarPrecision
    structure: ClassVar[AbstractStructure] = Isotropic()

    @classmethod
    def from_mean_precision(
        cls, mean: PyTree, precision: ArrayLike | ScalarPrecision
    ) -> "IsotropicGaussian":
        """N(mean, I/precision).

        - `mean`: μ, any pytree of floating-point arrays.
        - `precision`: τ > 0, a scalar.

        **Raises** `TypeError` for integer parameters, `ValueError` for τ ≤ 0 or what is not finite.
        """
        return cls._from_mean_precision(mean, precision, cls.structure)

    @classmethod
    def from_natural_parameters(
        cls, linear: PyTree, precision: ArrayLike | ScalarPrecision
    ) -> "IsotropicGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½τ‖θ‖²) with η = `linear`, τ = `precision`."""
        return cls._from_natural_parameters(linear, precision, cls.structure)
