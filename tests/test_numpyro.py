"""NumPyro in, ArviZ out: against its own densities, guides and predictions, and closed forms."""

import functools
import operator
import random
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from model_zoo import ZOO
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import autoguide
from numpyro.infer.util import log_likelihood, potential_energy
from scipy import stats

import bayesmerge as bm
from bayesmerge.families.layout import Layout
from bayesmerge.families.recognise import gaussian_of
from bayesmerge.fit import Tilted, moment_matched
from bayesmerge.numpyro import Model, replace_prior, to_numpyro, with_factor


@pytest.fixture(autouse=True)
def as_numpyro_is_written():
    """NumPyro's own code promotes ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


each_model = pytest.mark.parametrize(
    "name", [name for name in ZOO if not name.startswith(("linear, s", "eight", "neg", "ordinal"))]
)
some_models = pytest.mark.parametrize(
    "name", ["hierarchical, non-centred", "simplex", "correlation", "ordinal", "beta-binomial"]
)


@functools.cache
def bound(name):
    return Model(ZOO[name].model, *ZOO[name].whole())


def somewhere(model, seed=0):
    """θ within the reach of the prior."""
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(0.5 * rng.normal(size=s)) for n, s in sorted(model.sites.latent.items())}


@each_model
def test_prior_and_likelihood_are_numpyros_joint(name):
    model = bound(name)
    theta = somewhere(model)
    seeded = handlers.seed(ZOO[name].model, 0)

    @jax.jit
    def both(theta):
        energy = potential_energy(seeded, ZOO[name].whole(), {}, theta)
        return model.log_prior(theta) + model.log_likelihood(theta), -energy

    np.testing.assert_allclose(*both(theta), rtol=1e-12)


@some_models
def test_likelihood_is_that_of_the_observations(name):
    model = bound(name)
    theta = somewhere(model, 1)

    @jax.jit
    def both(theta):
        values = {n: x[None] for n, x in model.constrain(theta).items()}
        theirs = log_likelihood(ZOO[name].model, values, *ZOO[name].whole(), parallel=True)
        return model.log_likelihoods(theta), theirs

    ours, theirs = both(theta)
    assert ours.keys() == theirs.keys()
    for site, log_p in ours.items():
        np.testing.assert_allclose(log_p, theirs[site][0], rtol=1e-9, atol=1e-12)


@some_models
def test_constrained_values_come_back(name):
    model = bound(name)
    thetas = [somewhere(model, seed) for seed in range(3)]
    constrain = jax.jit(lambda theta: model.constrain(theta))
    values = [constrain(theta) for theta in thetas]
    values = {n: jnp.asarray(np.stack([v[n] for v in values])) for n in values[0]}
    back = jax.jit(lambda values: model.unconstrain(values))(values)
    for site in back:
        z = np.stack([theta[site] for theta in thetas])
        np.testing.assert_allclose(back[site], z, rtol=1e-7, atol=1e-9)


def test_linear_likelihood_by_hand():
    model = bound("linear, unknown noise")
    theta = somewhere(model)
    X, y = ZOO["linear, unknown noise"].rows()
    sigma = np.exp(theta["sigma"])
    by_hand = stats.norm.logpdf(y, X @ theta["beta"], sigma).sum()
    np.testing.assert_allclose(model.log_likelihood(theta), by_hand, rtol=1e-12)
    prior = stats.norm.logpdf(theta["beta"]).sum() + stats.halfnorm.logpdf(sigma) + theta["sigma"]
    np.testing.assert_allclose(model.log_prior(theta), prior, rtol=1e-12)


def fitted(target):
    return bm.laplace(target, bm.numpyro.prior(target))


def random_walk(y):
    def step(state, observed):
        state = numpyro.sample("state", dist.Normal(state, 1.0))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Normal(state, scale), obs=observed)
        return state, None

    scan(step, 0.0, y)


def test_a_model_with_scan():
    y = jnp.array([0.5, 1.0, -1.0, 2.0])
    target = bm.numpyro.target(random_walk, y)
    theta = somewhere(target.model)
    energy = potential_energy(handlers.seed(random_walk, 0), (y,), {}, theta)
    total = target.total(theta) - target.model.log_prior(theta)
    np.testing.assert_allclose(total, energy, rtol=1e-12)
    walk = np.linalg.inv(np.minimum.outer(np.arange(1, 5), np.arange(1, 5)))
    prior = bm.numpyro.prior(target)
    assert isinstance(prior, bm.FullGaussian)
    np.testing.assert_allclose(prior.precision.value[4:, 4:], walk, atol=1e-12)
    np.testing.assert_allclose(prior.precision.value[:4, :4], 4 * np.eye(4), atol=1e-12)


def masked(y, seen):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y)), handlers.mask(mask=seen):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_masked_observations_say_nothing():
    target = bm.numpyro.target(masked, jnp.array([1.0, 50.0]), jnp.array([True, False]))
    np.testing.assert_allclose(fitted(target).mode()["mean"], 0.5)


def constrained(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    numpyro.factor("order", -100.0 * (p[0] - p[1]) ** 2)
    numpyro.sample("y", dist.Multinomial(total_count=10, probs=p), obs=y)


def test_factors_count_as_likelihood_unless_marked():
    y = jnp.array([6, 2, 2])
    marked = handlers.infer_config(constrained, lambda site: {"prior": site["name"] == "order"})
    plain, apart = Model(constrained, y), Model(marked, y)
    theta = somewhere(plain)
    order = -100.0 * float(jnp.diff(plain.constrain(theta)["p"][:2])[0]) ** 2
    np.testing.assert_allclose(apart.log_prior(theta) - plain.log_prior(theta), order)
    np.testing.assert_allclose(plain.log_likelihood(theta) - apart.log_likelihood(theta), order)
    assert set(plain.log_likelihoods(theta)) == {"order", "y"}


def scalar_and_vector():
    return Layout.of({"a": jnp.zeros(()), "b": jnp.zeros(2)})


def joint(a, b, theta):
    return a.log_prob(theta["a"]) + jnp.sum(b.log_prob(theta["b"]))


def in_coordinates(*distributions):
    """Other numbers in the same distributions cost no compilation."""
    return eqx.Partial(joint, *jax.tree.map(jnp.asarray, distributions))


@pytest.mark.parametrize("loc", [0.0, -3.0, 1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_gaussian_densities_are_recognised(loc, scale):
    found = gaussian_of(
        in_coordinates(dist.Normal(loc, scale), dist.Normal(1.0, 2.0)), scalar_and_vector()
    )
    assert isinstance(found, bm.DiagonalGaussian)
    np.testing.assert_allclose(found.mode()["a"], loc)
    np.testing.assert_allclose(found.variance()["a"], scale**2)
    np.testing.assert_allclose(found.variance()["b"], [4.0, 4.0])


def test_correlated_gaussian_densities_are_recognised():
    precision = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]])
    normal = dist.MultivariateNormal(jnp.arange(3.0), precision_matrix=precision)
    found = gaussian_of(lambda t: normal.log_prob(jnp.append(t["a"], t["b"])), scalar_and_vector())
    assert isinstance(found, bm.FullGaussian)
    np.testing.assert_allclose(found.precision.value, precision, atol=1e-12)
    mode = np.append(found.mode()["a"], found.mode()["b"])
    np.testing.assert_allclose(mode, np.arange(3.0), atol=1e-15)


@pytest.mark.parametrize(
    "other",
    [
        dist.StudentT(4.0, 0.0, 1.0),
        dist.StudentT(4.0, 0.0, 1e4),
        dist.StudentT(200.0, 0.0, 1.0),
        dist.Laplace(0.0, 1.0),
        dist.Cauchy(0.0, 1.0),
        dist.Logistic(0.0, 1.0),
        dist.Gumbel(0.0, 1.0),
        dist.ImproperUniform(dist.constraints.real, (), ()),
    ],
    ids=lambda d: type(d).__name__,
)
@pytest.mark.parametrize("x64", [True, False])
def test_other_densities_are_not(other, x64):
    with jax.enable_x64(x64):
        layout = scalar_and_vector()
        assert gaussian_of(in_coordinates(dist.Normal(0.0, 1.0), other), layout) is None
        assert gaussian_of(in_coordinates(other, dist.Normal(0.0, 1.0)), layout) is None


def test_which_priors_are_gaussian():
    names = ("linear, known noise", "linear, unknown noise", "logistic", "robust", "simplex")
    gaussian = {name for name in names if bound(name).gaussian_prior() is not None}
    assert gaussian == {"linear, known noise", "logistic"}


def flips(y):
    p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    numpyro.sample("y", dist.Bernoulli(p).expand(y.shape).to_event(1), obs=y)


def test_an_exact_prior_is_counted_once():
    """With factors expanded at one θ, their sum and the prior are the whole log-density there, to
    second order: a prior counted T times would shift score and curvature."""
    parts = [jnp.array([1, 1, 0]), jnp.array([0, 0, 1])]
    shards = [bm.numpyro.target(flips, y) for y in parts]
    full = bm.numpyro.target(flips, jnp.concatenate(parts))
    prior = bm.numpyro.prior(full)
    assert isinstance(prior, bm.ExactPrior)
    merged = bm.refine(shards, full.start, [1.0, 1.0], prior, steps=8)
    np.testing.assert_allclose(jax.nn.sigmoid(merged.mode()["p"]), 5 / 11, rtol=1e-9)
    variance = merged.laplace().variance()["p"]
    np.testing.assert_allclose(variance, 1 / (11 * 5 / 11 * 6 / 11), rtol=1e-9)


def test_gaussian_likelihoods_under_an_exact_prior_merge_exactly():
    """Rubin's schools, known standard errors, one school a shard: the merged density is the joint
    one, funnel and all."""
    example = ZOO["eight schools, centred"]
    shards = [bm.numpyro.target(example.model, *part) for part in example.parts()]
    start, prior = shards[0].start, bm.numpyro.prior(shards)
    factors = [bm.expand(shard, start) for shard in shards]
    merged = Tilted(functools.reduce(operator.mul, factors), prior, factors[0])
    with pytest.raises(ValueError, match="joint Hessian is not positive definite"):
        bm.refine(shards, start, np.ones(8), prior)
    model = bound("eight schools, centred")
    thetas = [somewhere(model, seed) for seed in range(5)]
    joint = [float(model.log_prior(t) + model.log_likelihood(t)) for t in thetas]
    ours = [float(merged.log_density(t)) for t in thetas]
    np.testing.assert_allclose(np.diff(ours), np.diff(joint), rtol=1e-9)


def test_laplace_factor_is_the_posterior_without_the_prior():
    target = bm.numpyro.target(flips, jnp.array([1, 1, 0]))
    prior = bm.numpyro.prior(target)
    factor = bm.laplace(target, prior, include_prior=False)
    again = bm.fit.likelihood_factor(bm.laplace(target, prior), prior)
    p = jax.nn.sigmoid(bm.laplace(target, prior).mode()["p"])
    np.testing.assert_allclose(factor.precision.value, [[3 * p * (1 - p)]], rtol=1e-9)
    np.testing.assert_allclose(factor.precision.value, again.precision.value, rtol=1e-9)


def test_variational_posteriors_with_an_exact_prior():
    """q of VON against the Gaussian of least KL(q ‖ p), found on a grid of means and variances."""
    target = bm.numpyro.target(flips, jnp.array([1, 1, 0]))
    options = {"num_samples": 10_000, "resample": False, "num_steps": 60, "progress": False}
    q = bm.von(target, bm.numpyro.prior(target), key=jax.random.key(0), **options)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def bound_at(mean, sd):
        p = 1 / (1 + np.exp(-(mean + sd * nodes)))
        joint = stats.beta.logpdf(p, 2, 3) + np.log(p * (1 - p)) + 2 * np.log(p) + np.log1p(-p)
        return weights @ joint / weights.sum() + np.log(sd)

    means, sds = np.linspace(-0.5, 0.5, 101), np.linspace(0.5, 1.2, 71)
    table = np.array([[bound_at(m, s) for s in sds] for m in means])
    i, j = np.unravel_index(table.argmax(), table.shape)
    np.testing.assert_allclose(q.mode()["p"], means[i], atol=1e-9)
    np.testing.assert_allclose(jnp.sqrt(q.variance()["p"]), sds[j], atol=0.005)


def gap(target):
    prior, options = bm.numpyro.prior(target), {"key": jax.random.key(0), "num_samples": 1000}
    return bm.fit.elbo(target, bm.laplace(target, prior), prior, **options)


def test_evidence_bound_with_an_exact_prior():
    """log B(2+2, 3+1)/B(2, 3) = log(1/140·12), from below and close."""
    evidence = np.log(12 / 140)
    bound = gap(bm.numpyro.target(flips, jnp.array([1, 1, 0])))
    assert evidence - 0.1 < bound < evidence + 0.02


@pytest.mark.parametrize(
    "name", ["hierarchical, centred", "scales by group", "linear, known noise"]
)
def test_posterior_becomes_the_prior_of_the_next_model(name):
    model = bound(name)
    theta = somewhere(model)
    rng = np.random.default_rng(3)
    root = rng.normal(size=(model.layout.size, model.layout.size + 3))
    q = bm.FullGaussian.from_mean_precision(theta, jnp.asarray(root @ root.T))
    again = Model(replace_prior(ZOO[name].model, q), *ZOO[name].whole())

    @jax.jit
    def pairs(at):
        likelihoods = again.log_likelihood(at), model.log_likelihood(at)
        return (again.log_prior(at), q.log_prob(at)), likelihoods

    for seed in range(3):
        priors, likelihoods = pairs(somewhere(model, seed))
        np.testing.assert_allclose(*priors, rtol=1e-9)
        np.testing.assert_allclose(*likelihoods, rtol=1e-12)
    back = again.gaussian_prior()
    np.testing.assert_allclose(back.precision.value, q.precision.value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        model.layout.ravel(back.mode()), model.layout.ravel(theta), rtol=1e-8, atol=1e-9
    )


def test_diagonal_posterior_becomes_a_prior():
    model = bound("scales by group")
    theta = somewhere(model)
    q = bm.DiagonalGaussian.from_mean_precision(theta, jax.tree.map(jnp.exp, theta))
    again = Model(replace_prior(ZOO["scales by group"].model, q), *ZOO["scales by group"].whole())
    np.testing.assert_allclose(again.log_prior(theta), q.log_prob(theta), rtol=1e-12)


def scaled(y):
    with handlers.scale(scale=10.0):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("mean_log_det", dist.Normal(mean, 1.0), obs=y)


def test_a_replaced_prior_is_not_scaled_and_names_do_not_matter():
    q = bm.FullGaussian.from_mean_precision({"mean": jnp.array(0.5)}, 4 * jnp.eye(1))
    target = bm.numpyro.target(replace_prior(scaled, q), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(bm.numpyro.prior(target).precision.value["mean"], 4.0)
    total = -stats.norm.logpdf([1.0, 2.0], 0.3).sum()
    np.testing.assert_allclose(target.total({"mean": jnp.array(0.3)}), total)
    plain = bm.numpyro.target(scaled, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(bm.numpyro.prior(plain).precision.value["mean"], 10.0)


def test_updating_in_turn_is_fitting_at_once():
    example = ZOO["linear, known noise"]
    model, parts = example.model, example.parts()
    for part in parts[:2]:
        posterior = fitted(bm.numpyro.target(model, *part))
        model = replace_prior(example.model, posterior)
    both = [np.concatenate(pair) for pair in zip(*parts[:2], strict=True)]
    once = fitted(bm.numpyro.target(example.model, *both))
    np.testing.assert_allclose(posterior.mode()["beta"], once.mode()["beta"], rtol=1e-9)
    np.testing.assert_allclose(posterior.precision.value, once.precision.value, rtol=1e-9)


def counts(y, prior):
    rate = numpyro.sample("rate", prior)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def test_conjugate_posteriors_make_the_round_trip():
    """Gamma: prior → posterior in closed form → prior of a NumPyro model → its exact mode in log
    rate, (a + Σy)/(b + n), and its curvature a + Σy."""
    first = bm.Gamma.from_shape_rate(jnp.array(2.0), jnp.array(1.0))
    likelihood = bm.Gamma.from_shape_rate(jnp.array(1.0 + 7.0), jnp.array(3.0))
    posterior = first * likelihood
    target = bm.numpyro.target(counts, jnp.array([4, 2]), to_numpyro(posterior))
    q = fitted(target)
    np.testing.assert_allclose(jnp.exp(q.mode()["rate"]), (2 + 7 + 6) / (1 + 3 + 2), rtol=1e-9)
    np.testing.assert_allclose(q.precision.value, [[2.0 + 7 + 6]], rtol=1e-9)


def test_factors_of_other_shards_under_the_exact_prior():
    y = [jnp.array([1, 1, 0]), jnp.array([0, 0])]
    shards = [bm.numpyro.target(flips, part) for part in y]
    factor = bm.expand(shards[0], shards[0].start)
    both = Model(with_factor(flips, factor), y[1])
    theta = somewhere(both)
    apart = shards[1].model
    np.testing.assert_allclose(both.log_prior(theta), apart.log_prior(theta), rtol=1e-12)
    ratio = both.log_likelihood(theta) - both.log_likelihood(shards[0].start)
    expected = factor.log_ratio(theta, shards[0].start)
    expected += apart.log_likelihood(theta) - apart.log_likelihood(shards[0].start)
    np.testing.assert_allclose(ratio, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("q", "scipys"),
    [
        (bm.Beta.from_concentrations(2.0, 3.0), stats.beta(2, 3)),
        (bm.Gamma.from_shape_rate(2.0, 3.0), stats.gamma(2, scale=1 / 3)),
        (bm.IsotropicGaussian.from_mean_precision(jnp.array(0.2), 4.0), stats.norm(0.2, 0.5)),
    ],
    ids=["Beta", "Gamma", "Gaussian"],
)
def test_stock_distributions(q, scipys):
    x = np.array([0.1, 0.4, 0.9])
    np.testing.assert_allclose(to_numpyro(q).log_prob(x), scipys.logpdf(x), rtol=1e-4)


def test_stock_distributions_of_vectors():
    mean, precision = jnp.array([1.0, 2.0]), jnp.array([[2.0, 0.4], [0.4, 1.0]])
    full = bm.FullGaussian.from_mean_precision(mean, precision)
    x = jnp.array([0.3, 0.7])
    np.testing.assert_allclose(to_numpyro(full).log_prob(x), full.log_prob(x), rtol=1e-12)
    dirichlet = bm.Dirichlet.from_concentrations(jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(to_numpyro(dirichlet).log_prob(x), stats.dirichlet([2, 3]).logpdf(x))
    two = bm.Mixture([0.3, 0.7], [full, full**2.0])
    np.testing.assert_allclose(to_numpyro(two).log_prob(x), two.log_prob(x), rtol=1e-12)


def test_marginals_by_site_live_on_the_supports():
    model = Model(spread, jnp.array([6, 2, 2]))
    root = np.random.default_rng(0).normal(size=(4, 6))
    q = bm.FullGaussian.from_mean_precision(somewhere(model), jnp.asarray(root @ root.T))
    marginals = model.to_numpyro(q)
    drawn = model.draws(q, jax.random.key(1), 4000)
    assert set(marginals) == {"p", "scale"}
    for site, marginal in marginals.items():
        samples = marginal.sample(jax.random.key(0), (4000,))
        assert bool(jnp.all(marginal.support(samples)))
        pairs = zip(samples.reshape(4000, -1).T, drawn[site].reshape(4000, -1).T, strict=True)
        assert all(stats.ks_2samp(x, y).pvalue > 1e-3 for x, y in pairs)


def spread(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0).expand([2]).to_event(1))
    numpyro.factor("scales", -scale.sum())
    numpyro.sample("y", dist.Multinomial(total_count=10, probs=p), obs=y)


def guided(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.deterministic("double", 2 * sigma)
    with numpyro.plate("rows", X.shape[0]):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def mean_field(X, y=None):
    with handlers.scale(scale=1.0):
        loc = numpyro.param("loc", jnp.zeros(2))
        numpyro.sample("beta", dist.Normal(loc, 0.3).to_event(1))
    numpyro.sample("sigma", dist.LogNormal(numpyro.param("log", 0.0), 0.2))


def structured(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(numpyro.param("loc", jnp.zeros(2)), 0.3).to_event(1))
    numpyro.sample("sigma", dist.LogNormal(0.5 * beta[0] - beta[1], 0.2))


DATA = np.array([[1.0, 0.0], [0.5, 1.0], [-1.0, 1.0], [0.0, 2.0]]), np.array([1.0, 2.0, 0.1, 2.9])
LOC = np.array([0.3, -0.2, 0.6])
ROOT = np.array([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.1, 0.1, 0.3]])
GUIDES = {
    "AutoNormal": {
        "beta_auto_loc": LOC[:2],
        "beta_auto_scale": np.array([0.4, 0.2]),
        "sigma_auto_loc": LOC[2],
        "sigma_auto_scale": np.array(0.3),
    },
    "AutoDiagonalNormal": {"auto_loc": LOC, "auto_scale": np.array([0.4, 0.2, 0.3])},
    "AutoMultivariateNormal": {"auto_loc": LOC, "auto_scale_tril": ROOT},
    "AutoLowRankMultivariateNormal": {
        "auto_loc": LOC,
        "auto_cov_factor": ROOT[:, :2],
        "auto_scale": np.array([0.4, 0.2, 0.3]),
    },
}


@pytest.mark.parametrize("name", [*GUIDES, "mean_field", "structured"])
def test_guides_and_their_posteriors_are_one(name):
    """Equal log-density, and samples equal in distribution."""
    model = Model(guided, *DATA)
    if name in GUIDES:
        guide, params = getattr(autoguide, name)(guided), GUIDES[name]
        handlers.seed(guide, 0)(*DATA)
        draws = guide.sample_posterior(jax.random.key(1), params, *DATA, sample_shape=(4000,))
    else:
        guide, params = globals()[name], {"loc": np.array([0.3, 0.1]), "log": np.array(0.2)}
        placed = handlers.substitute(guide, data=params)
        draws = numpyro.infer.Predictive(placed, num_samples=4000)(jax.random.key(1), *DATA)
    q = model.from_guide(guide, params)
    diagonal = name in ("AutoNormal", "AutoDiagonalNormal", "mean_field")
    assert isinstance(q, bm.DiagonalGaussian if diagonal else bm.FullGaussian)
    for seed in range(2):
        theta = somewhere(model, seed)
        np.testing.assert_allclose(
            q.log_prob(theta), guide_density(guide, params, theta), rtol=1e-9
        )
    theirs, ours = model.unconstrain(draws), q.sample(jax.random.key(2), (4000,))
    project = lambda t: t["beta"] @ jnp.array([1.0, -2.0]) + t["sigma"]  # noqa: E731
    assert stats.ks_2samp(project(theirs), project(ours)).pvalue > 1e-3


def guide_density(guide, params, theta):
    """log q(θ) by NumPyro alone."""
    values = {"beta": theta["beta"], "sigma": jnp.exp(theta["sigma"])}
    if isinstance(guide, autoguide.AutoContinuous):
        flat = jnp.append(theta["beta"], theta["sigma"])
        return guide.get_posterior(params).log_prob(flat).sum()
    trace = handlers.trace(
        handlers.substitute(handlers.seed(guide, 0), data={**params, **values})
    ).get_trace(*DATA)
    sites = [site for site in trace.values() if site["type"] == "sample"]
    return sum(site["fn"].log_prob(site["value"]).sum() for site in sites) + theta["sigma"]


def test_laplace_guide():
    y = jnp.array([1, 1, 0])
    target = bm.numpyro.target(flips, y)
    guide = autoguide.AutoLaplaceApproximation(flips)
    handlers.seed(guide, 0)(y)
    q = fitted(target)
    ours = target.model.from_guide(guide, {"auto_loc": q.mode()["p"][None]})
    np.testing.assert_allclose(ours.precision.value, q.precision.value, rtol=1e-8)


def test_draws_of_mcmc_become_posteriors():
    model = Model(guided, *DATA)
    q = fitted(bm.numpyro.target(guided, *DATA))
    draws = model.draws(q, jax.random.key(0), 20_000)
    back = moment_matched(model.unconstrain(draws))
    np.testing.assert_allclose(back.mode()["beta"], q.mode()["beta"], atol=0.02)
    np.testing.assert_allclose(back.variance()["sigma"], q.variance()["sigma"], rtol=0.05)
    np.testing.assert_allclose(draws["double"], 2 * draws["sigma"])


def test_predictions_are_numpyros():
    model = Model(guided, *DATA)
    q = fitted(bm.numpyro.target(guided, *DATA))
    new = jnp.array([[1.0, 1.0], [0.0, 0.0], [2.0, 1.0]])
    predicted = model.predictive(q, jax.random.key(0), 3000)(jax.random.key(1), new)
    draws = model.draws(q, jax.random.key(0), 3000)
    assert predicted["y"].shape == (3000, 3)
    np.testing.assert_allclose(predicted["double"], draws["double"])
    standard = (predicted["y"] - draws["beta"] @ new.T) / draws["sigma"][:, None]
    assert stats.kstest(np.ravel(standard), "norm").pvalue > 1e-3


def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz")


def test_arviz_data():
    az = arviz()
    model = Model(guided, *DATA)
    q = fitted(bm.numpyro.target(guided, *DATA))
    names = {"coords": {"feature": ["dose", "age"]}, "dims": {"beta": ["feature"]}}
    data = model.to_arviz(q, jax.random.key(0), 200, **names)
    posterior = data["posterior"]
    assert posterior["beta"].dims == ("chain", "draw", "feature")
    assert list(posterior["feature"].values) == ["dose", "age"]
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    np.testing.assert_allclose(data["observed_data"]["y"], DATA[1])
    assert data["posterior_predictive"]["y"].shape == (4, 50, 4)
    expected = stats.norm.logpdf(
        DATA[1], posterior["beta"].values @ DATA[0].T, posterior["sigma"].values[..., None]
    )
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "beta[dose]" in az.summary(data, var_names=["beta", "sigma"]).index
        compared = az.compare({"one": data, "two": data})
        az.plot_forest(data, var_names=["beta"])
    assert list(compared["rank"]) == [0, 1]


def test_axes_are_named_by_plates():
    model = bound("hierarchical, centred")
    theta = somewhere(model)
    q = bm.DiagonalGaussian.from_mean_precision(theta, jax.tree.map(jnp.exp, theta))
    firms = {"coords": {"firms": [f"firm {i}" for i in range(11)]}}
    data = model.to_arviz(q, jax.random.key(0), 10, **firms)
    assert data["posterior"]["alpha"].dims == ("chain", "draw", "firms")
    assert data["posterior"]["firms"].values[3] == "firm 3"


def subsampled(X, y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", X.shape[0], subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(X[rows] @ beta, 1.0), obs=y[rows])


def test_subsampling_plates_are_read_whole_or_in_minibatches():
    target = bm.numpyro.target(subsampled, *DATA)
    theta = somewhere(target.model)
    whole = -stats.norm.logpdf(DATA[1], DATA[0] @ theta["beta"]).sum()
    np.testing.assert_allclose(target.total(theta), whole)
    order = target.order(jax.random.key(0))
    batches = [target.minibatch(order, i, 2).total(theta) for i in range(target.num_batches(2))]
    np.testing.assert_allclose(np.mean(batches), whole)
    assert np.ptp(batches) > 0.1


def test_squared_gradients_of_a_model():
    target = bm.numpyro.target(guided, *DATA)
    theta = somewhere(target.model)
    layout = target.model.layout

    def losses(vector):
        return -target.model.log_likelihoods(layout.unravel(vector))["y"]

    J = np.asarray(jax.jit(jax.jacrev(losses))(layout.ravel(theta)))
    np.testing.assert_allclose(bm.curvature(target, theta, "squared_gradients"), J.T @ J)


def test_a_new_shard_costs_no_compilation():
    compiled = []
    listen = lambda name, *_, **__: compiled.append(name)  # noqa: E731
    X, y = DATA
    fitted(bm.numpyro.target(guided, X, y))
    more = X + 1.0, 2 * y
    jax.monitoring.register_event_duration_secs_listener(listen)
    fitted(bm.numpyro.target(guided, *more))
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not [name for name in compiled if "backend_compile" in name]


def test_any_function_can_be_an_exact_prior():
    """Of a Cauchy distribution, by its gradient and Hessian."""
    ridge = bm.ExactPrior(lambda theta: jnp.log1p(theta**2), jnp.array(1.0))
    data = bm.Target(lambda theta, y: 0.5 * (theta - y) ** 2, jnp.array([2.0, 3.0]))
    q = bm.laplace(data, ridge)
    theta = q.mode()
    np.testing.assert_allclose(2 * theta - 5 + 2 * theta / (1 + theta**2), 0, atol=1e-9)
    curvature = 2 + 2 * (1 - theta**2) / (1 + theta**2) ** 2
    np.testing.assert_allclose(q.precision.value, [[curvature]], rtol=1e-9)


def discrete(y):
    numpyro.sample("ok", dist.Normal(0.0, 1.0))
    z = numpyro.sample("switch", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def learned(y):
    numpyro.sample("y", dist.Normal(numpyro.param("mean", 0.0), 1.0), obs=y)


def improper(y):
    mean = numpyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def unobserved(y):
    numpyro.sample("mean", dist.Normal(0.0, 1.0))


def without_latents(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def erratic(y):
    count = random.randint(1, 50)
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([count]))
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)


def branching(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x if x > 0 else -x, 1.0), obs=y)


def sphere(y):
    x = numpyro.sample("x", dist.ProjectedNormal(jnp.ones(3)))
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)


def imputed(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=y > 0)


def simulated(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    noise = jax.random.normal(numpyro.prng_key())
    numpyro.sample("y", dist.Normal(mean + noise, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (discrete, "site 'switch' is a discrete latent variable.*enumerate"),
        (learned, "site 'mean' is a `numpyro.param`"),
        (improper, "site 'mean' has an improper prior"),
        (unobserved, "no observed sites.*'mean'"),
        (without_latents, "no latent sites"),
        (erratic, "another structure each time"),
        (branching, "looks at values of its latent sites while it runs"),
        (sphere, "site 'x' has the support"),
        (imputed, "site 'y_unobserved' is masked"),
        (simulated, "random numbers outside of its sample sites"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_models_that_cannot_be_merged_say_why(model, says):
    random.seed(0)
    with pytest.raises(ValueError, match=says):
        bm.numpyro.target(model, jnp.array([1.0, 2.0]))


def test_other_bad_input():
    model = Model(guided, *DATA)
    q = bm.DiagonalGaussian.from_mean_precision(somewhere(model), somewhere(model, 1))
    with pytest.raises(TypeError, match="model is a str"):
        bm.numpyro.target("model")
    with pytest.raises(ValueError, match=r"no attribute 'shape'. Its arguments: X \(set of 2\)"):
        bm.numpyro.target(guided, {1, 2})
    with pytest.raises(ValueError, match=r"lack the latent sites \['sigma'\]"):
        model.unconstrain({"beta": jnp.zeros((3, 2))})
    with pytest.raises(ValueError, match="must be finite"):
        model.unconstrain({"beta": jnp.zeros((3, 2)), "sigma": -jnp.ones(3)})
    with pytest.raises(ValueError, match="leaf '\\['beta'\\]' is only in the first"):
        model.constrain({"sigma": jnp.zeros(())})
    target = bm.numpyro.target(guided, *DATA)
    with pytest.raises(ValueError, match="leave out `batch_size`"):
        bm.von(target, key=jax.random.key(0), batch_size=2, progress=False)
    posterior = fitted(target)
    with pytest.raises(ValueError, match=r"dims name \['gamma'\]"):
        model.to_arviz(posterior, jax.random.key(0), dims={"gamma": ["x"]})
    names = {"dims": {"beta": ["feature"]}, "coords": {"feature": [1, 2, 3]}}
    with pytest.raises(ValueError, match=r"coords\['feature'\] has 3 entries"):
        model.to_arviz(posterior, jax.random.key(0), **names)
    with pytest.raises(ValueError, match=r"coords name \['skool'\]"):
        model.to_arviz(posterior, jax.random.key(0), coords={"skool": [1]})
    with pytest.raises(TypeError, match="factor is a Tilted"):
        with_factor(guided, bm.merge([posterior], [1.0], bm.numpyro.prior(target)))
    other = bm.DiagonalGaussian.from_mean_precision({"p": jnp.ones(2)}, {"p": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"leaf '\['p'\]' has shape \(2,\) and \(\)"):
        Model(with_factor(flips, other), jnp.array([1]))
    walk = {"scale": jnp.ones(2), "state": jnp.ones(2)}
    chain = replace_prior(random_walk, bm.DiagonalGaussian.from_mean_precision(walk, walk))
    with pytest.raises(ValueError, match="drawn within `scan`"):
        Model(chain, jnp.ones(2))
    with pytest.raises(ValueError, match="num_samples is 0"):
        model.draws(q, jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"no latent sites \['beta', 'sigma'\]"):
        Model(replace_prior(flips, posterior), jnp.array([1]))
    with pytest.raises(ValueError, match=r"no sites \['beta', 'sigma'\]"):
        Model(with_factor(flips, posterior), jnp.array([1]))


def test_shards_with_other_parameters_name_them():
    flipped = fitted(bm.numpyro.target(flips, jnp.array([1, 0])))
    other = fitted(bm.numpyro.target(guided, *DATA))
    with pytest.raises(ValueError, match=r"leaf '\['p'\]' is only in the first"):
        bm.merge([flipped, other], [1.0, 1.0])
    with pytest.raises(ValueError, match="prior and posteriors must have the same parameters"):
        bm.merge([other], [1.0], bm.numpyro.prior(flips, jnp.array([1, 0])))


def data_as_prior(y):
    mean = numpyro.sample("mean", dist.Normal(jnp.mean(y), 1.0))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def heavy(y, scale):
    mean = numpyro.sample("mean", dist.Cauchy(0.0, scale))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_shards_with_other_priors_are_named():
    one, two = jnp.array([1.0, 2.0]), jnp.array([3.0, 6.0])
    empirical = {t: bm.numpyro.target(data_as_prior, y) for t, y in {"a": one, "b": two}.items()}
    exact = {
        "a": bm.numpyro.target(heavy, one, jnp.array(1.0)),
        "b": bm.numpyro.target(heavy, two, jnp.array(9.0)),
    }
    for shards in (empirical, exact):
        with pytest.raises(ValueError, match="the targets 'a' and 'b' have different priors"):
            bm.numpyro.prior(shards)


def test_a_very_wide_prior_in_single_precision():
    def wide(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1e6))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    with jax.enable_x64(False):
        target = bm.numpyro.target(wide, jnp.array([1000.1, 1000.3, 999.8]))
        np.testing.assert_allclose(fitted(target).mode()["mean"], 1000.0667, rtol=1e-6)


def test_guides_that_cannot_be_merged_say_why():
    model = Model(guided, *DATA)
    point = autoguide.AutoDelta(guided)
    with pytest.raises(TypeError, match="AutoDelta guide is a point"):
        model.from_guide(point, {})

    def gamma(X, y):
        numpyro.sample("beta", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("sigma", dist.Gamma(3.0, 2.0))

    with pytest.raises(TypeError, match=r"'sigma': 'Gamma'.*moment_matched"):
        model.from_guide(gamma, {})

    def partial(X, y):
        numpyro.sample("beta", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"guide lacks \['sigma'\]"):
        model.from_guide(partial, {})
    with pytest.raises(ValueError, match=r"params lack \['log'\] of the guide"):
        model.from_guide(mean_field, {"loc": jnp.zeros(2)})
    wide = autoguide.AutoDiagonalNormal(flips)
    handlers.seed(wide, 0)(jnp.array([1]))
    with pytest.raises(ValueError, match="1 unconstrained parameters and the model 3"):
        model.from_guide(wide, {"auto_loc": jnp.zeros(1), "auto_scale": jnp.ones(1)})


def test_previews_with_an_exact_prior():
    shards = [bm.numpyro.target(flips, jnp.array(y)) for y in ([1, 1, 1], [0, 0, 1])]
    prior = bm.numpyro.prior(shards)
    posteriors = [bm.laplace(shard, prior) for shard in shards]
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    seen = bm.preview(posteriors, weights, lambda theta: theta["p"], prior, progress=False)
    one_by_one = [bm.merge(posteriors, w, prior).mode()["p"] for w in weights]
    np.testing.assert_allclose(seen.metrics["metric"], one_by_one, rtol=1e-9)
    np.testing.assert_allclose(one_by_one[0], posteriors[0].mode()["p"], rtol=1e-9)
    joint = bm.joint_training(shards, weights, lambda theta: theta["p"], prior, progress=False)
    np.testing.assert_allclose(jax.nn.sigmoid(joint.metrics["metric"][0]), 5 / 8, rtol=1e-6)
    assert eqx.is_array(bm.merge(posteriors, weights, prior).mode()["p"])


def test_zoo_has_what_was_promised():
    assert len(ZOO) >= 10
    assert all(callable(example.model) for example in model_zoo.ZOO.values())
