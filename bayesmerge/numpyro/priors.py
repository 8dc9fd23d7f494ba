"""Posteriors as stock distributions of NumPyro, and as the prior of the next model."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ReshapeTransform
from numpyro.primitives import Messenger

from bayesmerge.families.beta import Beta
from bayesmerge.families.checks import is_concrete
from bayesmerge.families.dirichlet import Dirichlet
from bayesmerge.families.gamma import Gamma
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.linear_algebra import solve_triangular
from bayesmerge.mixtures.mixture import Mixture
from bayesmerge.numpyro import sites


def to_numpyro(posterior: Any, model: Any = None) -> Any:
    r"""A posterior as stock distributions of NumPyro.

    - `posterior`: q, any family, or a `Mixture` over one array.
    - `model`: the `bayesmerge.numpyro.Model` whose parameters q is over (`target.model`): sites are
      then distributions on their own supports, $T_s(\mathcal N(\mu_s, \Sigma_{ss}))$. Without it,
      in the coordinates of q.

    **Returns** a distribution; for θ a dictionary, a dictionary of them by site. Those of a full
    Gaussian are its marginals: `replace_prior` keeps the correlations between sites.

    **Raises** `TypeError` for a posterior that NumPyro has no distribution for, `ValueError` for an
    improper one.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.numpyro import to_numpyro
    >>> prior = to_numpyro(bm.Gamma.from_shape_rate(jnp.array(3.0), jnp.array(2.0)))
    >>> type(prior).__name__, prior.concentration, prior.rate
    ('Gamma', Array(3., dtype=float32), Array(2., dtype=float32))

    ```
    """
    if model is not None:
        model.layout.require_same(posterior.layout, "the model and the posterior")
    posterior = _as_gaussian(posterior)
    if isinstance(posterior, AbstractGaussian):
        return _gaussian(posterior, model)
    if isinstance(posterior, Mixture):
        weights = dist.Categorical(logits=posterior.log_weights)
        return dist.MixtureSameFamily(weights, to_numpyro(posterior.components))
    stock = _conjugate(posterior)
    if stock is None:
        raise TypeError(
            f"posterior is a {type(posterior).__name__}, which is no distribution of NumPyro: use "
            "`laplace()` of a product, or draws."
        )
    return stock


def replace_prior(model: Callable[..., Any], posterior: AbstractGaussian) -> Callable[..., Any]:
    r"""The model with a posterior for its prior, site by site and jointly.

    The sites that q is over keep their names and supports, and are drawn one given those before it,
    $q(\theta) = \prod_s q(\theta_s \mid \theta_1 \dots \theta_{s-1})$, each a normal distribution
    seen through the site's transform. Other sites keep their priors, and plates stay.

    - `model`: a NumPyro model; its latent sites include those of q.
    - `posterior`: q, a Gaussian over a dictionary of unconstrained sites, proper.

    **Returns** a NumPyro model, for `NUTS`, `SVI` or `bayesmerge.numpyro.target`.

    **Raises** `ValueError` where a site of q is not in the model, or has another shape there.

    ```python
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, bayesmerge as bm
    >>> from bayesmerge.numpyro import replace_prior
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> y = jnp.array([3.0])
    >>> q = bm.laplace(bm.numpyro.target(model, y), bm.numpyro.prior(model, y))
    >>> again = bm.numpyro.target(replace_prior(model, q), jnp.array([6.0]))
    >>> both = bm.laplace(again, bm.numpyro.prior(again))  # as from both data at once
    >>> f"{both.mode()['mean']:.3f}"
    '3.000'

    ```
    """
    posterior = _as_gaussian(posterior)
    if not isinstance(posterior, AbstractGaussian) or posterior.batch_shape:
        raise TypeError(
            f"posterior is a {type(posterior).__name__}, and it must be one Gaussian over a "
            "dictionary of sites, such as `laplace` returns."
        )
    chain = _Chain(posterior)

    @functools.wraps(model)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        handler = _Drawn(chain)
        with handler:
            result = model(*args, **kwargs)
        missing = [name for name in chain.means if name not in handler.seen]
        if missing:
            raise sites.ModelError(
                f"the model has no latent sites {missing}, which the posterior is over (or they "
                f"are observed or conditioned on); it has {sorted(handler.latent)}."
            )
        return result

    return replaced


def with_factor(model: Callable[..., Any], factor: Any, name: str = "shards") -> Callable[..., Any]:
    r"""The model with what other shards have learnt, $p_0(\theta)\,G(\theta)\,p(y \mid \theta)$.

    Its prior stays as it is, G multiplies it as a `numpyro.factor`. So NUTS on it draws from the
    merged posterior with its exact prior. Where there are no data left, write the prior's sites as
    a function of their own, which the model calls, and pass that: a site without `obs` is drawn.

    - `model`: a NumPyro model.
    - `factor`: G, over the model's latent sites: `merge(…).factor` where the prior is exact, or a
      product of what `likelihood_factor` returns. It may be improper.
    - `name`: of the factor's site.

    **Returns** a NumPyro model.

    **Raises** `ValueError` where the model lacks a site of G.

    ```python
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, bayesmerge as bm
    >>> from bayesmerge.numpyro import with_factor
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> prior = bm.numpyro.prior(model, jnp.array([3.0]))
    >>> target = bm.numpyro.target(model, jnp.array([3.0]))
    >>> factor = bm.laplace(target, prior, include_prior=False)
    >>> both = bm.numpyro.target(with_factor(model, factor), jnp.array([6.0]))
    >>> f"{bm.laplace(both, prior).mode()['mean']:.3f}"
    '3.000'

    ```
    """
    if not isinstance(factor, AbstractGaussian) or factor.batch_shape:
        raise TypeError(
            f"factor is a {type(factor).__name__}, and it must be one Gaussian: the `factor` of "
            "what `merge` returns with an exact prior, or a `likelihood_factor`."
        )
    if not isinstance(factor.linear, dict):
        raise TypeError("the factor is not over a dictionary of sites, such as a model's.")
    proper = is_concrete(factor) and bool(factor.is_proper())
    mean = factor.mode() if proper else None

    @functools.wraps(model)
    def weighted(*args: Any, **kwargs: Any) -> Any:
        with handlers.trace() as trace:
            result = model(*args, **kwargs)
        missing = [site for site in factor.linear if site not in trace]
        if missing:
            raise sites.ModelError(
                f"the model has no sites {missing}, which the factor is over; it has {list(trace)}."
            )
        theta = {site: sites.unconstrain(trace[site]) for site in factor.linear}
        factor.layout.require_same(Layout.of(theta), "the factor and the model")
        log_factor = factor.log_ratio_to_mean(theta, mean) if proper else factor.log_density(theta)
        numpyro.factor(name, log_factor)
        return result

    return weighted


class _Chain:
    """A Gaussian as a chain of conditionals of its sites, in any order of them."""

    def __init__(self, posterior: AbstractGaussian):
        mean = posterior.mode()
        if not isinstance(mean, dict):
            raise TypeError("the posterior is not over a dictionary of sites, such as a model's.")
        self.means = {name: jnp.asarray(x) for name, x in mean.items()}
        self.covariance = posterior.covariance() if _is_full(posterior) else None
        self.sds = jax.tree.map(jnp.sqrt, posterior.variance())
        self.columns = _columns(posterior.layout)
        self._known: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def given(self, name: str, before: dict[str, Array]) -> tuple[Array, Array]:
        """The mean of site `name` given the sites `before`, and its flat Cholesky factor."""
        gain, factor = self._regression((*before, name))
        away = [jnp.ravel(z - self.means[other]) for other, z in before.items()]
        mean = self.means[name]
        if away:
            mean = mean + (gain @ jnp.concatenate(away)).reshape(mean.shape)
        return mean, jnp.asarray(factor)

    def _regression(self, order: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        if order not in self._known:
            S = np.asarray(self.covariance)
            mine = self.columns[order[-1]]
            others = np.concatenate([[], *(self.columns[n] for n in order[:-1])]).astype(int)
            gain = np.linalg.solve(S[np.ix_(others, others)], S[np.ix_(others, mine)]).T
            rest = S[np.ix_(mine, mine)] - gain @ S[np.ix_(others, mine)]
            self._known[order] = gain, np.linalg.cholesky(0.5 * (rest + rest.T))
        return self._known[order]


class _Correlated(dist.Distribution):
    """N(μ, LLᵀ) over an array of correlated entries, for plates a batch: entry i of `log_prob` is
    log q(z_i | z_1 … z_{i−1})."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, mean: Array, factor: Array):
        self.mean_, self.factor = mean, factor
        super().__init__(batch_shape=mean.shape)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.normal(key, (*sample_shape, self.mean_.size), self.mean_.dtype)
        away = (noise @ self.factor.T).reshape(*sample_shape, *self.mean_.shape)
        return jnp.broadcast_to(self.mean_, away.shape) + away

    def log_prob(self, value: Array) -> Array:
        away = (value - jnp.broadcast_to(self.mean_, jnp.shape(value))).reshape(
            -1, len(self.factor)
        )
        noise = solve_triangular(self.factor, away.T).T
        heights = dist.Normal(0.0, 1.0).log_prob(noise) - jnp.log(jnp.diag(self.factor))[None, :]
        return heights.reshape(jnp.shape(value))


class _Drawn(Messenger):
    """Latent sites drawn from a chain of conditionals."""

    def __init__(self, chain: _Chain):
        super().__init__(None)
        self.chain = chain
        self.seen: dict[str, Any] = {}
        self.latent: list[str] = []

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name, chain = msg["name"], self.chain
        self.latent.append(name)
        if name not in chain.means:
            return
        if msg.get("_control_flow_done"):
            raise sites.ModelError(
                f"site '{name}' is drawn within `scan`, where its prior cannot be replaced: use "
                "`with_factor`, or write the loop as a plate or a Python loop."
            )
        msg["scale"] = None
        transform = biject_to(msg["fn"].support)
        shape, expected = chain.means[name].shape, transform.inverse_shape(msg["fn"].shape())
        if shape != tuple(expected):
            raise sites.ModelError(
                f"site '{name}' has unconstrained shape {tuple(expected)} in the model and {shape} "
                "in the posterior."
            )
        if chain.covariance is None:
            base: Any = dist.Normal(chain.means[name], chain.sds[name])
        else:
            base = _Correlated(*chain.given(name, self.seen))
        base = base.to_event(transform.domain.event_dim)
        msg["fn"] = dist.TransformedDistribution(base, transform)

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["name"] in self.chain.means:
            self.seen[msg["name"]] = sites.unconstrain(msg)


def _columns(layout: Layout) -> dict[str, np.ndarray]:
    """Which entries of the flat θ belong to a site."""
    sizes = [math.prod(shape) for shape in layout.shapes]
    parts = np.split(np.arange(layout.size), np.cumsum(sizes)[:-1])
    return jax.tree.unflatten(layout.structure, parts)


def _as_gaussian(posterior: Any) -> Any:
    """The Laplace approximation of a merge with an exact prior, anything else as it is."""
    is_lazy = hasattr(posterior, "laplace") and hasattr(posterior, "near")
    return posterior.laplace() if is_lazy else posterior


def _is_full(posterior: Any) -> bool:
    return not posterior.precision.structure.is_entrywise


def _gaussian(posterior: AbstractGaussian, model: Any) -> Any:
    mean = posterior.mode()
    if not isinstance(mean, dict):
        if _is_full(posterior):
            return dist.MultivariateNormal(mean, precision_matrix=posterior.precision_matrix())
        deviation = jax.tree.map(jnp.sqrt, posterior.variance())
        ndim = len(posterior.layout.shapes[0])
        return dist.Normal(mean, jnp.broadcast_to(deviation, mean.shape)).to_event(ndim)
    chain = _Chain(posterior)
    trace = {} if model is None else model.trace(mean)
    stock = {}
    for name, centre in mean.items():
        if chain.covariance is None:
            base: Any = dist.Normal(centre, chain.sds[name]).to_event(centre.ndim)
            steps = []
        else:
            factor = jnp.asarray(chain._regression((name,))[1])
            base = dist.MultivariateNormal(jnp.ravel(centre), scale_tril=factor)
            steps = [ReshapeTransform(centre.shape, (centre.size,))]
        if model is not None:
            steps.append(biject_to(trace[name]["fn"].support))
        stock[name] = dist.TransformedDistribution(base, steps) if steps else base
    return stock


def _conjugate(posterior: Any) -> Any:
    if isinstance(posterior, Beta):
        return dist.Beta(*posterior.concentrations)
    if isinstance(posterior, Dirichlet):
        return dist.Dirichlet(posterior.concentrations)
    if isinstance(posterior, Gamma):
        return dist.Gamma(posterior.shape, posterior.rate)
    return None
