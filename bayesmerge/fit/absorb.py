"""A likelihood and a prior as what optimisers see: a loss, and a Gaussian or nothing."""

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.fit.abstract_target import AbstractTarget, Loss, Statistic
from bayesmerge.fit.target import JointTarget
from bayesmerge.priors import AbstractPrior


def absorb(
    target: AbstractTarget, prior: AbstractPrior
) -> tuple[AbstractTarget, AbstractGaussian | None]:
    """ℓ and p_0, or where p_0 is no Gaussian ℓ + R_0 and a flat prior: the same posterior."""
    if prior.is_closed:
        return target, prior.gaussian
    return JointTarget([target, PriorTarget(prior)], [1.0, 1.0]), None


class PriorTarget(AbstractTarget):
    """R_0(θ) as a loss with one example, whose curvature is its own Hessian.

    - `prior`: p_0.
    """

    has_own_curvature: ClassVar[bool] = True
    prior: AbstractPrior

    @property
    def start(self) -> PyTree | None:
        """That of the prior."""
        return self.prior.start

    def accumulate(
        self, statistic: Statistic, params: PyTree, chunk_size: int | None = None
    ) -> PyTree:
        loss, batch = self.first_batch()
        return statistic(loss, params, batch, jnp.asarray(0))

    def first_batch(self) -> tuple[Loss, PyTree]:
        return jax.tree_util.Partial(_energies, self.prior), jnp.zeros(1)

    def check(self, params: PyTree) -> None:
        self.prior.require_layout(Layout.of(params), "params")

    @property
    def num_examples(self) -> int:
        """0: a prior is no data."""
        return 0

    def num_batches(self, size: int) -> int:
        return 1

    def order(self, key: PRNGKeyArray) -> None:
        return None

    def minibatch(self, order: PyTree, index: Int[ArrayLike, ""], size: int) -> "PriorTarget":
        return self

    def stream(self) -> Iterator[AbstractTarget]:
        yield from itertools.repeat(self)

    @property
    def is_streamed(self) -> bool:
        """False."""
        return False

    @property
    def has_model(self) -> bool:
        """True, so that it does not rule out any kind of curvature of the data."""
        return True


def _energies(prior: Any, params: PyTree, batch: Float[Array, " N"]) -> Float[Array, " N"]:
    return jnp.broadcast_to(prior.energy(params), batch.shape)
