"""Likelihoods p(y | f) of a label y given a model's output f, as losses −log p(y | f).

All four are in canonical form (f is the natural parameter of y), so the Hessian in f does not
depend on y and equals the Fisher information: E_{y~p}[∇ℓ∇ℓᵀ] = ∇²ℓ = RRᵀ.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, softplus
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bayesmerge.families.checks import is_concrete
from bayesmerge.fit.abstract_target import shape_of
from bayesmerge.linear_algebra import eigh


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The loss of one example, the square root of its Hessian, and a sampler.

    - `loss(f, y)`: −log p(y | f) up to a constant, a scalar, for one output f and one label y.
    - `root(f, y)`: R of shape (C, S) with RRᵀ = ∂²ℓ/∂f², C the size of f.
    - `sample(key, f)`: a label y ~ p(· | f), or `None` where that is not known.
    - `canonical`: whether f is the natural parameter of y, so that the Fisher information is RRᵀ.
    - `labels`: what labels may be, and whether given ones are, for C outputs.
    - `is_numeric`: whether labels are numbers, which may be rounded to floats, and one for each
      output.
    """

    name: str
    loss: Callable[[Array, Array], Float[Array, ""]]
    root: Callable[[Array, Array], Float[Array, "C S"]]
    sample: Callable[[PRNGKeyArray, Array], Array] | None = None
    canonical: bool = False
    labels: tuple[str, Callable[[Any, int], bool]] = ("anything", lambda labels, C: True)
    is_numeric: bool = False

    def check_labels(self, labels: Any, outputs: tuple[int, ...]) -> None:
        """Nothing, or an error where labels are not what this likelihood takes, for `outputs` of
        that shape."""
        allowed, holds = self.labels
        count = math.prod(outputs[1:])
        if self.is_numeric and _without_ones(labels.shape[1:]) != _without_ones(outputs[1:]):
            raise ValueError(
                f"labels of a {self.name} likelihood must be {allowed}, and they have shape "
                f"{labels.shape}, where outputs have shape {outputs}: give labels the shape of "
                "outputs."
            )
        if is_concrete(labels) and not holds(np.asarray(labels), count):
            raise ValueError(
                f"labels of a {self.name} likelihood must be {allowed}, and they have dtype "
                f"{labels.dtype}, shape {labels.shape} and values from {labels.min()} to "
                f"{labels.max()}, for {count} outputs an example{_label_remedy(labels, self.name)}."
            )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _label_remedy(labels: Any, likelihood: str) -> str:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return ": drop the last axis, `labels[:, 0]`"
    if labels.ndim == 2 and set(np.unique(labels).tolist()) <= {0, 1}:
        return ": of one-hot rows take `labels.argmax(1)`"
    if set(np.unique(labels).tolist()) == {-1, 1}:
        return ": make them 0 and 1 by `(labels > 0).astype(int)`"
    if labels.dtype.kind in "fb" and np.array_equal(labels, np.round(labels)):
        return ": cast them by `.astype(int)`"
    if labels.dtype.kind in "iu" and likelihood != "poisson":
        return ": encode classes as 0, 1, …, e.g. by `np.unique(labels, return_inverse=True)`"
    return ""


def _categorical_loss(logits: Array, label: Array) -> Float[Array, ""]:
    log_p = log_softmax(logits)
    return -log_p.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def _like(label: Array, output: Array) -> Array:
    """A label in shape and dtype of the output that it belongs to."""
    return jnp.reshape(label, output.shape).astype(output.dtype)


def _bernoulli_loss(logit: Array, label: Array) -> Float[Array, ""]:
    return jnp.sum(softplus(logit) - _like(label, logit) * logit)


def _gaussian_loss(mean: Array, label: Array) -> Float[Array, ""]:
    return 0.5 * jnp.sum((mean - _like(label, mean)) ** 2)


def _poisson_loss(log_rate: Array, count: Array) -> Float[Array, ""]:
    return jnp.sum(jnp.exp(log_rate) - _like(count, log_rate) * log_rate)


def _categorical_root(logits: Array, label: Array) -> Float[Array, "C C"]:
    """diag(√p) − p√pᵀ, whose square is diag(p) − ppᵀ."""
    p = jax.nn.softmax(logits)
    return jnp.diag(jnp.sqrt(p)) - jnp.outer(p, jnp.sqrt(p))


def _bernoulli_root(logit: Array, label: Array) -> Float[Array, "C C"]:
    """√(p(1 − p)), 1 − p that of the other class: p itself is 1 in float32 beyond logits of 17."""
    logits = jnp.atleast_1d(logit).ravel()
    return jnp.diag(jnp.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits)))


def _gaussian_root(mean: Array, label: Array) -> Float[Array, "C C"]:
    return jnp.eye(mean.size, dtype=mean.dtype)


