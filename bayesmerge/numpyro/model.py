"""A NumPyro model with its data, in unconstrained coordinates θ."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bayesmerge.arrays import as_rows
from bayesmerge.families.checks import is_concrete, require_finite
from bayesmerge.families.layout import Layout
from bayesmerge.families.recognise import gaussian_of
from bayesmerge.numpyro import sites
from bayesmerge.numpyro.arguments import Arguments, bound, depth_of_caller
from bayesmerge.numpyro.data import not_finite
from bayesmerge.numpyro.guides import guide_posterior
from bayesmerge.numpyro.outputs import Summary, arviz_data, draws_by_site, predictive, summary
from bayesmerge.numpyro.priors import to_numpyro
from bayesmerge.numpyro.sites import Sites, Trace

PRIOR_DRAWS = 31


class Model(eqx.Module):
    r"""A NumPyro model and its data, $\log p(\theta, y) = \log p_0(\theta) + \log p(y \mid
    \theta)$.

    θ is a dictionary from the names of latent sites to their unconstrained coordinates, those of
    `numpyro.distributions.biject_to(support)`: log σ for a scale, log-ratios for a simplex. p_0 is
    the density of the latent sites in these coordinates, Jacobians included; the likelihood is that
    of the observed sites.

    - `function`: the model. Pass the same function for every shard: programs are compiled for it.
    - `args`, `kwargs`: its arguments, anything that NumPyro takes. Arrays among them, in
      dictionaries, tuples and lists too, are arguments of compiled programs: other data of the same
      shapes cost no compilation. Everything else is as it was given, and a constant of the
      programs: numbers, strings, lists of numbers, data frames, and arrays at whose values the
      model looks while it runs (`np.asarray`, `float`, `if`). Other constants cost a compilation:
      a warning says so once for every model that has data among them.

    A `numpyro.factor` counts as likelihood, and so once for every shard. One that belongs to the
    prior (a soft constraint) is marked:
    `numpyro.handlers.infer_config(model, lambda site: {"prior": site["name"] == "constraint"})`.

    **Raises** `ValueError` or `TypeError` for a model that cannot be merged, naming the site, and
    for numbers that JAX cannot hold (integers beyond 32 bits, unless 64 are enabled).

    ```python
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from bayesmerge.numpyro import Model
    >>> def model(y):
    ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    ...     numpyro.sample("y", dist.Poisson(rate), obs=y)
    >>> bound = Model(model, jnp.array([3, 5]))
    >>> theta = {"rate": jnp.array(0.0)}  # log rate
    >>> bound.log_prior(theta), bound.log_likelihood(theta)
    (Array(-1., dtype=float32), Array(-8.579...))

    ```
    """

    function: Callable[..., Any] = eqx.field(static=True)
    arguments: Arguments
    rows: dict[str, Array]
    sites: Sites = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    def __init__(self, function: Any, *args: Any, **kwargs: Any):
        if not callable(function):
            raise TypeError(
                f"model is a {type(function).__name__}, and it must be a function with NumPyro's "
                "primitives."
            )
        self.function = function
        self.arguments = bound(function, args, kwargs, self._look)
        self.rows = {}
        self.sites = self._fixed_structure()
        for repetition in self.sites.repeated:
            warnings.warn(f"{repetition}.", stacklevel=depth_of_caller())
        dtype = jnp.result_type(float)
        shapes = {name: jnp.zeros(shape, dtype) for name, shape in self.sites.latent.items()}
        self.layout = Layout.of(shapes)

    @property
    def args(self) -> tuple[Any, ...]:
        """The model's positional arguments."""
        return self.arguments()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its keyword arguments."""
        return self.arguments()[1]

    def trace(self, theta: PyTree) -> Trace:
        """The model's trace at θ, its plates whole."""
        return self._run(theta=theta)

    def log_prior(self, theta: PyTree) -> Float[Array, ""]:
        """log p_0(θ), in unconstrained coordinates, Jacobians included."""
        trace = self.trace(theta)
        return _total(sites.weighted_log_prob(s) for s in trace.values() if sites.is_prior(s))

    def log_likelihoods(self, theta: PyTree) -> dict[str, Array]:
        """log p(y_i | θ) of every observation, by observed site: as `numpyro.infer.log_likelihood`,
        without the weights of `handlers.scale`."""
        trace = self.trace(theta)
        return {name: sites.log_prob(trace[name]) for name in self.sites.observed}

    def weighted_log_likelihoods(self, theta: PyTree) -> dict[str, Array]:
        """w_i log p(y_i | θ), what every observation adds to the log-density, with the weights of
        `handlers.scale` and of plates that subsample."""
        trace = self.trace(theta)
        return {name: sites.weighted_log_prob(trace[name]) for name in self.sites.observed}

    def log_likelihood(self, theta: PyTree) -> Float[Array, ""]:
        """log p(y | θ), the sum of `weighted_log_likelihoods`."""
        return _total(self.weighted_log_likelihoods(theta).values())

    def gaussian_prior(self) -> Any:
        """p_0 where it is a Gaussian in unconstrained coordinates, or `None`."""
        return gaussian_of(self.log_prior, self.layout)

    def start(self) -> PyTree:
        """A place to look for modes from: the median of 31 draws from p_0, entry by entry, or a
        point near the origin where that has the higher density (as under a very wide prior)."""
        return _start(self)

    def check(self, theta: PyTree) -> None:
        """Nothing, or an error where data that are not finite make the density at θ so, or where it
        depends on random numbers that are no site's."""
        (one, possible), (other, _) = (_at(self, theta, jax.random.key(seed)) for seed in (1, 2))
        if not is_concrete((one, other)):
            return
        if not np.isfinite(one) and (where := not_finite(self.arguments.named(self.function))):
            raise sites.ModelError(
                f"the model's data must be finite where it uses them: {'; '.join(where)}, and "
                f"{self._worst_site(theta)} where fits begin. Leave out these rows, or mask "
                "them: `handlers.mask(mask=jnp.isfinite(y))` around the observed site."
            )
        self._warn_of([name for name, holds in possible.items() if not holds], theta)
        if not np.array_equal(one, other, equal_nan=True):
            raise sites.ModelError(
                "the model draws random numbers outside of its sample sites (`numpyro.prng_key`): "
                f"its log-density at one θ is {one:.6g} and {other:.6g} in two runs. Make them "
                "sample sites, or pass them as data."
            )

    def constrain(self, theta: PyTree) -> dict[str, Array]:
        """The values of latent and deterministic sites at θ.

        **Raises** `ValueError` where `theta` is not shaped as the model's parameters.
        """
        theta = self._checked(theta)
        trace = self.trace(theta)
        return {
            name: site["value"]
            for name, site in trace.items()
            if sites.is_latent(site) or site["type"] == "deterministic"
        }

    def unconstrain(self, values: Mapping[str, Any]) -> PyTree:
        r"""Draws by site, in their supports, as draws of θ. Any shard of a model does for draws of
        any other, where supports do not depend on data.

        - `values`: arrays with any leading axes of draws, the same for all, such as
          `mcmc.get_samples()` (its chains concatenated, as `moment_matched` wants them); sites that
          are not latent (deterministic ones) are passed over.

        **Returns** θ with the same leading axes, for `bayesmerge.fit.moment_matched`.

        **Raises** `ValueError` for missing sites, and values outside of their supports.
        """
        missing = [name for name in self.site_names if name not in values]
        if missing:
            raise ValueError(
                f"values lack the latent sites {missing}; they have {sorted(values)}, and the "
                f"model has {list(self.site_names)}."
            )
        latent = as_rows({name: values[name] for name in self.site_names}, "values")
        theta = _unconstrained(self, latent)
        return require_finite(theta, "the values in unconstrained coordinates")

    def from_guide(self, guide: Any, params: Mapping[str, Any]) -> Any:
        r"""The posterior that a trained guide is.

        - `guide`: AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal,
          AutoLowRankMultivariateNormal, AutoLaplaceApproximation, or a function with a site for
          every latent site that is Gaussian in unconstrained coordinates (`Normal` for real sites,
          `LogNormal` for positive ones), whether or not it is mean-field.
        - `params`: of the guide, `svi_result.params`.

        **Returns** a `DiagonalGaussian` or a `FullGaussian`, with the guide's density: the prior is
        in it, as in every posterior.

        **Raises** `TypeError` for guides that are not Gaussian (flows, points), `ValueError` for
        those of another model.

        ```python
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from bayesmerge.numpyro import Model
        >>> def model(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     numpyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> def guide(y):
        ...     numpyro.sample("scale", dist.LogNormal(numpyro.param("m", 0.0), 0.5))
        >>> Model(model, jnp.ones(3)).from_guide(guide, {"m": jnp.array(0.25)}).mode()
        {'scale': Array(0.25, dtype=float32)}

        ```
        """
        if not isinstance(params, Mapping):
            raise TypeError(
                f"params is a {type(params).__name__}, and it must be a dictionary: pass "
                "`svi_result.params`, or `svi.get_params(state)`."
            )
        return guide_posterior(self, guide, jax.tree.map(jnp.asarray, dict(params)))

    def draws(
        self,
        posterior: Any,
        key: PRNGKeyArray,
        num_samples: int = 1000,
        *,
        deterministic: bool = True,
    ) -> dict[str, Array]:
        """Draws from a posterior over θ, by site and in the sites' own supports.

        - `posterior`: q, anything with `sample`.
        - `key`, `num_samples`: of the draws.
        - `deterministic`: whether to return deterministic sites too.

        **Returns** arrays with a leading axis `num_samples`.
        """
        return draws_by_site(self, posterior, key, num_samples, deterministic)

    def summary(
        self,
        posterior: Any,
        key: PRNGKeyArray,
        num_samples: int = 4000,
        *,
        deterministic: bool = True,
    ) -> Summary:
        """Means, standard deviations and 90 % intervals by site, in the sites' own supports: of σ
        where θ has log σ.

        - `posterior`, `key`, `num_samples`, `deterministic`: as in `draws`, of which they are.

        ```python
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, bayesmerge as bm
        >>> def model(y):
        ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     numpyro.sample("y", dist.Poisson(rate), obs=y)
        >>> target = bm.numpyro.target(model, jnp.array([3, 5]))
        >>> target.model.summary(bm.laplace(target, bm.numpyro.prior(target)), jax.random.key(0))
               mean     sd    5 %   95 %
        rate  3.472  1.113  1.972  5.524

        ```
        """
        return summary(self, posterior, key, num_samples, deterministic)

    def predictive(self, posterior: Any, key: PRNGKeyArray, num_samples: int = 1000) -> Any:
        """NumPyro's `Predictive` at draws from a posterior: call it with a key and new data.

        - `posterior`, `key`, `num_samples`: as in `draws`.
        """
        return predictive(self, posterior, key, num_samples)

    def to_arviz(
        self,
        posterior: Any,
        key: PRNGKeyArray,
        num_samples: int = 1000,
        *,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Any] | None = None,
    ) -> Any:
        """Draws, predictions, log-likelihoods and data of these observations, for ArviZ.

        - `posterior`, `key`, `num_samples`: as in `draws`. Draws are independent; they are put into
          four chains where their number allows (or three, two, one; at least four draws each), as
          `az.summary` wants them for R̂.
        - `coords`: labels of axes, by the axes' names.
        - `dims`: names of the axes of a site (of its last ones, where there are fewer); by default
          those of its plates. Log-likelihoods have no axes for the entries of a multivariate event.

        **Returns** an `arviz.InferenceData` where ArviZ before 1.0 is installed, and otherwise an
        `xarray.DataTree`, with the groups `posterior`, `posterior_predictive`, `log_likelihood` and
        `observed_data`. Log-likelihoods are those of single observations, as leave-one-out
        cross-validation wants them: without the weights of `handlers.scale`, without factors.

        **Raises** `ValueError` for names that are no sites, and labels of another number.
        """
        return arviz_data(self, posterior, key, num_samples, coords, dims)

    def to_numpyro(self, posterior: Any) -> dict[str, Any]:
        """The posterior's marginals by site, as `bayesmerge.numpyro.to_numpyro`."""
        return to_numpyro(posterior, self)

    @property
    def site_names(self) -> tuple[str, ...]:
        """The names of the latent sites, in the order of θ."""
        return tuple(sorted(self.sites.latent))

    def _run(self, **options: Any) -> Trace:
        return sites.run(self.function, *self.arguments(), rows=self.rows, **options)

    def _checked(self, theta: PyTree) -> PyTree:
        self.layout.require_same(Layout.of(theta), "the model and theta")
        return theta

    def _worst_site(self, theta: PyTree) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, log_p in self.log_likelihoods(theta).items():
                values = np.ravel(log_p)
                if not np.all(np.isfinite(values)):
                    worst = values[~np.isfinite(values)][0]
                    return f"the log-likelihood of site '{name}' is {worst}"
        return "the log-density is not finite"

    def _warn_of(self, outside: list[str], theta: PyTree) -> None:
        """A warning of observations that their distributions do not allow."""
        if not outside:
            return
        site = self.trace(theta)[outside[0]]
        value, holds = np.asarray(site["value"]), np.asarray(sites.in_support(site))
        index = tuple(np.argwhere(~holds)[0].tolist())
        at = index[len(index) - max(value.ndim - site["fn"].event_dim, 0) :]
        warnings.warn(
            f"site '{outside[0]}' has {int(np.sum(~holds))} observations outside of the support of "
            f"its {sites.kind_of(site)}, the first {value[at]} at index {index}: what their "
            "log-probability is has no meaning. Counts and categories begin at 0, and a total is "
            "at least its count.",
            stacklevel=depth_of_caller(),
        )

    def _look(self, arguments: Arguments, seed: int = 0) -> Sites:
        """The model's sites, its arrays traced."""
        found: list[Sites] = []

        def look(arrays: list[Array], key: PRNGKeyArray) -> None:
            traced = eqx.tree_at(lambda a: a.arrays, arguments, arrays)
            found.append(Sites.of(sites.run(self.function, *traced(), seed=key)))

        jax.eval_shape(look, arguments.arrays, jax.random.key(seed))
        return found[0]

    def _fixed_structure(self) -> Sites:
        """The model's sites, the same whatever is drawn."""
        first, second = (self._look(self.arguments, seed) for seed in (0, 1))
        if first != second:
            raise sites.ModelError(
                "the model has another structure each time it is run: its latent and observed "
                f"sites were {first.latent | first.observed} and then "
                f"{second.latent | second.observed}. Which sites there are, and their shapes, must "
                "depend on nothing random."
            )
        return first


