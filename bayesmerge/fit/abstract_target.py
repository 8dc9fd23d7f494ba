"""What every method of fitting asks of a loss: that it is a sum over batches of examples."""

import abc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

SHOWN = 6
"""Shapes listed in a message."""

Loss = Callable[[PyTree, PyTree], Float[Array, " N"]]
Statistic = Callable[[Loss, PyTree, PyTree, Int[ArrayLike, ""]], PyTree]


class AbstractTarget(eqx.Module):
    """A loss ℓ(θ) that is a sum over batches of examples, and so is all that is computed of it."""

    has_own_curvature: ClassVar[bool] = False
    """Whether its Hessian is its curvature, of whatever kind that of others is."""

    @property
    @abc.abstractmethod
    def start(self) -> PyTree | None:
        """θ from which to look for the mode where no other is given, or `None`."""

    @abc.abstractmethod
    def accumulate(
        self, statistic: Statistic, params: PyTree, chunk_size: int | None = None
    ) -> PyTree:
        """Σ over batches of `statistic(loss, params, batch, index of its first example)`, at most
        `chunk_size` examples each where the data are arrays."""

    @abc.abstractmethod
    def first_batch(self) -> tuple[Loss, PyTree]:
        """A loss and a batch of examples for it, to learn shapes from."""

    @abc.abstractmethod
    def check(self, params: PyTree) -> None:
        """Nothing, or an error if the loss does not return one value per example."""

    @property
    @abc.abstractmethod
    def num_examples(self) -> int:
        """N; reads a stream to its end to count."""

    @abc.abstractmethod
    def num_batches(self, size: int) -> int:
        """How many minibatches of `size` examples there are."""

    @abc.abstractmethod
    def order(self, key: PRNGKeyArray) -> PyTree:
        """A random order of the examples, for `minibatch`."""

    @abc.abstractmethod
    def minibatch(self, order: PyTree, index: Int[ArrayLike, ""], size: int) -> "AbstractTarget":
        """An unbiased estimate of ℓ from `size` examples, number `index` of an `order`."""

    @abc.abstractmethod
    def stream(self) -> Iterator["AbstractTarget"]:
        """Without end, unbiased estimates of ℓ from one minibatch of the stream each."""

    @property
    @abc.abstractmethod
    def is_streamed(self) -> bool:
        """Whether data are read from an iterable, so that no compiled program holds them all."""

    @property
    @abc.abstractmethod
    def has_model(self) -> bool:
        """Whether the model's outputs are known, so that GGN and Fisher exist."""

    def coordinates(self, theta: PyTree) -> dict[str, tuple[str, Any]]:
        """What entries of θ are in the units of a model, where one is known."""
        return {}

    def parts(self) -> list[tuple[Any, "AbstractTarget"]]:
        """Weights and targets whose weighted sum this is."""
        return [(1.0, self)]

    def total(self, params: PyTree) -> Float[Array, ""]:
        """ℓ(θ) = Σ_i ℓ_i(θ)."""
        return self.accumulate(_summed_loss, params)

    def value_and_gradient(self, params: PyTree) -> tuple[Float[Array, ""], PyTree]:
        """ℓ(θ) and ∇ℓ(θ)."""
        return self.accumulate(_value_and_gradient, params)


def shape_of(function: Callable[..., Any], name: str, params: PyTree, batch: PyTree) -> Any:
    """The shape of `function(params, batch)`, or an error with the shapes of both where it has
    none."""
    try:
        return jax.eval_shape(function, params, batch)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, jax.errors.JAXTypeError):
            raise
        raise ValueError(
            f"the {name} cannot be computed of params with {_shapes(params)} and a batch of data "
            f"with {_shapes(batch)}: {error} If params are not shaped as it expects, pass others."
        ) from error


def _shapes(tree: PyTree) -> str:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    shapes = [f"{jax.tree_util.keystr(path)} {jnp.shape(x)}".strip() for path, x in pairs[:SHOWN]]
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return f"shape{'s' if len(pairs) > 1 else ''} {', '.join(shapes)}{more}"


def _summed_loss(
    loss: Loss, params: PyTree, batch: PyTree, index: Int[ArrayLike, ""]
) -> Float[Array, ""]:
    return jnp.sum(loss(params, batch))


def _value_and_gradient(
    loss: Loss, params: PyTree, batch: PyTree, index: Int[ArrayLike, ""]
) -> tuple[Float[Array, ""], PyTree]:
    return jax.value_and_grad(lambda theta: jnp.sum(loss(theta, batch)))(params)
