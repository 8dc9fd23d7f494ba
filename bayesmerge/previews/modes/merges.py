"""What every way of finding modes is asked: the merges of all weightings, none computed yet."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from bayesmerge.merging import combined
from bayesmerge.mixtures.product import Product
from bayesmerge.previews.modes.precisions import is_dense
from bayesmerge.priors import as_prior

LARGE = 1e12
"""Operations in factorisations for each weighting from which another way can be faster."""


@dataclasses.dataclass(frozen=True, eq=False)
class Merges:
    """p_0^γ Π_t q_t^{α_t} at A weightings α.

    - `posteriors`: q_t by the names of T tasks.
    - `weights`: α, shape (A, T).
    - `prior`: p_0, an exponential family or an `ExactPrior`, or `None`.
    - `refined`: whether modes are refined: then a `Start` needs Λ^{-½} of its own merge, or of one
      nearby.
    - `drawn`: whether merges are drawn from: then it needs Λ^{-½} of its own merge.
    """

    posteriors: dict[str, Any]
    weights: Float[Array, "A T"]
    prior: Any = None
    refined: bool = False
    drawn: bool = False

    def __len__(self) -> int:
        return len(self.weights)

    @functools.cached_property
    def shape(self) -> Any:
        """One merged posterior, with shapes in the place of arrays."""
        qs = [*self.posteriors.values()]
        return jax.eval_shape(lambda a: combined(qs, a, self.prior), self.weights[0])

    @functools.cached_property
    def closed_form(self) -> Any:
        """The shape of the posterior in closed form that stands for a merge: the merge itself, the
        Gaussian near an exact prior, or the Gaussian that touches a product of mixtures."""
        return jax.eval_shape(lambda q: q.blend(), self.shape)

    @property
    def is_mixture(self) -> bool:
        """Whether merges are products of mixtures, without modes in closed form."""
        return isinstance(self.shape, Product)

    @property
    def is_dense(self) -> bool:
        """Whether merges are Gaussians of which the precision is one matrix."""
        return is_dense(self.shape)

    @property
    def is_large(self) -> bool:
        """Whether Cholesky factorisations of a P×P matrix for each weighting take so long that
        another way can be faster."""
        return len(self) * self.shape.layout.size**3 / 3 >= LARGE

    @functools.cached_property
    def factors(self) -> list[Any]:
        """K posteriors, p_0 the first where there is one."""
        qs = [*self.posteriors.values()]
        return qs if self.prior is None else [self.prior, *qs]

    @functools.cached_property
    def exponents(self) -> Float[np.ndarray, "A K"]:
        """Those of the factors, (γ, α): precisions and linear terms are affine in them."""
        alpha = np.asarray(self.weights, float)
        if self.prior is None:
            return alpha
        gamma = 1 - alpha.sum(axis=1)
        gamma[np.abs(gamma) < 1e-6] = 0
        return np.column_stack([gamma, alpha])

    def require_gaussians(self) -> None:
        """An error where Λ^{-½} is needed of posteriors that have no Λ."""
        if (self.refined or self.drawn) and not hasattr(self.closed_form, "colouring"):
            raise TypeError(
                f"the merged posterior is a {type(self.shape).__name__}, and refinement and "
                "spreads are for Gaussians and their mixtures: leave out `refine` and `spread`."
            )

    def require_modes(self) -> None:
        """The error of `merge(…).mode()` at the first weighting that has one. Weightings with
        α ≥ 0 and γ ≥ 0 of posteriors that have modes need not be merged to know theirs."""
        alpha = np.asarray(self.weights)
        has_one = (alpha >= 0).all(axis=1) & (alpha > 0).any(axis=1)
        factors = [*self.posteriors.values()]
        held = as_prior(self.prior)
        if held.is_closed and not held.is_flat:
            factors.append(held.given)
            has_one &= 1 - alpha.sum(axis=1) >= -1e-6
        for row in np.flatnonzero(~(has_one & all(map(_has_mode, factors)))):
            combined(self.posteriors, self.weights[row], self.prior).mode()


def _has_mode(posterior: Any) -> bool:
    try:
        posterior.mode()
    except ValueError:
        return False
    return True