def _poisson_root(log_rate: Array, label: Array) -> Float[Array, "C C"]:
    return jnp.diag(jnp.exp(0.5 * jnp.atleast_1d(log_rate).ravel()))


def _bernoulli_sample(key: PRNGKeyArray, logit: Array) -> Array:
    return jax.random.bernoulli(key, jax.nn.sigmoid(logit))


def _gaussian_sample(key: PRNGKeyArray, mean: Array) -> Array:
    return mean + jax.random.normal(key, mean.shape, mean.dtype)


def _poisson_sample(key: PRNGKeyArray, log_rate: Array) -> Array:
    return jax.random.poisson(key, jnp.exp(log_rate))


def _is_class(labels: Any, num_outputs: int) -> bool:
    is_index = labels.ndim == 1 and labels.dtype.kind in "iu"
    return bool(is_index and labels.min() >= 0 and labels.max() < num_outputs)


def _is_one_each(labels: Any, num_outputs: int) -> bool:
    return math.prod(labels.shape[1:]) == num_outputs


def _is_binary(labels: Any, num_outputs: int) -> bool:
    return _is_one_each(labels, num_outputs) and bool(np.isin(labels, (0, 1)).all())


def _is_count(labels: Any, num_outputs: int) -> bool:
    return _is_one_each(labels, num_outputs) and bool((labels >= 0).all())


categorical = Likelihood(
    "categorical",
    _categorical_loss,
    _categorical_root,
    jax.random.categorical,
    canonical=True,
    labels=("integers of shape (N,) from 0 to one less than the outputs", _is_class),
)
"""Softmax: f are K logits, y a class index 0 … K−1."""

bernoulli = Likelihood(
    "bernoulli",
    _bernoulli_loss,
    _bernoulli_root,
    _bernoulli_sample,
    canonical=True,
    labels=("0 or 1, one for each output", _is_binary),
    is_numeric=True,
)
"""Logistic: f is a logit, y is 0 or 1."""

gaussian = Likelihood(
    "gaussian",
    _gaussian_loss,
    _gaussian_root,
    _gaussian_sample,
    canonical=True,
    labels=("numbers, one for each output", _is_one_each),
    is_numeric=True,
)
"""Least squares: f is the mean of y, of unit noise variance (scale f and y by 1/σ for another)."""

poisson = Likelihood(
    "poisson",
    _poisson_loss,
    _poisson_root,
    _poisson_sample,
    canonical=True,
    labels=("counts ≥ 0, one for each output", _is_count),
    is_numeric=True,
)
"""Counts: f is the log of the rate of y."""

LIKELIHOODS = {q.name: q for q in (categorical, bernoulli, gaussian, poisson)}


def as_likelihood(likelihood: Any) -> Likelihood:
    """A `Likelihood` from its name, from itself, or from a loss(f, y) of one example."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str) and likelihood in LIKELIHOODS:
        return LIKELIHOODS[likelihood]
    if callable(likelihood):
        name = getattr(likelihood, "__name__", "loss")
        return Likelihood(name, likelihood, functools.partial(_convex_root, likelihood))
    raise ValueError(
        f"likelihood is {likelihood!r}, and it must be one of {tuple(LIKELIHOODS)}, a "
        "`Likelihood`, or a function loss(output, label) of one example."
    )


def _convex_root(
    loss: Callable[[Array, Array], Array], output: Array, label: Array
) -> Float[Array, "C C"]:
    """A square root of the Hessian in f of any loss, its negative eigenvalues taken as zero."""
    hessian = jax.hessian(lambda f: loss(f.reshape(output.shape), label))(output.ravel())
    eigenvalues, vectors = eigh(hessian)
    return vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[None, :]


@dataclasses.dataclass(frozen=True)
class SupervisedLoss:
    """ℓ_i(θ) = −log p(y_i | f(θ, x_i)) for a batch (x, y): a model, then a likelihood."""

    model: Callable[[PyTree, PyTree], Array]
    likelihood: Likelihood

    def __call__(self, params: PyTree, batch: tuple[PyTree, Array]) -> Float[Array, " N"]:
        inputs, labels = batch
        return jax.vmap(self.likelihood.loss)(self.model(params, inputs), labels)

    def check(self, params: PyTree, batch: PyTree) -> None:
        """Nothing, or an error where `batch` is not (inputs, labels) that suit the likelihood."""
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise TypeError(
                f"the data of a supervised target must be a tuple (inputs, labels), and a batch is "
                f"a {type(batch).__name__}."
            )
        inputs, labels = batch
        outputs = shape_of(self.model, "model", params, inputs)
        count = jax.tree.leaves(labels)[0].shape[0]
        if outputs.shape[:1] != (count,):
            raise ValueError(
                f"the model returned shape {outputs.shape} for {count} examples, and it must "
                "return one output per example, along its first axis."
            )
        self.likelihood.check_labels(labels, outputs.shape)
