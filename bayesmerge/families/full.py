"""Full Gaussians: any positive-definite precision Λ over the flattened parameters."""

from typing import ClassVar

from jaxtyping import ArrayLike, PyTree

from bayesmerge.families.gaussian import AbstractGaussian, named_by
from bayesmerge.families.precision import AbstractStructure, DensePrecision, Full


@named_by(Full)
class FullGaussian(AbstractGaussian):
    """N(θ | μ, Λ⁻¹) with any positive-definite precision Λ over the flattened parameters.

    Natural parameters λ = (Λμ, Λ) with T(θ) = (θ, −½θθᵀ). Rows and columns of Λ follow
    `layout.ravel(theta)`. The mode is computed by one Cholesky factorisation, never an inverse; its
    relative error is about κ(Λ)·ε, κ the condition number after scaling Λ to a unit diagonal.

    - `linear`: Λμ, a pytree shaped as θ, floating point.
    - `precision`: a `DensePrecision`, whose `value` is Λ, shape (P, P).

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> Lambda = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> q = bm.FullGaussian.from_mean_precision({"a": jnp.array(1.0), "b": jnp.array(0.0)}, Lambda)
    >>> q.linear["a"], q.linear["b"]
    (Array(2., dtype=float32), Array(1., dtype=float32))

    ```
    """

    linear: PyTree
    precision: DensePrecision
    structure: ClassVar[AbstractStructure] = Full()

    @classmethod
    def from_mean_precision(
        cls, mean: PyTree, precision: ArrayLike | DensePrecision
    ) -> "FullGaussian":
        """N(mean, precision⁻¹).

        - `mean`: μ, any pytree of floating-point arrays with P entries.
        - `precision`: Λ, shape (P, P), symmetric and positive definite.

        **Raises** `TypeError` for integer parameters, `ValueError` for a matrix of another shape,
        not symmetric, not positive definite or not finite.
        """
        return cls._from_mean_precision(mean, precision, cls.structure)

    @classmethod
    def from_natural_parameters(
        cls, linear: PyTree, precision: ArrayLike | DensePrecision
    ) -> "FullGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½θᵀΛθ) with η = `linear`, Λ = `precision`."""
        return cls._from_natural_parameters(linear, precision, cls.structure)
