"""Products of posteriors that have no closed form: Π_t q_t(θ)^{α_t}, lazily."""

import abc
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from bayesmerge.families.base import AbstractPosterior
from bayesmerge.families.checks import (
    is_concrete,
    require,
    require_finite,
    tell,
)
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import Structure
from bayesmerge.families.show import safely, show_product
from bayesmerge.keys import as_key
from bayesmerge.mixtures.climb import is_single, minorizer, repeat
from bayesmerge.mixtures.expansion import Expansion
from bayesmerge.mixtures.information import laplace_at
from bayesmerge.mixtures.maxima import MAX_STEPS, Maxima, Starts, find_maxima, warn_if_short

Method = TypeVar("Method", bound=Callable[..., Any])


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
        return Product([self], jnp.asarray(exponent, float)[..., None])


def over_weightings(method: Method) -> Method:
    """Let a method written for exponents (T,) map over leading axes of them."""

    @functools.wraps(method)
    def mapped(product: "Product", *args: Any, **kwargs: Any) -> Any:
        if product.exponents.ndim == 1:
            return method(product, *args, **kwargs)

        def one(exponents: Array) -> Any:
            return mapped(product.with_exponents(exponents), *args, **kwargs)

        return jax.vmap(one)(product.exponents)

    return mapped  # type: ignore[return-value]


