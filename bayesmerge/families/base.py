"""What a posterior is: an unnormalised log-density that multiplies, divides and has a mode.

The line that the whole library rests on, p_α(θ) ∝ p_0(θ)^γ Π_t q_t(θ)^{α_t} (FP-5), is
`prior**gamma * q1**a1 * q2**a2` here: for an exponential family, addition of natural parameters.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.arrays import as_array
from bayesmerge.families.checks import is_concrete, require, require_finite, smallest
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.show import safely, show_family
from bayesmerge.keys import as_key

Q = TypeVar("Q", bound="AbstractExponentialFamily")
T = TypeVar("T")
Output = TypeVar("Output")
Method = TypeVar("Method", bound=Callable[..., Any])


class AbstractPosterior(eqx.Module):
    """An unnormalised density q(θ) over a pytree θ."""

    @abc.abstractmethod
    def log_density(self, theta: PyTree) -> Float[Array, ""]:
        """log q(θ) up to a constant."""

    @abc.abstractmethod
    def mode(self) -> PyTree:
        """argmax_θ log q(θ)."""

    @abc.abstractmethod
    def log_ratio(self, theta: PyTree, reference: PyTree) -> Float[Array, ""]:
        """log q(θ)/q(θ'), with θ' the `reference`: of use where log q is too large to subtract."""

    @abc.abstractmethod
    def minorizer(self, theta: PyTree) -> "AbstractExponentialFamily":
        """The member of an exponential family that touches log q at θ from below, up to a
        constant."""

    @abc.abstractmethod
    def blend(self) -> "AbstractExponentialFamily":
        """A member of an exponential family in the place of q, from which to look for a mode."""


class AbstractExponentialFamily(AbstractPosterior):
    """q(θ) ∝ exp⟨λ, T(θ)⟩ with constant carrier measure.

    The leaves of the object are its natural parameters λ, so that q1 * q2 adds leaves, q ** a
    scales them, and `jax.tree.map`, `jit`, `vmap` and `grad` act on posteriors directly.

    **Batches.** A posterior whose leaves carry extra leading axes (from `jax.vmap`, from
    `jax.tree.map(jnp.stack, …)`, or from `merge` with many weightings) is a batch: every method
    maps over these axes, and what it returns has them in front.

    **Improper quotients.** p / q may have no normaliser or no maximum. Such objects multiply and
    divide freely; asking them for what they don't have is an error that says why.
    """

    if TYPE_CHECKING:

        @property
        def layout(self) -> Layout:
            """The layout of θ."""

    __repr__ = safely(show_family)

    @property
    @abc.abstractmethod
    def natural_parameters(self) -> PyTree:
        """λ, of the same structure as `sufficient_statistics(theta)`."""

    @abc.abstractmethod
    def sufficient_statistics(self, theta: PyTree) -> PyTree:
        """T(θ), so that log q(θ) = ⟨λ, T(θ)⟩ − A(λ)."""

    @abc.abstractmethod
    def is_proper(self) -> Bool[Array, "*batch"]:
        """Whether q has a normaliser."""

    @abc.abstractmethod
    def log_partition(self) -> Float[Array, "*batch"]:
        """A(λ) = log ∫ exp⟨λ, T(θ)⟩ dθ."""

    @abc.abstractmethod
    def log_prob(self, theta: PyTree) -> Float[Array, "*batch"]:
        """log q(θ), normalised."""

    @abc.abstractmethod
    def mean(self) -> PyTree:
        """E_q[θ]."""

    @abc.abstractmethod
    def variance(self) -> PyTree:
        """Var_q[θ], entry by entry."""

    @abc.abstractmethod
    def std(self) -> PyTree:
        """√Var_q[θ], entry by entry."""

    @abc.abstractmethod
    def quantile(self, p: ArrayLike | Sequence[Any]) -> PyTree:
        """The value below which an entry of θ lies with probability p, for every entry by itself.

        - `p`: probabilities in [0, 1], of any shape, which the result has in front of every
          leaf's own: `quantile([0.025, 0.975])` are the ends of 95% intervals.

        Gaussians have quantiles under `jax.jit` too; those of other families are SciPy's.

        **Raises** `ValueError` for p outside of [0, 1], or an improper posterior.
        """

    @abc.abstractmethod
    def _numbers(self) -> tuple[dict[str, list[Any]], str]:
        """What `repr` shows of a single posterior with NumPy's arrays for leaves: the first
        entries of every leaf, by name, and a remark."""

    @abc.abstractmethod
    def _marginals(self) -> list[Any]:
        """`marginals`, leaf by leaf."""

    @abc.abstractmethod
    def entropy(self) -> Float[Array, "*batch"]:
        """−E_q[log q(θ)], in nats."""

    @abc.abstractmethod
    def kl_divergence(self, other: Any) -> Float[Array, "*batch"]:
        """KL(q ‖ other) = E_q[log q(θ) − log other(θ)], in nats."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> PyTree:
        """Independent draws θ ~ q, `shape` in front of every leaf's own shape."""

    @abc.abstractmethod
    def aligned_with(self, other: "AbstractExponentialFamily") -> tuple[Any, Any]:
        """Both posteriors as members of the smallest family that holds both."""

    @abc.abstractmethod
    def log_ratio_to_mean(self, theta: PyTree, mean: PyTree) -> Float[Array, ""]:
        """log q(θ)/q(m), where m = E_q[θ] is `mean`: no normaliser is needed."""

    def minorizer(self, theta: PyTree) -> "AbstractExponentialFamily":
        """q itself."""
        return self

    def blend(self) -> "AbstractExponentialFamily":
        """q itself."""
        return self

    def marginals(self) -> PyTree:
        """The distribution of every entry of θ by itself: a pytree shaped as θ with distributions
        of `scipy.stats` for leaves (`.pdf`, `.cdf`, `.ppf`), in float64. Not within `jax.jit`."""
        if not is_concrete(self):
            raise ValueError(
                f"the marginals of a {type(self).__name__} are SciPy's, and it is being traced: "
                "call this outside of `jax.jit`, `vmap` and `grad` (a batch maps by itself)."
            )
        proper = self._require_proper(self, "marginals")
        return jax.tree.unflatten(self.layout.structure, proper._marginals())

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes of a batch of posteriors; () for one posterior."""
        shape = jnp.shape(jax.tree.leaves(self)[0])
        return shape[: len(shape) - len(self.layout.shapes[0])]

    def expected_statistics(self) -> PyTree:
        """E_q[T(θ)] = ∇A(λ), of the same structure as `natural_parameters`."""
        gradient = over_batch(jax.grad(lambda q: q.log_partition()))(self)
        return gradient.natural_parameters

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, AbstractExponentialFamily):
            return NotImplemented
        self.layout.require_same(other.layout)
        p, q = self.aligned_with(other)
        _require_same_batch(p, q)
        return jax.tree.map(_add, p, q)

    def __truediv__(self, other: Any) -> Any:
        if not isinstance(other, AbstractExponentialFamily):
            return NotImplemented
        return self * other**-1.0

    def __pow__(self: Q, exponent: ArrayLike) -> Q:
        exponent = as_array(exponent, "exponent", float)
        if is_concrete(exponent):
            require_finite(exponent, "exponent")
        if exponent.shape not in ((), self.batch_shape):
            raise ValueError(
                f"the exponent has shape {exponent.shape}, and it must be a scalar or match the "
                f"batch of posteriors, {self.batch_shape}. To raise one posterior to many powers "
                "use `merge` with weights of shape (A, T), or `jax.vmap`."
            )
        return jax.tree.map(lambda leaf: _scale(leaf, exponent), self)

    def _theta(self, theta: PyTree) -> PyTree:
        theta, layout = as_arrays(theta)
        if layout.shapes != self.layout.shapes or layout.structure != self.layout.structure:
            self.layout.require_same(layout, "the posterior and theta (use jax.vmap for many θ)")
        return theta

    def _require_proper(self, tree: T, what: str, detail: Callable[[], str] | None = None) -> T:
        """`tree`, or an error that this posterior is improper and so has no `what`."""
        message = (
            f"this {type(self).__name__} is improper and has no {what}. A quotient of posteriors, "
            "or negative weights, can subtract more than the posteriors have: multiply by a prior, "
            "or use smaller weights."
        )

        def natural() -> str:
            return f"Its smallest natural parameter is {smallest(self).item():.6g}."

        return require(tree, jnp.all(self.is_proper()), message, detail or natural)


def over_batch(method: Method) -> Method:
    """Let a method written for one posterior map over a batch of them."""

    @functools.wraps(method)
    def mapped(posterior: Any, *args: Any, **kwargs: Any) -> Any:
        if not posterior.batch_shape:
            return method(posterior, *args, **kwargs)
        try:
            return jax.vmap(lambda q: mapped(q, *args, **kwargs))(posterior)
        except RuntimeError:
            if is_concrete(posterior):
                _raise_for_member(mapped, posterior, *args, **kwargs)
            raise

    return mapped  # type: ignore[return-value]


def over_batch_with_key(method: Method) -> Method:
    """As `over_batch`, for `method(self, key, shape)`: every member draws with its own key."""

    @functools.wraps(method)
    def mapped(posterior: Any, key: PRNGKeyArray, shape: Any = ()) -> Any:
        key = as_key(key)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if posterior.batch_shape:
            keys = jax.random.split(key, posterior.batch_shape[0])
            return jax.vmap(lambda q, k: mapped(q, k, shape))(posterior, keys)
        return method(posterior, key, shape)

    return mapped  # type: ignore[return-value]


def over_batches(function: Callable[[Any, Any], Output], p: Any, q: Any) -> Output:
    """`function(p, q)`, mapped over the batch axes of either or both."""
    if not (p.batch_shape or q.batch_shape):
        return function(p, q)
    _require_same_batch(p, q)
    axes = (0 if p.batch_shape else None, 0 if q.batch_shape else None)
    return jax.vmap(lambda x, y: over_batches(function, x, y), axes)(p, q)


def unstack(batch: Any) -> list[Any]:
    """The members of a batch, along its first axis."""
    return [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(batch.batch_shape[0])]


def _raise_for_member(method: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> None:
    for i, member in enumerate(unstack(batch)):
        try:
            method(member, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"member {i} of the batch: {error}") from None


def _require_same_batch(p: Any, q: Any) -> None:
    if p.batch_shape and q.batch_shape and p.batch_shape != q.batch_shape:
        raise ValueError(
            f"two batches of posteriors combine member by member, and their shapes are "
            f"{p.batch_shape} and {q.batch_shape}. A single posterior combines with any batch."
        )


def _add(x: Array, y: Array) -> Array:
    ndim = max(x.ndim, y.ndim)
    return _pad_left(x, ndim) + _pad_left(y, ndim)


def _scale(leaf: Array, exponent: Array) -> Array:
    exponent = exponent.astype(leaf.dtype)
    return leaf * exponent.reshape(exponent.shape + (1,) * (leaf.ndim - exponent.ndim))


def _pad_left(x: Array, ndim: int) -> Array:
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)
