"""Block Gaussians: a dense precision for each leaf of θ, or for groups of leaves."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import ArrayLike, PyTree

from bayesmerge.families.gaussian import AbstractGaussian, named_by
from bayesmerge.families.precision import AbstractStructure, BlockPrecision, Blocks


@named_by(Blocks)
class BlockGaussian(AbstractGaussian):
    """N(θ | μ, diag(Λ_1, …, Λ_G)⁻¹): correlations within groups of leaves and none between them.

    Natural parameters λ = (Λμ, Λ_1, …, Λ_G) with T(θ) = (θ, −½θ_gθ_gᵀ). It costs ΣP_g³ where a full
    Gaussian costs P³. Products with other groupings share what either groups together.

    - `linear`: Λμ, a pytree shaped as θ, floating point.
    - `precision`: a `BlockPrecision`, whose `value` are the matrices Λ_g.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> mean = {"b": jnp.array([1.0]), "w": jnp.array([0.0, 2.0])}
    >>> matrices = [jnp.array([[4.0]]), jnp.array([[2.0, 1.0], [1.0, 2.0]])]
    >>> q = bm.BlockGaussian.from_mean_precision(mean, matrices)
    >>> q.variance()["w"].round(4)
    Array([0.6667, 0.6667], dtype=float32)

    ```
    """

    linear: PyTree
    precision: BlockPrecision
    structure: ClassVar[AbstractStructure] = Blocks()

    @classmethod
    def from_mean_precision(
        cls,
        mean: PyTree,
        precision: Sequence[ArrayLike] | BlockPrecision,
        structure: Blocks = Blocks(),  # noqa: B008
    ) -> "BlockGaussian":
        """N(mean, precision⁻¹).

        - `mean`: μ, any pytree of floating-point arrays.
        - `precision`: Λ_g, a symmetric positive-definite matrix for each group of leaves, in the
          order of the first leaf of each (leaves in the order of `jax.tree.leaves`); or a
          `BlockPrecision`.
        - `structure`: which leaves share a block; by default each has one.

        **Raises** `TypeError` for integer parameters, `ValueError` for matrices of other shapes,
        not symmetric, not positive definite or not finite.
        """
        return cls._from_mean_precision(mean, precision, _groups(precision, structure))

    @classmethod
    def from_natural_parameters(
        cls,
        linear: PyTree,
        precision: Sequence[ArrayLike] | BlockPrecision,
        structure: Blocks = Blocks(),  # noqa: B008
    ) -> "BlockGaussian":
        """The (possibly improper) factor exp(ηᵀθ − ½θᵀΛθ) with η = `linear`, Λ = `precision`."""
        return cls._from_natural_parameters(linear, precision, _groups(precision, structure))


def _groups(precision: Sequence[ArrayLike] | BlockPrecision, structure: Blocks) -> Blocks:
    return precision.structure if isinstance(precision, BlockPrecision) else structure