class Product(AbstractLazyPosterior):
    r"""$p(\theta) \propto \prod_t q_t(\theta)^{\alpha_t}$ of any posteriors over one θ.

    - `factors`: q_t, exponential families and mixtures of them.
    - `exponents`: α, shape (T,), or (A, T) for many weightings of the same factors: what methods
      return then has A in front. Those of mixtures must not be negative: modes are found by
      expectation-maximisation, which would go downhill.

    **Raises** `ValueError` for exponents of another length, or negative ones of mixtures, and for
    factors of different layouts.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> means = jnp.array([[-1.0], [1.0]])
    >>> two = bm.Mixture([0.5, 0.5], jax.vmap(bm.IsotropicGaussian.from_mean_precision)(
    ...     means, jnp.array([9.0, 9.0])))
    >>> right = bm.IsotropicGaussian.from_mean_precision(jnp.array([0.5]), 1.0)
    >>> (two * right).mode()
    Array([0.95...], dtype=float32)
    >>> found = (two * right).maxima().distinct()
    >>> [f"{x:.2f}" for x in found.params.ravel()], found.converged.all().item()
    (['0.95', '-0.85'], True)

    ```

    Source: FP equations 5, 12 and 14.
    """

    __repr__ = safely(show_product)

    factors: list[Any]
    exponents: Float[Array, "*A T"]

    def __init__(self, factors: Any, exponents: ArrayLike | Sequence[float]):
        if not isinstance(factors, Sequence):
            raise TypeError(
                f"factors is a {type(factors).__name__}, and it must be a sequence of posteriors."
            )
        factors, exponents = list(factors), jnp.asarray(exponents, float)
        if not factors:
            raise ValueError("factors is empty: a product needs at least one posterior.")
        if exponents.shape[-1:] != (len(factors),):
            raise ValueError(
                f"exponents have shape {exponents.shape}, and for {len(factors)} factors they must "
                f"have shape ({len(factors)},), or ({len(factors)},) behind an axis of weightings."
            )
        for factor in factors:
            _require_factor(factor)
            factors[0].layout.require_same(factor.layout, "the factors of a product")
            _require_same_family(factors[0], factor)
        if is_concrete(exponents):
            require_finite(exponents, "exponents")
        self.factors, exponents = _flat(factors, exponents)
        self.exponents = self._require_uphill(exponents)

    def with_exponents(self, exponents: Float[Array, "*A T"]) -> "Product":
        """The same factors with other exponents; nothing is checked."""
        return eqx.tree_at(lambda p: p.exponents, self, exponents)

    @property
    def layout(self) -> Layout:
        """The layout of θ."""
        return self.factors[0].layout

    @over_weightings
    def log_density(self, theta: PyTree) -> Float[Array, "*A"]:
        """Σ_t α_t log q_t(θ)."""
        logs = jnp.stack([factor.log_density(theta) for factor in self.factors])
        return jnp.sum(self.exponents.astype(logs.dtype) * logs)

    @over_weightings
    def log_ratio(self, theta: PyTree, reference: PyTree) -> Float[Array, "*A"]:
        """Σ_t α_t log q_t(θ)/q_t(θ')."""
        logs = jnp.stack([factor.log_ratio(theta, reference) for factor in self.factors])
        return jnp.sum(self.exponents.astype(logs.dtype) * logs)

    @over_weightings
    def minorizer(self, theta: PyTree) -> Any:
        """Π_t minorizer_t(θ)^{α_t}: its mode is the EM step of FP-12 and FP-14."""
        return self._product([factor.minorizer(theta) for factor in self.factors])

    @over_weightings
    def blend(self) -> Any:
        """Π_t blend_t^{α_t}, every mixture replaced by the geometric mean of its components."""
        return self._product([factor.blend() for factor in self.factors])

    def mode(self, starts: Starts | PyTree | None = None, *, max_steps: int = MAX_STEPS) -> PyTree:
        """The highest of the `maxima` found.

        - `starts`, `max_steps`: as in `maxima`.

        **Returns** θ. Its derivatives are right by forward mode (`jax.jacfwd`); reverse mode does
        not go through the loop.

        **Warns** with a `ConvergenceWarning` where `max_steps` were not enough.

        **Raises** `ValueError` where the product has no maximum (too negative exponents).
        """
        if not self.has_mixtures():
            return self.blend().mode()
        best = self.maxima(starts, max_steps=max_steps).best()
        tell(warn_if_short, (best.converged, best.gradient, best.steps))
        return best.params

    def maxima(
        self,
        starts: Starts | PyTree | None = None,
        *,
        tolerance: float | None = None,
        max_steps: int = MAX_STEPS,
        accelerate: bool = True,
    ) -> Maxima:
        r"""Local maxima, by expectation-maximisation from many starts:
        $\theta \leftarrow \arg\max \prod_t \mathrm{minorizer}_t(\theta)^{\alpha_t}$.

        No step lowers the density, whatever the exponents of exponential families (a prior's
        γ ≠ 0) are: these are their own minorizers.

        - `starts`: `"blend"`, one start, the mode of `blend()`; `"means"`, the mean of every
          component; `"merged"`, combinations of one component of every mixture, the 16 whose
          merged means are highest; by default all these; `"highest"`, the 16 highest of them. Or a
          pytree shaped as θ with a leading axis of starts.
        - `tolerance`: of the gradient in posterior standard deviations; by default ε^{2/3}.
        - `max_steps`: evaluations of the density, from every start.
        - `accelerate`: whether to extrapolate (Anderson's method; steps downhill are taken back).

        **Returns** `Maxima`, the highest first, whether or not they have converged.

        **Raises** `ValueError` without any mixture (the mode is in closed form then), for starts of
        another shape, and where no climb finds a density that is finite.

        Source: FP equations 12 and 14; Walker & Ni (2011) for the acceleration.
        """
        return find_maxima(self, starts, tolerance, max_steps, accelerate)

    def laplace(self, params: PyTree | None = None, *, structure: Structure | None = None) -> Any:
        r"""The Gaussian at a mode, $\mathcal N(\hat\theta, H^{-1})$ with
        $H = -\nabla^2 \sum_t \alpha_t \log q_t(\hat\theta)$: the precision of the minorizer
        less what the components disagree about (Louis's identity).

        - `params`: θ̂; by default `mode()`. Those of `maxima().distinct()` give one for each mode.
        - `structure`: `"full"`, `"diagonal"` for the diagonal of H, or `Blocks()`; by default as
          the factors.

        **Returns** a Gaussian.

        **Raises** `TypeError` for factors that are not Gaussian, `ValueError` where H is not
        positive definite: `params` is no maximum.

        Source: Louis (1982), *Finding the Observed Information Matrix when Using the EM Algorithm*.
        """
        self._require_one_weighting("laplace")
        theta = self.mode() if params is None else params
        return laplace_at(self.factors, self.exponents, theta, structure)

    def std(self) -> PyTree:
        """√Var[θ], entry by entry, of the product multiplied out (see `expand`)."""
        return self._multiplied_out().std()

    def quantile(self, p: ArrayLike | Sequence[Any]) -> PyTree:
        """Marginal quantiles, as of a `Mixture`, of the product multiplied out (see `expand`);
        where it cannot be, those of draws: `jax.tree.map(lambda x: jnp.quantile(x, p, axis=0),
        product.sample(key, 4000))`."""
        return self._multiplied_out().quantile(p)

    def _multiplied_out(self) -> Any:
        return self.expand() if self.has_mixtures() else self.blend()

    def sample(self, key: PRNGKeyArray, shape: int | tuple[int, ...] = ()) -> PyTree:
        r"""Exact independent draws θ ~ p, by rejection: for α ≤ 1,
        $\prod_t(\sum_k a_{tk})^{\alpha_t} \le \sum_{k_1 \dots k_T} \prod_t a_{tk_t}^{\alpha_t}$
        with $a_{tk} = \pi_{tk} q_{tk}$, and draws of that mixture are kept with the ratio of the
        two, at least $\prod_t K_t^{\alpha_t-1}$. (A mixture with α > 1 is several factors.)

        - `key`: a JAX random key.
        - `shape`: in front of every leaf's own shape.

        **Raises** `ValueError` where more than 200,000 terms would have to be written out, or one
        is improper. Not within `jax.jit`: how many proposals are needed is random.
        """
        self._require_one_weighting("sample")
        key = as_key(key)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if any(n < 0 for n in shape):
            raise ValueError(f"shape is {shape}, and its entries must not be negative.")
        if not self.has_mixtures():
            return self.blend().sample(key, shape)
        draws = self._expansion().sample(key, math.prod(shape))
        return jax.tree.map(lambda x: x.reshape(shape + x.shape[1:]), draws)

    def expand(self) -> Any:
        r"""The product multiplied out,
        $\sum_{k_1 \dots k_T} \prod_t \pi_{tk_t} q_{tk_t}$: one `Mixture` of Π_t K_t components.

        Exponents of mixtures must be whole numbers (2 stands for two factors).

        **Raises** `ValueError` for other exponents, more than 200,000 terms, or an improper term.
        Not within `jax.jit`.
        """
        self._require_one_weighting("expand")
        for t, (q, a) in enumerate(zip(self.factors, self.exponents.tolist(), strict=True)):
            if not is_single(q) and a != round(a):
                raise ValueError(
                    f"factor {t} is a mixture with exponent {a:.6g}, and only whole numbers can be "
                    "multiplied out. `sample` and `maxima` take any."
                )
        if not self.has_mixtures():
            raise ValueError("no factor is a mixture: the product is the posterior `blend()`.")
        expansion = self._expansion()
        kind = next(type(q) for q in self.factors if not is_single(q))
        expanded = kind(jnp.ones(len(expansion.terms)), expansion.components())
        weights = log_softmax(expansion.log_weights)
        return eqx.tree_at(lambda mixture: mixture.log_weights, expanded, weights)

    def on_ridge(self, r: Float[Array, "*S R"]) -> PyTree:
        """argmax Π_tk q_tk^{α_t r_tk}, for the responsibilities of `maxima`."""

        def at(exponents: Array, r: Array) -> PyTree:
            if exponents.ndim > 1:
                return jax.vmap(at)(exponents, r)
            if r.ndim > 1:
                return jax.vmap(lambda x: at(exponents, x))(r)
            return minorizer(self.factors, repeat(self.factors, exponents) * r).mode()

        return at(self.exponents, r)

    def has_mixtures(self) -> bool:
        """Whether the product has no closed form."""
        return not all(is_single(factor) for factor in self.factors)

    def _expansion(self) -> Expansion:
        return Expansion.of(self.factors, np.asarray(self.exponents))

    def _require_one_weighting(self, what: str) -> None:
        if self.exponents.ndim != 1:
            raise ValueError(
                f"exponents have shape {self.exponents.shape}, and `{what}` takes one weighting: "
                "use `product.with_exponents(product.exponents[i])`."
            )

    def _product(self, members: list[Any]) -> Any:
        powers = [member**a for member, a in zip(members, self.exponents, strict=True)]
        return functools.reduce(operator.mul, powers)

    def _require_uphill(self, exponents: Float[Array, "*A T"]) -> Float[Array, "*A T"]:
        """The exponents, or an error where one of a mixture is negative."""
        lazy = [t for t, q in enumerate(self.factors) if not is_single(q)]
        downhill = jnp.zeros(exponents.shape, bool).at[..., lazy].set(exponents[..., lazy] < 0)

        def which() -> str:
            *row, t = (int(i) for i in jnp.argwhere(downhill)[0])
            kind, exponent = type(self.factors[t]).__name__, float(exponents[(*row, t)])
            where = f" in row {row[0]}" if row else ""
            return f"Factor {t} is a {kind} with exponent {exponent:.6g}{where}."

        message = (
            "expectation-maximisation climbs only while exponents of mixtures are not negative. "
            "Use a Gaussian for what is divided out (a prior, removed data), or weights ≥ 0."
        )
        return require(exponents, ~jnp.any(downhill), message, which)


