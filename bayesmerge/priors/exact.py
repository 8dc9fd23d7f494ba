"""Priors that are no member of an exponential family, such as a half-Cauchy of a scale."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.checks import is_concrete, require_finite
from bayesmerge.families.gaussian import AbstractGaussian, gaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.precision import AbstractStructure
from bayesmerge.families.precision.hessian import Hessian
from bayesmerge.families.show import over, safely
from bayesmerge.priors.abstract import AbstractPrior


class ExactPrior(AbstractPrior):
    r"""$p_0(\theta) \propto e^{-R_0(\theta)}$ for any R_0, which merging keeps as it is: once, and
    never to a power.

    - `energy`: R_0, a JAX function of θ, smooth; its own Hessian is its curvature, whatever stands
      for that of the likelihood.
    - `start`: θ to look for modes from, a pytree of floating-point arrays.

    `bayesmerge.numpyro.prior` makes those of NumPyro's models.

    **Raises** `ValueError` for a start, or an energy there, that is not finite, and for an energy
    that is no scalar.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> cauchy = bm.ExactPrior(lambda theta: jnp.log1p(theta**2), jnp.array(0.5))
    >>> target = bm.Target(lambda theta, y: 0.5 * (y - theta) ** 2, jnp.array([3.0, 5.0]))
    >>> f"{bm.find_mode(target, cauchy).params:.3f}"  # argmin (4 − θ)² + log(1 + θ²)
    '3.751'

    ```
    """

    __repr__ = safely(lambda prior: f"ExactPrior {over(prior.layout)}")

    is_closed: ClassVar[bool] = False
    function: Callable[[PyTree], Float[Array, ""]]
    at: PyTree

    def __init__(self, energy: Callable[[PyTree], Float[Array, ""]], start: PyTree):
        is_bare = jax.tree_util.all_leaves([energy])
        self.function = jax.tree_util.Partial(energy) if is_bare else energy
        self.at = require_finite(as_arrays(start, "start")[0], "start")
        found = jax.eval_shape(energy, self.at)
        if getattr(found, "shape", None) != ():
            raise ValueError(
                f"energy returned {found}, and it must be a scalar, −log p_0(θ): sum over entries."
            )
        if is_bare and is_concrete(self.at):
            require_finite(energy(self.at), "energy at start")

    def energy(self, theta: PyTree) -> Float[Array, ""]:
        """R_0(θ)."""
        return self.function(theta)

    def site(self, theta: PyTree, structure: AbstractStructure) -> AbstractGaussian:
        """Its expansion at θ."""
        H = structure.over(self.layout).of_matrix(Hessian(self.energy, theta), self.layout)
        linear = jax.tree.map(jnp.subtract, H.multiply(theta), self.gradient(theta))
        return gaussian(linear, H)

    @property
    def layout(self) -> Layout:
        """The layout of θ."""
        return Layout.of(self.at)

    @property
    def start(self) -> PyTree:
        """θ to look for modes from."""
        return self.at

    @property
    def given(self) -> "ExactPrior":
        """Itself."""
        return self

    @property
    def gaussian(self) -> None:
        """`None`: it is no Gaussian."""
        return None

    @property
    def is_flat(self) -> bool:
        """False."""
        return False

    def require_layout(self, layout: Layout, what: str) -> None:
        self.layout.require_same(layout, f"prior and {what}")

    def __mul__(self, other: Any) -> Any:
        raise TypeError(
            "an exact prior is no member of an exponential family, and `*` multiplies these: pass "
            "it to `merge` as `prior`."
        )
