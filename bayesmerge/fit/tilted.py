"""Gaussian likelihood factors under a prior that is no Gaussian: p(θ) ∝ G(θ) e^{−R_0(θ)}."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from bayesmerge.families.base import AbstractPosterior
from bayesmerge.families.checks import all_finite, require
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import Full
from bayesmerge.families.show import over, safely
from bayesmerge.fit.absorb import PriorTarget
from bayesmerge.fit.optimise import find_mode
from bayesmerge.priors import ExactPrior, as_prior

NO_START = (
    "the Gaussian factors and the prior have no maximum together near the tasks' modes: the "
    "shards' likelihoods are not concave there, or weights below zero subtract more precision "
    "than the posteriors have. Look for the joint mode with "
    "`find_mode(JointTarget(targets, weights))` and expand there with `refine`, or choose other "
    "coordinates (centred or not) of the model."
)


class Tilted(AbstractPosterior):
    r"""$p(\theta) \propto G(\theta)\,p_0(\theta)$: a Gaussian factor under an exact prior.

    What `merge` returns where the prior is exact: $G = \prod_t \hat L_t^{\alpha_t}$ with the
    Gaussian factors $\hat L_t$ of the tasks' likelihoods, and the prior once, as it is.

    - `factor`: G, proper or not.
    - `prior`: p_0, an `ExactPrior`.
    - `near`: a Gaussian in the place of p, from whose mode to look for that of p.

    `*` and `/` by Gaussian factors add and remove likelihoods. Draws are those of `laplace()`, or
    exact by MCMC on `bayesmerge.numpyro.with_factor(model, p.factor)`.

    Source: FP equation 5, with p_0 left as it is; Minka (2001) for the name.
    """

    __repr__ = safely(lambda q: _show(q))

    factor: AbstractGaussian
    prior: ExactPrior
    near: AbstractGaussian

    @property
    def layout(self) -> Layout:
        """The layout of θ."""
        return self.factor.layout

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The axes of a batch of weightings; () for one."""
        return self.factor.batch_shape

    def log_density(self, theta: PyTree) -> Float[Array, "*batch"]:
        """log G(θ) − R_0(θ)."""
        return self.factor.log_density(theta) - self.prior.energy(theta)

    def log_ratio(self, theta: PyTree, reference: PyTree) -> Float[Array, ""]:
        """log p(θ)/p(θ')."""
        gap = self.prior.energy(theta) - self.prior.energy(reference)
        return self.factor.log_ratio(theta, reference) - gap

    def mode(self, start: PyTree | None = None) -> PyTree:
        """argmax log G(θ) − R_0(θ), by L-BFGS and Newton's method.

        - `start`: θ; by default the mode of `near`.

        **Warns** with a `ConvergenceWarning` where the search stopped short.
        """
        if self.batch_shape:
            return jax.vmap(lambda g, n: Tilted(g, self.prior, n).mode(start))(
                self.factor, self.near
            )
        start = self.near.solve(self.near.linear) if start is None else start
        start = require(start, all_finite(start), NO_START)
        energy = PriorTarget(self.prior)
        return find_mode(energy, self.factor, start=start, method="newton").params

    def laplace(self, params: PyTree | None = None) -> Any:
        r"""$\mathcal N(\hat\theta, H^{-1})$ with $H = \Lambda_G + \nabla^2 R_0(\hat\theta)$.

        - `params`: θ̂; by default `mode()`.

        **Returns** a Gaussian, improper where H is not positive definite.
        """
        theta = self.mode() if params is None else params
        if self.batch_shape:
            return jax.vmap(lambda g, n, t: Tilted(g, self.prior, n).laplace(t))(
                self.factor, self.near, theta
            )
        return self.factor * self.prior.site(theta, Full())

    def minorizer(self, theta: PyTree) -> Any:
        raise TypeError("an exact prior has no minorizer: use `mode()` and `laplace()`.")

    def blend(self) -> Any:
        """`near`."""
        return self.near

    def std(self) -> PyTree:
        """√Var of `laplace()`, entry by entry, as draws are those of `laplace()`."""
        return self.laplace().std()

    def marginals(self) -> PyTree:
        """Marginal distributions of `laplace()`, as of every family."""
        return self.laplace().marginals()

    def quantile(self, p: ArrayLike | Sequence[Any]) -> PyTree:
        """Marginal quantiles of `laplace()`; `p` as of every family."""
        return self.laplace().quantile(p)

    def sample(self, key: PRNGKeyArray, shape: int | tuple[int, ...] = ()) -> PyTree:
        """Draws of `laplace()`."""
        return self.laplace().sample(key, shape)

    def __mul__(self, other: Any) -> "Tilted":
        if not isinstance(other, AbstractGaussian):
            return NotImplemented
        return Tilted(self.factor * other, self.prior, self.near * other)

    def __truediv__(self, other: Any) -> "Tilted":
        if not isinstance(other, AbstractGaussian):
            return NotImplemented
        return self * other**-1.0


def _show(posterior: Tilted) -> str:
    head = f"Tilted {over(posterior.layout)}: a Gaussian factor under an exact prior, near"
    return f"{head}\n{posterior.near!r}"


def likelihood_factor(posterior: Any, prior: Any) -> Any:
    r"""$\hat L = q/p_0$, the likelihood in a posterior: what of it multiplies.

    - `posterior`: q, with the prior in it.
    - `prior`: p_0 of an exponential family; an `ExactPrior`, whose expansion at the mode of q is
      divided out, which for Laplace posteriors gives `laplace(…, include_prior=False)`; or `None`,
      which leaves q.

    **Returns** a factor, often improper.

    **Raises** `TypeError` for a posterior that is not Gaussian, where the prior is exact.
    """
    held = as_prior(prior)
    if held.is_flat:
        return posterior
    if held.is_closed:
        return posterior / held.given
    if not isinstance(posterior, AbstractGaussian):
        raise TypeError(
            f"the prior is not Gaussian, and a posterior is a {type(posterior).__name__}: its "
            "likelihood can be told from such a prior for Gaussian posteriors only. Use `laplace` "
            "or `von`, or `posterior.collapse()` of a mixture."
        )
    return posterior / held.site(posterior.mode(), posterior.precision.structure)


def tilt(posteriors: list[Any], alpha: Float[Array, "..."], prior: ExactPrior) -> Tilted:
    """p_0 Π (q_t/p̂_0t)^{α_t}, p̂_0t the Gaussian that stands for p_0 in q_t: FP-5 with
    γ + Σα_t = 1 times p_0."""
    factors = [likelihood_factor(q, prior) for q in posteriors]
    sites = [q / factor for q, factor in zip(posteriors, factors, strict=True)]
    site = product(sites, jnp.full(len(sites), 1 / len(sites)))
    if alpha.ndim == 2:
        factor = jax.vmap(lambda a: product(factors, a))(alpha)
    else:
        factor = product(factors, alpha)
    return Tilted(factor, prior, factor * site)


def product(factors: list[Any], alpha: Float[Array, " T"]) -> Any:
    """Π_t factor_t^{α_t}."""
    return functools.reduce(operator.mul, [f ** alpha[t] for t, f in enumerate(factors)])