def _flat(factors: list[Any], exponents: Float[Array, "*A T"]) -> tuple[list[Any], Array]:
    """The same with the factors of inner products as factors."""
    flat: list[Any] = []
    powers: list[Array] = []
    for t, factor in enumerate(factors):
        is_product = isinstance(factor, Product)
        flat += factor.factors if is_product else [factor]
        power = exponents[..., t, None]
        powers.append(_outer(power, factor.exponents) if is_product else power)
    weightings = max((x.shape[:-1] for x in powers), key=len)
    powers = [jnp.broadcast_to(x, (*weightings, x.shape[-1])) for x in powers]
    return flat, jnp.concatenate(powers, axis=-1)


def _outer(power: Float[Array, "*A 1"], exponents: Float[Array, "*B T"]) -> Float[Array, "*C T"]:
    ndim = max(power.ndim, exponents.ndim)
    power, exponents = (x.reshape((1,) * (ndim - x.ndim) + x.shape) for x in (power, exponents))
    return power * exponents


def _require_same_family(first: Any, second: Any) -> None:
    kinds = [_family(first), _family(second)]
    if kinds[0] is not kinds[1]:
        names = " and of ".join(kind.__name__.removeprefix("Abstract") for kind in kinds)
        raise TypeError(
            f"factors are of {names}, which are not members of one exponential family, so their "
            "product has no minorizer."
        )


def _family(factor: Any) -> type:
    """Gaussians of all structures are one."""
    if isinstance(factor, Product):
        return _family(factor.factors[0])
    components = factor if is_single(factor) else factor.components
    return AbstractGaussian if isinstance(components, AbstractGaussian) else type(components)


def _times(left: Any, right: Any, exponent: float) -> Any:
    if not (isinstance(left, AbstractPosterior) and isinstance(right, AbstractPosterior)):
        return NotImplemented
    return Product([left, right], jnp.array([1.0, exponent]))


def _require_factor(factor: Any) -> None:
    if not isinstance(factor, AbstractPosterior):
        raise TypeError(
            f"a factor is a {type(factor).__name__}, and it must be a posterior: an exponential "
            "family, a Mixture or a Product."
        )
    batch_shape = getattr(factor, "batch_shape", ())
    if batch_shape:
        raise ValueError(
            f"a factor is a batch of posteriors, {batch_shape}: multiply one of each at a "
            "time, or make it a `Mixture`."
        )
