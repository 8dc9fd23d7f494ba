"""What is fitted: ℓ(θ) = Σ_i ℓ_i(θ), a loss summed over examples, and its data."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.arrays import as_rows, is_array, row_count
from bayesmerge.families.checks import is_concrete, require_finite
from bayesmerge.families.show import number, safely
from bayesmerge.fit.abstract_target import AbstractTarget, Loss, Statistic, shape_of
from bayesmerge.fit.likelihood import Likelihood, SupervisedLoss, as_likelihood
from bayesmerge.tasks import as_weights, named

MEAN_REMEDY = (
    "a mean or a sum over the batch hides the number of examples, a factor in every Hessian, so "
    "remove the `.mean()` or `.sum()`, and any factor 1/N"
)


class Target(AbstractTarget):
    r"""A loss summed over examples, $\ell(\theta) = \sum_i \ell_i(\theta)$, with its data.

    - `loss(params, batch)`: ℓ_i(θ) for every example of a batch, shape (N,), never their mean or
      sum; a pure JAX function in which examples do not interact.
    - `data`: all examples as arrays (an array, tuple or dict; first axis N), or an iterable of such
      minibatches (a list of tuples, a data loader, a function that returns a new generator), which
      is read batch by batch and never held at once. Arrays are JAX's, NumPy's, torch's, or columns
      and data frames of pandas, polars, pyarrow and xarray. A target with arrays is a pytree: its
      data are arguments of compiled programs, and `equinox.filter_vmap` maps over targets stacked
      along a leading axis.

    It is the likelihood alone: a prior is given beside it to what fits.

    For generalised Gauss-Newton and Fisher curvature the model's output is needed as well: build
    the target with `Target.supervised`.

    **Warns** where float32 rounds a column coarsely against its spread (times in seconds, years in
    days), and says which.

    **Raises** `ValueError` for an empty dataset, first axes that differ, data that are missing or
    not finite, rows labelled in different orders, and integers that do not fit into 32 bits where
    64 are not enabled; `TypeError` for what are no dense real numbers (strings, dates, sparse
    matrices). Each names the array and a remedy.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, batch):
    ...     x, y = batch
    ...     return 0.5 * (x @ theta - y) ** 2
    >>> target = bm.Target(loss, (jnp.eye(2), jnp.array([1.0, 2.0])))
    >>> target.total(jnp.zeros(2))
    Array(2.5, dtype=float32)

    ```

    Source: the ℓ_t of GM equations 5 to 7.
    """

    __repr__ = safely(lambda target: _show(target))

    loss: Loss = eqx.field(static=True)
    data: Any

    def __init__(self, loss: Loss, data: Any):
        self.loss = loss
        self.data = _as_data(data, _rounds(loss))

    @classmethod
    def supervised(
        cls,
        model: Callable[[PyTree, PyTree], Array],
        likelihood: Likelihood | str | Callable[[Array, Array], Array],
        data: Any,
    ) -> "Target":
        r"""A target of the form $\ell_i(\theta) = -\log p(y_i \mid f(\theta, x_i))$.

        - `model(params, inputs)`: f, shape (N, …), for a batch of inputs.
        - `likelihood`: `"categorical"` (softmax), `"bernoulli"`, `"gaussian"` (unit variance) or
          `"poisson"`; a `Likelihood`; or loss(output, label) of one example.
        - `data`: (inputs, labels), or an iterable of such minibatches.

        ```python
        >>> import jax.numpy as jnp, bayesmerge as bm
        >>> def model(W, x):
        ...     return x @ W
        >>> data = (jnp.eye(3), jnp.array([0, 1, 2]))
        >>> bm.Target.supervised(model, "categorical", data).total(jnp.zeros((3, 3)))
        Array(3.295837, dtype=float32)

        ```
        """
        return cls(SupervisedLoss(model, as_likelihood(likelihood)), data)

    @property
    def start(self) -> None:
        """`None`: a loss alone does not say where to start."""
        return None

    @property
    def is_streamed(self) -> bool:
        """Whether data are an iterable of minibatches."""
        return isinstance(self.data, Minibatches)

    @property
    def has_model(self) -> bool:
        """Whether the target is supervised."""
        return isinstance(self.loss, SupervisedLoss)

    def accumulate(
        self, statistic: Statistic, params: PyTree, chunk_size: int | None = None
    ) -> PyTree:
        if not isinstance(self.data, Minibatches):
            return _over_chunks(
                lambda batch, i: statistic(self.loss, params, batch, i), self.data, chunk_size
            )
        total, first = None, 0
        for batch in self.data:
            if isinstance(self.loss, SupervisedLoss):
                self.loss.check(params, batch)
            part = _on_batch(statistic, self.loss, params, batch, jnp.asarray(first))
            total = part if total is None else _add(total, part)
            first += batch_size(batch)
        return total

    @property
    def num_examples(self) -> int:
        """N; reads a stream to its end to count."""
        if isinstance(self.data, Minibatches):
            return sum(map(batch_size, self.data))
        return batch_size(self.data)

    def num_batches(self, size: int) -> int:
        return max(1, batch_size(self.data) // size)

    def order(self, key: PRNGKeyArray) -> PyTree:
        return jax.random.permutation(key, batch_size(self.data))

    def minibatch(self, order: PyTree, index: Int[ArrayLike, ""], size: int) -> AbstractTarget:
        count = batch_size(self.data)
        if size >= count:
            return self
        first = size * (jnp.asarray(index) % self.num_batches(size))
        rows = jax.lax.dynamic_slice(order, (first,), (size,))
        return self._scaled(jax.tree.map(lambda x: x[rows], self.data), count / size)

    def stream(self) -> Iterator[AbstractTarget]:
        if not isinstance(self.data, Minibatches):
            yield from itertools.repeat(self)
        count = sum(1 for _ in self.data)
        while True:
            for batch in self.data:
                yield self._scaled(batch, float(count))

    def _scaled(self, batch: PyTree, factor: float) -> "JointTarget":
        return JointTarget([Target(self.loss, batch)], [factor])

    def first_batch(self) -> tuple[Loss, PyTree]:
        is_streamed = isinstance(self.data, Minibatches)
        return self.loss, next(iter(self.data)) if is_streamed else self.data

    def check(self, params: PyTree) -> None:
        _, batch = self.first_batch()
        count = batch_size(batch)
        if isinstance(self.loss, SupervisedLoss):
            self.loss.check(params, batch)
        shape = shape_of(self.loss, "loss", params, batch).shape
        if shape != (count,):
            remedy = _shape_remedy(shape, count, batch)
            raise ValueError(
                f"the loss returned shape {shape} for a batch of {count} examples, and it "
                f"must return one value per example, shape ({count},): {remedy}."
            )


def _shape_remedy(shape: tuple[int, ...], count: int, batch: PyTree) -> str:
    columns = [
        "data" + jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(batch)
        if x.shape == (count, 1)
    ]
    if shape == (count, count) and columns:
        return (
            f"{' and '.join(columns)} of shape ({count}, 1) meets an array of shape ({count},), "
            "and every pair of examples is combined: drop the last axis, `y[:, 0]`"
        )
    return "take the last axis away" if shape[:1] == (count,) else MEAN_REMEDY


class JointTarget(AbstractTarget):
    r"""The weighted multitask loss, $\ell(\theta) = \sum_t \alpha_t\ell_t(\theta)$.

    Its mode with prior p_0 is θ_α, what joint training at weights α gives and what a merged model
    previews.

    - `targets`: ℓ_t, a sequence of T targets or a mapping from task names to them.
    - `weights`: α, shape (T,), or a mapping from the same names.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, y):
    ...     return 0.5 * (y - theta) ** 2
    >>> tasks = [bm.Target(loss, jnp.array([0.0])), bm.Target(loss, jnp.array([4.0]))]
    >>> bm.find_mode(bm.JointTarget(tasks, [1.0, 3.0]), start=jnp.array(0.0)).params
    Array(3., dtype=float32)

    ```

    Source: FP equation 1; GM equation 7.
    """

    __repr__ = safely(lambda joint: _show_joint(joint))

    targets: list[Any]
    weights: Float[Array, " T"]

    def __init__(self, targets: Any, weights: ArrayLike | Any):
        names, self.targets = named(targets, "targets")
        self.weights = as_weights(weights, names)

    @property
    def start(self) -> PyTree | None:
        """That of the first target which has one."""
        return next((t.start for t in self.targets if t.start is not None), None)

    @property
    def is_streamed(self) -> bool:
        """Whether any task's data are an iterable of minibatches."""
        return any(target.is_streamed for target in self.targets)

    @property
    def has_model(self) -> bool:
        """Whether all tasks are supervised."""
        return all(target.has_model for target in self.targets)

    def accumulate(
        self, statistic: Statistic, params: PyTree, chunk_size: int | None = None
    ) -> PyTree:
        parts = [
            jax.tree.map(
                lambda x, w=weight: w.astype(x.dtype) * x,
                target.accumulate(statistic, params, chunk_size),
            )
            for target, weight in zip(self.targets, self.weights, strict=True)
        ]
        return functools.reduce(_add, parts)

    def parts(self) -> list[tuple[Any, AbstractTarget]]:
        return [
            (weight * w, part)
            for weight, target in zip(self.weights, self.targets, strict=True)
            for w, part in target.parts()
        ]

    @property
    def num_examples(self) -> int:
        """N, of all tasks."""
        return sum(target.num_examples for target in self.targets)

    def num_batches(self, size: int) -> int:
        return max(target.num_batches(size) for target in self.targets)

    def order(self, key: PRNGKeyArray) -> PyTree:
        keys = jax.random.split(key, len(self.targets))
        return [target.order(k) for target, k in zip(self.targets, keys, strict=True)]

    def minibatch(self, order: PyTree, index: Int[ArrayLike, ""], size: int) -> AbstractTarget:
        pairs = zip(self.targets, order, strict=True)
        return JointTarget([target.minibatch(o, index, size) for target, o in pairs], self.weights)

    def stream(self) -> Iterator[AbstractTarget]:
        for parts in zip(*[target.stream() for target in self.targets], strict=True):
            yield JointTarget(parts, self.weights)

    def first_batch(self) -> tuple[Loss, PyTree]:
        return self.targets[0].first_batch()

    def check(self, params: PyTree) -> None:
        for target in self.targets:
            target.check(params)


