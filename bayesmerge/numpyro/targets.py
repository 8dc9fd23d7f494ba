"""Likelihoods and priors of NumPyro's models."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import is_concrete
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.fit.abstract_target import AbstractTarget, Loss, Statistic
from bayesmerge.numpyro.coordinates import coordinates
from bayesmerge.numpyro.model import Model
from bayesmerge.priors import ExactPrior, as_prior
from bayesmerge.tasks import named


def target(model: Any, *args: Any, **kwargs: Any) -> "ModelTarget":
    r"""The likelihood of a NumPyro model as a loss, $\ell(\theta) = -\log p(y \mid \theta)$, in
    unconstrained coordinates θ.

    - `model`: with continuous latent sites, and data observed by `obs=`; or a
      `bayesmerge.numpyro.Model`. `numpyro.factor` is part of the likelihood, unless it is marked
      as the prior's (see `bayesmerge.numpyro.Model`). Plates that subsample are read whole.
    - `args`, `kwargs`: the model's, anything that NumPyro takes, such as a dictionary of arrays,
      lists and integers, or a data frame. Arrays are arguments of compiled programs: a second
      target of the same model and shapes costs no compilation. All else is constant, as are arrays
      at whose values the model looks (see `bayesmerge.numpyro.Model`).

    Shards share latent sites by name: sites of a shard's own groups must have a place for every
    group in all shards (a plate over all groups, indexed by the data's).

    **Returns** a target. Its `model` converts: draws by site, guides, NumPyro's distributions,
    ArviZ. The prior is `bayesmerge.numpyro.prior`.

    **Warns** once for every model that has data among its constants, where a shard with other
    values costs a compilation.

    **Raises** `ValueError` for discrete latent sites, improper priors, `numpyro.param`, randomness
    outside of sample sites, or no observations; it names the site. So it does where data do not fit
    the model, and where NaN among them make its density NaN, with their names.

    ```python
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, bayesmerge as bm
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> shards = [bm.numpyro.target(model, jnp.array(y)) for y in ([1.0, 2.0], [3.0, 6.0])]
    >>> prior = bm.numpyro.prior(shards)
    >>> posteriors = [bm.laplace(shard, prior) for shard in shards]
    >>> merged = bm.merge(posteriors, [1.0, 1.0], prior)
    >>> f"{merged.mode()['mean']:.3f}"  # 12 / 5
    '2.400'

    ```
    """
    return ModelTarget(_bound(model, args, kwargs))


def prior(model: Any, *args: Any, **kwargs: Any) -> AbstractGaussian | ExactPrior:
    r"""The prior of a NumPyro model, $p_0(\theta)$ in unconstrained coordinates, Jacobians
    included.

    - `model`, `args`, `kwargs`: as of `bayesmerge.numpyro.target`; or what that returned, a target,
      or all targets of one model as a sequence or a mapping, whose prior must be the same.

    **Returns** a Gaussian where p_0 is one in these coordinates, and an `ExactPrior` otherwise:
    fits and `merge` take either.

    **Raises** `ValueError` for targets whose priors differ, with their names: a prior that depends
    on a shard's data is not one that shards share; and as `bayesmerge.numpyro.target`.

    ```python
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, bayesmerge as bm
    >>> def model(y):
    ...     scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, scale), obs=y)
    >>> bm.numpyro.prior(model, jnp.array([1.0, 2.0]))
    ExactPrior over {"scale": ()}

    ```
    """
    if isinstance(model, ModelTarget):
        return _prior_of(model.model, model.start)
    if callable(model) or isinstance(model, (Model, str)):
        bound = _bound(model, args, kwargs)
        return _prior_of(bound, bound.start())
    names, targets = named(model, "targets")
    for name, member in zip(names, targets, strict=True):
        if not isinstance(member, ModelTarget):
            raise TypeError(
                f"the target of '{name}' is a {type(member).__name__}, and it must be one that "
                "`bayesmerge.numpyro.target` made."
            )
    found = [_prior_of(member.model, member.start) for member in targets]
    for name, member, other in zip(names[1:], targets[1:], found[1:], strict=True):
        if not _is_same(found[0], other, [targets[0].start, member.start]):
            raise ValueError(
                f"the targets '{names[0]}' and '{name}' have different priors, and one is shared "
                "when posteriors are multiplied. Give them the same, which must not depend on a "
                "shard's data."
            )
    return found[0]


def _bound(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Model:
    if not isinstance(model, Model):
        return Model(model, *args, **kwargs)
    if args or kwargs:
        raise TypeError("model is a `Model`, which holds its arguments: pass no others.")
    return model


def _prior_of(model: Model, start: PyTree) -> AbstractGaussian | ExactPrior:
    found = model.gaussian_prior()
    return ExactPrior(jax.tree_util.Partial(_energy, model), start) if found is None else found


def _energy(model: Model, theta: PyTree) -> Float[Array, ""]:
    return -model.log_prior(theta)


def _is_same(one: Any, other: Any, points: list[PyTree]) -> bool:
    """Whether two priors are equal up to a constant, as far as θ at some points tell."""
    if type(one) is not type(other) or not is_concrete((one, other)):
        return type(one) is type(other)
    if isinstance(one, AbstractGaussian):
        pairs = zip(*map(jax.tree.leaves, one.aligned_with(other)), strict=True)
        return all(np.allclose(x, y, rtol=1e-5, atol=1e-7) for x, y in pairs)
    return all(np.allclose(_at(one, x), _at(other, x), rtol=1e-5, atol=1e-5) for x in points)


@eqx.filter_jit
def _at(prior: Any, theta: PyTree) -> Float[Array, ""]:
    return as_prior(prior).energy(theta)


class ModelLoss(eqx.Module):
    """−log p(y_i | θ) of the observations with the numbers `batch`."""

    model: Model

    def __call__(self, params: PyTree, batch: Int[Array, " N"]) -> Float[Array, " N"]:
        log_p = self.model.weighted_log_likelihoods(params)
        return -jnp.concatenate([jnp.ravel(x) for x in log_p.values()])[batch]


class ModelTarget(AbstractTarget):
    r"""$\ell(\theta) = -\log p(y \mid \theta)$ of a NumPyro model, made by
    `bayesmerge.numpyro.target`.

    - `model`: a `bayesmerge.numpyro.Model`; its methods turn θ and posteriors into draws by site,
      NumPyro's distributions and ArviZ data.
    """

    model: Model
    start_: Any

    def __init__(self, model: Model):
        self.model = model
        self.start_ = model.start()
        model.check(self.start_)

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
        """N, the number of log-probabilities of observed sites."""
        return sum(math.prod(shape) for shape in self.model.sites.observed.values())

    def accumulate(
        self, statistic: Statistic, params: PyTree, chunk_size: int | None = None
    ) -> PyTree:
        loss, batch = self.first_batch()
        return statistic(loss, params, batch, jnp.asarray(0))

    def first_batch(self) -> tuple[Loss, PyTree]:
        count = self.num_examples
        if self.model.rows:
            shapes = jax.eval_shape(self.model.weighted_log_likelihoods, self.start_)
            count = sum(x.size for x in shapes.values())
        return ModelLoss(self.model), jnp.arange(count)

    def check(self, params: PyTree) -> None:
        self.model.layout.require_same(Layout.of(params), "the model and params")

    def coordinates(self, theta: PyTree) -> dict[str, tuple[str, Any]]:
        return coordinates(self.model, theta)

    def num_batches(self, size: int) -> int:
        return max(1, self._plate()[1] // size)

    def order(self, key: PRNGKeyArray) -> PyTree:
        return jax.random.permutation(key, self._plate()[1])

    def minibatch(self, order: PyTree, index: Int[ArrayLike, ""], size: int) -> AbstractTarget:
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