def _total(terms: Iterable[Array]) -> Float[Array, ""]:
    return sum((jnp.sum(log_p) for log_p in terms), start=jnp.zeros(()))


@eqx.filter_jit
def _at(
    model: Model, theta: PyTree, seed: PRNGKeyArray
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """log p(θ, y), and by site whether all observations can be such."""
    trace = model._run(theta=theta, seed=seed)
    log_p = _total(sites.weighted_log_prob(s) for s in trace.values() if s["type"] == "sample")
    possible = {name: sites.in_support(trace[name]) for name in model.sites.observed}
    return log_p, {name: jnp.all(holds) for name, holds in possible.items() if holds is not None}


@eqx.filter_jit
def _start(model: Model) -> PyTree:
    def draw(key: PRNGKeyArray) -> PyTree:
        trace = model._run(seed=key)
        return {name: sites.unconstrain(trace[name]) for name in model.site_names}

    draws = jax.vmap(draw)(jax.random.split(jax.random.key(0), PRIOR_DRAWS))
    vectors = jax.vmap(model.layout.ravel)(draws)
    median = jnp.median(vectors, axis=0)
    origin = jax.random.uniform(jax.random.key(1), median.shape, median.dtype, -0.5, 0.5)

    def height(vector: Array) -> Array:
        theta = model.layout.unravel(vector)
        log_p = model.log_prior(theta) + model.log_likelihood(theta)
        return jnp.where(jnp.isfinite(log_p), log_p, -jnp.inf)

    return model.layout.unravel(jnp.where(height(origin) > height(median), origin, median))


@eqx.filter_jit
def _unconstrained(model: Model, values: dict[str, Array]) -> PyTree:
    trace = model._run(seed=jax.random.key(0))
    name = model.site_names[0]
    extra = values[name].ndim - jnp.ndim(trace[name]["value"])

    def one(values: dict[str, Array]) -> PyTree:
        at = model._run(values=values)
        return {name: sites.unconstrain(at[name]) for name in model.site_names}

    for _ in range(extra):
        one = jax.vmap(one)
    return one(values)