class Minibatches:
    """An iterable of minibatches, or a function that returns one, opaque to JAX."""

    def __init__(self, batches: Any, rounds: str = ""):
        if isinstance(batches, Iterator):
            raise ValueError(
                f"data is a {type(batches).__name__}, an iterator that can be read only once, and "
                "a fit reads the data many times. Pass a list of minibatches, a function that "
                "returns a new iterator, or an object whose `__iter__` starts anew."
            )
        if isinstance(batches, (str, bytes, Set)) or not (
            callable(batches) or hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
        ):
            raise TypeError(
                f"data is a {type(batches).__name__}, and it must be arrays (one, a tuple or a "
                "dict), or an iterable of minibatches of such."
            )
        self._batches = batches
        self._rounds, self._warns = rounds, True

    def __iter__(self) -> Iterator[PyTree]:
        empty = True
        given = self._batches
        for batch in given() if callable(given) else given:
            empty = False
            warn, self._warns = self._warns, False
            yield _as_batch(_collated(batch), self._rounds, warn)
        if empty:
            raise ValueError("data has no minibatches: an empty dataset cannot be fitted.")


def _as_data(data: Any, rounds: str) -> Any:
    if isinstance(data, Minibatches):
        return data
    if isinstance(data, Mapping):
        data = dict(data)
    if isinstance(data, list) and data:
        if all(isinstance(x, (int, float)) for x in data):
            return _as_batch(data, rounds)
        if all(map(is_array, data)):
            raise TypeError(
                "data is a list of arrays, which could mean (inputs, labels) or minibatches. Pass "
                "a tuple of arrays for one dataset, or a list of tuples for minibatches."
            )
    is_tree = not isinstance(data, list) and not jax.tree_util.all_leaves([data])
    return (_as_batch if is_tree or is_array(data) else Minibatches)(data, rounds)


