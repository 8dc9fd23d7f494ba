"""The likelihood, or the prior, of a NumPyro model as a loss."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.layout import Layout
from bayesmerge.fit.abstract_target import AbstractTarget, Loss, Statistic

Part = Literal["likelihood", "prior"]


class ModelLoss(eqx.Module):
    """−log p(y_i | θ) of the observations with the numbers `batch`, or −log p_0(θ)."""

    model: Any
    part: Part = eqx.field(static=True)

    def __call__(self, params: PyTree, batch: Int[Array, " N"]) -> Float[Array, " N"]:
        if self.part == "prior":
            return -self.model.log_prior(params)[None][batch]
        log_p = self.model.weighted_log_likelihoods(params)
        return -jnp.concatenate([jnp.ravel(x) for x in log_p.values()])[batch]


class ModelTarget(AbstractTarget):
    r"""$\ell(\theta) = -\log p(y \mid \theta)$ of a NumPyro model, made by `Target.from_numpyro`.

    - `model`: a `bayesmerge.numpyro.Model`; its methods turn θ and posteriors into draws by site,
      NumPyro's distributions and ArviZ data.
    - `part`: `"likelihood"`, or `"prior"` for R_0(θ) = −log p_0(θ).
    - `prior`: p_0, a Gaussian, or the target of its part.
    """

    model: Any
    part: Part = eqx.field(static=True)
    prior: Any
    start_: Any

    def __init__(self, model: Any, part: Part = "likelihood"):
        self.model = model
        self.part = part
        self.start_ = model.start()
        if part == "likelihood":
            model.check(self.start_)
        self.prior = None
        if part == "likelihood":
            gaussian = model.gaussian_prior()
            self.prior = ModelTarget(model, "prior") if gaussian is None else gaussian

    @property
    def start(self) -> PyTree:
        """That of the model."""
        return self.start_

    @property
    def is_streamed(self) -> bool:
        """False: data are arrays."""
        return False

    @property
    def has_model(self) -> bool:
        """False: sites of many likelihoods have no one output."""
        return False

    @property
    def num_examples(self) -> int:
        """N, the number of log-probabilities of observed sites; 0 for a prior."""
        return 0 if self.part == "prior" else self._count

    @property
    def _count(self) -> int:
        if self.part == "prior":
            return 1
        return sum(math.prod(shape) for shape in self.model.sites.observed.values())

    def accumulate(
        self, statistic: Statistic, params: PyTree, chunk_size: int | None = None
    ) -> PyTree:
        loss, batch = self.first_batch()
        return statistic(loss, params, batch, jnp.asarray(0))

    def first_batch(self) -> tuple[Loss, PyTree]:
        count = self._count
        if self.model.rows:
            shapes = jax.eval_shape(self.model.weighted_log_likelihoods, self.start_)
            count = sum(x.size for x in shapes.values())
        return ModelLoss(self.model, self.part), jnp.arange(count)

    def check(self, params: PyTree) -> None:
        self.model.layout.require_same(Layout.of(params), "the model and params")

    def num_batches(self, size: int) -> int:
        return 1 if self.part == "prior" else max(1, self._plate()[1] // size)

    def order(self, key: PRNGKeyArray) -> PyTree:
        if self.part == "prior":
            return None
        return jax.random.permutation(key, self._plate()[1])

    def minibatch(self, order: PyTree, index: Int[ArrayLike, ""], size: int) -> AbstractTarget:
        if self.part == "prior":
            return self
        name, count = self._plate()
        if size >= count:
            return self
        first = size * (jnp.asarray(index) % self.num_batches(size))
        rows = jax.lax.dynamic_slice(order, (first,), (size,))
        return eqx.tree_at(lambda t: t.model.rows, self, {name: rows})

    def stream(self) -> Iterator[AbstractTarget]:
        yield from itertools.repeat(self)

    def _plate(self) -> tuple[str, int]:
        plate = self.model.sites.minibatched
        if plate is None:
            raise ValueError(
                "minibatches of a NumPyro model are rows of a plate that subsamples, the only one, "
                "without latent sites in it, and this model has none: leave out `batch_size`, or "
                "declare `with numpyro.plate('rows', N, subsample_size=B) as rows:` and index the "
                "data by it."
            )
        return plate
