"""Products of posteriors that have no closed form: Π_t q_t(θ)^{α_t}, lazily.

One loop, θ ← mode(Π_t minorizer_t(θ)^{α_t}), finds their modes: FP-12 for mixtures of Gaussians,
FP-14 for mixtures of any exponential family.
"""

import abc
import functools
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from bayesmerge.families.base import AbstractExponentialFamily, AbstractPosterior, tree_dot
from bayesmerge.families.checks import is_concrete, require, require_finite
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout

Climb: TypeAlias = tuple[PyTree, Float[Array, ""], Int[Array, ""]]

MAX_STEPS = 1000


class AbstractLazyPosterior(AbstractPosterior):
    """A posterior whose products are `Product`s."""

    @property
    @abc.abstractmethod
    def layout(self) -> Layout:
        """The layout of θ."""

    def __mul__(self, other: Any) -> "Product":
        return _times(self, other, 1.0)

    def __rmul__(self, other: Any) -> "Product":
        return _times(other, self, 1.0)

    def __truediv__(self, other: Any) -> "Product":
        return _times(self, other, -1.0)

    def __rtruediv__(self, other: Any) -> "Product":
        return _times(other, self, -1.0)

    def __pow__(self, exponent: ArrayLike) -> "Product":
        return Product([self], jnp.asarray(exponent, float)[None]).flat()


class Product(AbstractLazyPosterior):
    r"""$p(\theta) \propto \prod_t q_t(\theta)^{\alpha_t}$ of any posteriors over one θ.

    - `factors`: q_t, exponential families and mixtures of them.
    - `exponents`: α, shape (T,). Those of mixtures must not be negative: the mode is found by
      expectation-maximisation, which would go downhill.

    **Raises** `ValueError` for exponents of another length, or negative ones of mixtures.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> means = jnp.array([[-1.0], [1.0]])
    >>> two = bm.Mixture([0.5, 0.5], jax.vmap(bm.IsotropicGaussian.from_mean_precision)(
    ...     means, jnp.array([9.0, 9.0])))
    >>> right = bm.IsotropicGaussian.from_mean_precision(jnp.array([0.5]), 1.0)
    >>> (two * right).mode()
    Array([0.95...], dtype=float32)

    ```

    Source: FP equations 5, 12 and 14.
    """

    factors: list[Any]
    exponents: Float[Array, " T"]

    def __init__(self, factors: Any, exponents: ArrayLike | Sequence[float]):
        self.factors = list(factors)
        self.exponents = jnp.asarray(exponents, float)
        if self.exponents.shape != (len(self.factors),):
            raise ValueError(
                f"exponents have shape {self.exponents.shape}, and for {len(self.factors)} factors "
                f"they must have shape ({len(self.factors)},). For many weightings use `merge` and "
                "`jax.vmap`, or `preview`."
            )
        for factor in self.factors:
            self.layout.require_same(factor.layout, "the factors of a product")
        if is_concrete(self.exponents):
            require_finite(self.exponents, "exponents")
        self.exponents = self._require_uphill()

    @property
    def layout(self) -> Layout:
        """The layout of θ."""
        return self.factors[0].layout

    def log_density(self, theta: PyTree) -> Float[Array, ""]:
        """Σ_t α_t log q_t(θ)."""
        logs = jnp.stack([factor.log_density(theta) for factor in self.factors])
        return jnp.sum(self.exponents.astype(logs.dtype) * logs)

    def log_ratio(self, theta: PyTree, reference: PyTree) -> Float[Array, ""]:
        """Σ_t α_t log q_t(θ)/q_t(θ')."""
        logs = jnp.stack([factor.log_ratio(theta, reference) for factor in self.factors])
        return jnp.sum(self.exponents.astype(logs.dtype) * logs)

    def minorizer(self, theta: PyTree) -> Any:
        """Π_t minorizer_t(θ)^{α_t}."""
        return self._product([factor.minorizer(theta) for factor in self.factors])

    def blend(self) -> Any:
        """Π_t blend_t^{α_t}, every mixture replaced by the geometric mean of its components."""
        return self._product([factor.blend() for factor in self.factors])

    def mode(self, starts: PyTree | None = None, *, max_steps: int = MAX_STEPS) -> PyTree:
        r"""A local maximum, the best that is reached from `starts`, by
        $\theta \leftarrow \arg\max \prod_t \mathrm{minorizer}_t(\theta)^{\alpha_t}$.

        No step lowers the density. It stops where the gradient, in the metric of the minorizer, is
        at rounding error, or after `max_steps`.

        - `starts`: pytree shaped as θ with a leading axis of starts; by default one, the mode of
          `blend()`.
        - `max_steps`: from every start.

        **Returns** θ.

        **Raises** `ValueError` where the minorizer has no maximum (too negative exponents).
        """
        return self._climb(starts, max_steps)[0]

    def _climb(self, starts: PyTree | None, max_steps: int) -> Climb:
        """Where it ends, the length of the gradient there, and the steps taken."""
        if starts is None:
            return _climb(self, self.blend().mode(), max_steps)
        return _climb_from_all(self, starts, max_steps)

    def flat(self) -> "Product":
        """The same with the factors of inner products as factors."""
        factors: list[Any] = []
        exponents: list[Array] = []
        for factor, exponent in zip(self.factors, self.exponents, strict=True):
            is_product = isinstance(factor, Product)
            factors += factor.factors if is_product else [factor]
            exponents += [exponent * e for e in factor.exponents] if is_product else [exponent]
        return Product(factors, jnp.stack(exponents))

    def _product(self, members: list[Any]) -> Any:
        powers = [member**a for member, a in zip(members, self.exponents, strict=True)]
        return functools.reduce(operator.mul, powers)

    def _require_uphill(self) -> Float[Array, " T"]:
        """The exponents, or an error where one of a mixture is negative."""
        lazy = [not isinstance(factor, AbstractExponentialFamily) for factor in self.factors]
        downhill = jnp.asarray(lazy) & (self.exponents < 0)

        def which() -> str:
            t = int(jnp.argmax(downhill))
            kind, exponent = type(self.factors[t]).__name__, float(self.exponents[t])
            return f"Factor {t} is a {kind} with exponent {exponent:.6g}."

        message = (
            "expectation-maximisation climbs only while exponents of mixtures are not negative. "
            "Use a Gaussian for what is divided out (a prior, removed data), or weights ≥ 0."
        )
        return require(self.exponents, ~jnp.any(downhill), message, which)