def _collated(batch: Any) -> Any:
    """A batch as a tuple, where a data loader makes lists of arrays."""
    return tuple(batch) if isinstance(batch, list) and all(map(is_array, batch)) else batch


def _rounds(loss: Any) -> str:
    """The leaf of the data that may be rounded to floats: labels that are numbers and no names."""
    is_numeric = isinstance(loss, SupervisedLoss) and loss.likelihood.is_numeric
    return "data[1]" if is_numeric else ""


def _as_batch(batch: PyTree, rounds: str, warn: bool = True) -> PyTree:
    """`batch` with jax arrays for leaves, checked to be finite and of one first axis."""
    arrays = as_rows(batch, "data", rounds=rounds, warn=warn)
    sizes = {
        jax.tree_util.keystr(path): row_count(x)
        for path, x in jax.tree_util.tree_leaves_with_path(arrays)
    }
    if not sizes:
        raise ValueError("data has no arrays: an empty dataset cannot be fitted.")
    if len(set(sizes.values())) != 1 or None in sizes.values():
        single = " (for single examples, as a Dataset of torch yields them, put a loader around it)"
        raise ValueError(
            f"data must have one row per example in every array, and first axes are {sizes}"
            f"{single if None in sizes.values() else ''}."
        )
    if 0 in sizes.values():
        raise ValueError("data has no examples: an empty dataset cannot be fitted.")
    floating = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]
    if floating and is_concrete(floating):
        require_finite(arrays, "data")
    return arrays