def _times(left: Any, right: Any, exponent: float) -> Any:
    if not (isinstance(left, AbstractPosterior) and isinstance(right, AbstractPosterior)):
        return NotImplemented
    return Product([left, right], jnp.array([1.0, exponent])).flat()


@eqx.filter_jit
def _climb_from_all(product: Product, starts: PyTree, max_steps: int) -> Climb:
    ends = jax.lax.map(lambda start: _climb(product, start, max_steps), starts)
    first = jax.tree.map(lambda x: x[0], ends[0])
    best = jnp.argmax(jax.lax.map(lambda end: product.log_ratio(end, first), ends[0]))
    return jax.tree.map(lambda x: x[best], ends)


@eqx.filter_jit
def _climb(product: Product, start: PyTree, max_steps: int) -> Climb:
    epsilon = max(jnp.finfo(dtype).eps for dtype in product.layout.dtypes)

    def step(state: tuple[PyTree, Array, Array]) -> tuple[PyTree, Array, Array]:
        theta, _, steps = state
        minorizer = product.minorizer(theta)
        new = minorizer.mode()
        return new, _gradient_length(product, minorizer, theta, new), steps + 1

    def unfinished(state: tuple[PyTree, Array, Array]) -> Array:
        _, length, steps = state
        return (length > 100 * epsilon) & (steps < max_steps)

    first = (start, jnp.array(jnp.inf, product.layout.dtypes[0]), jnp.array(0))
    return jax.lax.while_loop(unfinished, step, first)


def _gradient_length(
    product: Product, minorizer: Any, theta: PyTree, new: PyTree
) -> Float[Array, ""]:
    """√(gᵀΛ⁻¹g / P), g = ∇log p(θ): for Gaussian minorizers g = Λ(θ_new − θ)."""
    if isinstance(minorizer, AbstractGaussian):
        step = jax.tree.map(jnp.subtract, new, theta)
        squared = tree_dot(step, minorizer.multiply(step))
    else:
        gradient = jax.grad(product.log_density)(theta)
        scaled = jax.tree.map(jnp.multiply, gradient, minorizer.variance())
        squared = tree_dot(gradient, scaled)
    length = jnp.sqrt(jnp.maximum(squared, 0) / product.layout.size)
    return require(
        length.astype(product.layout.dtypes[0]),
        jnp.isfinite(length),
        "expectation-maximisation met a density that is not finite: a start lies where no "
        "component has any density.",
    )