def _over_chunks(
    statistic: Callable[[PyTree, Int[ArrayLike, ""]], PyTree],
    data: PyTree,
    chunk_size: int | None,
) -> PyTree:
    """Σ of `statistic` over consecutive chunks of `data`, one at a time in memory."""
    size = batch_size(data)
    if chunk_size is None or size <= chunk_size:
        return statistic(data, jnp.asarray(0))
    count, whole = size // chunk_size, size - size % chunk_size
    chunks = jax.tree.map(lambda x: x[:whole].reshape((count, chunk_size, *x.shape[1:])), data)
    indexed = (chunks, chunk_size * jnp.arange(count))
    part = jax.eval_shape(statistic, *jax.tree.map(lambda x: x[0], indexed))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), part)
    total, _ = jax.lax.scan(lambda sum, chunk: (_add(sum, statistic(*chunk)), None), zero, indexed)
    if whole == size:
        return total
    return _add(total, statistic(jax.tree.map(lambda x: x[whole:], data), jnp.asarray(whole)))


def _show(target: Target) -> str:
    likelihood = getattr(target.loss, "likelihood", None)
    loss = getattr(target.loss, "__name__", type(target.loss).__name__)
    streamed = target.is_streamed
    count = "a stream of minibatches" if streamed else f"{target.num_examples} examples"
    size = "1 example" if count == "1 examples" else count
    return f"Target of {size}: {getattr(likelihood, 'name', loss)}"


def _show_joint(joint: JointTarget) -> str:
    rows = [f"  {number(a)} × {t!r}" for a, t in zip(joint.weights, joint.targets, strict=True)]
    return "\n".join([f"JointTarget of {len(rows)} tasks:", *rows])


def batch_size(batch: PyTree) -> int:
    """N, the length of every first axis."""
    return jnp.shape(jax.tree.leaves(batch)[0])[0]


@eqx.filter_jit
def _on_batch(
    statistic: Statistic, loss: Loss, params: PyTree, batch: PyTree, index: Int[Array, ""]
) -> PyTree:
    return statistic(loss, params, batch, index)


def _add(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, x, y)
