"""Nothing ends worse than it began, nothing stops short in silence, and advice helps."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import bayesmerge as bm
from bayesmerge.diagnostics import MergeWarning, reweighted
from bayesmerge.fit import Tilted, elbo, fit_shards, natural_gradient_vi
from bayesmerge.fit.convergence import Evidence, left_of_start

SHORT = "has not converged"


def key(seed=0):
    return jax.random.key(seed)


def isotropic(mean, precision=1.0):
    return bm.IsotropicGaussian.from_mean_precision(mean, precision)


# Refinement


def network(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


@functools.cache
def two_networks():
    """Two tasks of one small network whose labels contradict each other."""
    rng = np.random.default_rng(0)
    base = {"w": jnp.asarray(rng.normal(size=(2, 3))), "v": jnp.asarray(rng.normal(size=3))}
    x = jnp.asarray(rng.normal(size=(60, 2)))
    labels = [jnp.asarray(np.asarray(y), int) for y in (x[:, 0] > 0, x[:, 0] * x[:, 1] > 0)]
    parts = zip(labels, (slice(0, 30), slice(30, 60)), strict=True)
    tasks = [bm.Target.supervised(network, "bernoulli", (x[r], y[r])) for y, r in parts]
    return tasks, isotropic(base, 0.3)


def objective(tasks, weights, prior, theta):
    """Σα_tℓ_t − log p_0 without a constant, term by term."""
    losses = sum(float(a) * float(t.total(theta)) for a, t in zip(weights, tasks, strict=True))
    is_exact = isinstance(prior, bm.ExactPrior)
    return losses + float(prior.energy(theta) if is_exact else -prior.log_prob(theta))


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, -0.1)])
def test_no_refinement_raises_the_joint_objective(structure, weights):
    tasks, prior = two_networks()
    start = jax.tree.map(lambda x: 4 * x, prior.mode())
    last = objective(tasks, weights, prior, start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bm.ConvergenceWarning)
        for steps in (1, 2, 3, 6):
            q = bm.refine(tasks, start, weights, prior, steps=steps, structure=structure)
            now = objective(tasks, weights, prior, q.mode())
            assert now <= last + 1e-9 * abs(last)
            assert q.is_proper()
            last = now
    assert last < objective(tasks, weights, prior, start) - 1


def test_a_shortened_step_is_told_with_the_remedy():
    """Forty nearly equal columns: diagonal steps go forty times too far."""
    x = np.random.default_rng(0).normal(size=(100, 1)) * np.ones((1, 40))
    task = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (jnp.asarray(x), x.sum(1)))
    prior = isotropic(jnp.zeros(40))
    with pytest.warns(bm.ConvergenceWarning, match=r"of which 0\.0.* was taken.*structure='full'"):
        q = bm.refine([task], prior, [1.0], structure="diagonal")
    assert objective([task], [1.0], prior, q.mode()) < objective(
        [task], [1.0], prior, jnp.zeros(40)
    )
    q = bm.refine([task], q, [1.0], prior, steps=2)
    exact = np.linalg.solve(x.T @ x + np.eye(40), x.T @ x.sum(1))
    np.testing.assert_allclose(q.mode(), exact, rtol=1e-6)


def cauchy(theta):
    return jnp.sum(jnp.log1p(theta**2))


def spread_of(theta, y):
    """−log N(y | θ_0, e^{2θ_1})."""
    return theta[1] + 0.5 * (y - theta[0]) ** 2 * jnp.exp(-2 * theta[1])


@pytest.mark.parametrize("start", [(4.0, 0.3), (1.0, -1.0)])
def test_refinement_under_an_exact_prior_ends_where_it_says(start):
    """Whole Newton steps go too far from here, and neither likelihood nor prior is log-concave."""
    prior = bm.ExactPrior(cauchy, jnp.zeros(2))
    rng = np.random.default_rng(1)
    tasks = [bm.Target(spread_of, jnp.asarray(rng.normal(m, 2.0, 20))) for m in (0.0, 3.0)]
    last = first = objective(tasks, (1, 1), prior, jnp.array(start))
    for steps in (2, 3, 5, 12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bm.ConvergenceWarning)
            q = bm.refine(tasks, jnp.array(start), [1.0, 1.0], prior, steps=steps)
        assert isinstance(q, Tilted)
        assert q.laplace().is_proper()
        assert np.isfinite(q.sample(key(), (3,))).all()
        now = objective(tasks, (1, 1), prior, q.mode())
        assert now <= last + 1e-9 * abs(last)
        last = now
    joint = bm.find_mode(bm.JointTarget(tasks, [1.0, 1.0]), prior, start=jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(last, joint.loss, rtol=1e-9)
    assert last < first


def test_refinement_needs_a_finite_start():
    task = bm.Target(lambda theta, y: y * jnp.log(theta), jnp.ones(2))
    with pytest.raises(ValueError, match="joint objective at the mode of merged must be finite"):
        bm.refine([task], jnp.array(-1.0), [1.0], isotropic(jnp.array(0.0)))


# Variational fits


@functools.cache
def logistic(rows=60):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, 3))
    y = rng.random(rows) < 1 / (1 + np.exp(-x @ [1.0, -2.0, 0.5]))
    data = jnp.asarray(x), jnp.asarray(y, int)
    return bm.Target.supervised(lambda w, x: x @ w, "bernoulli", data), isotropic(jnp.zeros(3))


def von(**options):
    target, prior = logistic()
    return bm.von(target, prior, key=key(), progress=False, **options)


def test_von_says_when_it_stops_short():
    far = bm.FullGaussian.from_mean_precision(4.0 * jnp.ones(3), 9.0 * jnp.eye(3))
    with pytest.warns(bm.ConvergenceWarning, match=f"after 3 steps.*{SHORT}.*more num_steps"):
        von(start=far, step_size=0.05, num_steps=3)
    best = von()
    wide = bm.FullGaussian.from_mean_precision(best.mean(), 0.2 * best.precision.value)
    with pytest.warns(bm.ConvergenceWarning, match="% to go"):
        von(start=wide, step_size=0.02, num_steps=4, num_samples=64)


def test_von_never_ends_below_its_start():
    """Whole steps by two draws from the best posterior lose much of the bound, and are not kept."""
    target, prior = logistic()
    best = von(num_samples=64)
    noisy = {"start": best, "curvature": "price", "num_samples": 2, "step_size": 1.0}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        q = von(num_steps=7, **noisy)
    bounds = [elbo(target, p, prior, key=key(5), num_samples=4000) for p in (q, best)]
    assert bounds[0] > bounds[1] - 1e-3


def test_what_noise_alone_would_do_is_no_residual():
    """A thousand sets of noisy gradients of mean zero, and of mean 0.5, in one dimension."""
    rng = np.random.default_rng(0)
    bounds, alarms, seen = np.zeros(32), 0, []
    for _ in range(1000):
        steps = rng.standard_t(4, size=32)
        away, noise = Evidence(bounds, np.outer(steps, steps), bounds).remaining
        alarms += away**2 > 0.1**2 + noise**2
        seen.append(Evidence(bounds, np.outer(steps + 0.5, steps + 0.5), bounds).remaining[0] ** 2)
    assert alarms < 10
    assert np.sqrt(np.mean(seen)) == pytest.approx(0.5, rel=0.25)
    assert left_of_start(lambda t: 1 / (t + 2.0), 9) == pytest.approx(0.1)


def test_the_other_fits_say_when_they_stop_short():
    target, prior = logistic()
    options = {"key": key(), "progress": False}
    with pytest.warns(bm.ConvergenceWarning, match=f"after 5 steps.*{SHORT}.*learning_rate"):
        bm.ivon(target, prior, num_steps=5, learning_rate=0.01, **options)
    start = isotropic(4.0 * jnp.ones(3), 4.0)
    with pytest.warns(bm.ConvergenceWarning, match=f"after 2 steps.*{SHORT}"):
        bm.mixture_von(target, prior, num_components=2, num_steps=2, start=start, **options)
    coin = bm.Target(lambda p, y: -y * jnp.log(p) - (1 - y) * jnp.log1p(-p), jnp.ones(9))
    flat = bm.Beta.from_concentrations(1.0, 1.0)
    with pytest.warns(bm.ConvergenceWarning, match=f"after 2 steps.*{SHORT}"):
        natural_gradient_vi(coin, flat, num_steps=2, step_size=0.05, **options)


# Shards by any method


def test_any_method_fits_shards():
    target, prior = logistic()
    x, y = target.data
    model, one = target.loss.model, {"key": key(), "num_steps": 40, "progress": False}
    shards = {
        n: bm.Target.supervised(model, "bernoulli", (x[r], y[r]))
        for n, r in {"a": slice(0, 30), "b": slice(30, 60)}.items()
    }
    together = fit_shards(shards, prior, lambda s, p: bm.von(s, p, **one))
    for name, q in together.items():
        np.testing.assert_allclose(
            q.precision.value, bm.von(shards[name], prior, **one).precision.value, rtol=1e-12
        )

    def own(s, p):
        return {"positive": float(jnp.mean(s.data[1])), "kind": "mean"}

    expected = {"positive": float(jnp.mean(y[30:])), "kind": "mean"}
    assert fit_shards(shards, prior, own)["b"] == expected

    def traceable(s, p):
        return {"positive": jnp.mean(s.data[1]), "kind": "mean"}

    traced = fit_shards(shards, None, traceable)
    assert traced["a"]["positive"] == pytest.approx(float(jnp.mean(y[:30])))
    assert traced["a"]["kind"] == "mean"


# Importance weights


def half(theta, y):
    return 0.5 * (theta - y) ** 2


@pytest.mark.parametrize("count", [1, 50, 5000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_exact_posterior_has_equal_weights(count, dtype):
    y = jnp.asarray(np.random.default_rng(0).normal(30.0, 1.0, count), dtype)
    target, prior = bm.Target(half, y), isotropic(jnp.zeros((), dtype))
    found = reweighted(bm.laplace(target, prior), target, prior, key(), 500)
    assert found.effective_samples > 499
    assert found.is_reliable
    assert np.isfinite(found.mean())


def test_weights_that_cannot_be_had():
    q = isotropic(jnp.array(0.0))
    above = bm.Target(lambda theta, y: jnp.where(theta > y, 0.5 * theta**2, jnp.inf), jnp.zeros(1))
    found = reweighted(q, above, None, key(), 1000)
    np.testing.assert_allclose(found.mean(), np.sqrt(2 / np.pi), atol=4 * 0.6 / 500**0.5)
    assert 400 < found.effective_samples < 600
    assert found.is_reliable
    wide = bm.Target(lambda theta, y: jnp.where(theta > y, 0.1 * theta**2, jnp.inf), jnp.zeros(1))
    assert reweighted(q, wide, None, key(), 1000).k > 0.3
    rare = bm.Target(
        lambda theta, y: jnp.where(theta > y, 0.5 * theta**2, jnp.inf), jnp.array([2.0])
    )
    assert not reweighted(q, rare, None, key(), 1000).is_reliable
    with pytest.raises(ValueError, match="zero at all of 100 draws"):
        reweighted(
            q, bm.Target(lambda theta, y: theta * y + jnp.inf, jnp.ones(1)), None, key(), 100
        )
    with pytest.raises(ValueError, match="NaN or infinite at"):
        reweighted(
            q, bm.Target(lambda theta, y: -y * jnp.log(theta), jnp.ones(1)), None, key(), 100
        )


# Diagnosis


def counts_loss(theta, batch):
    x, y = batch
    eta = theta["a"] + theta["b"] * x
    return jnp.exp(eta) - y * eta


def logits_loss(theta, batch):
    x, y = batch
    eta = theta["a"] + theta["b"] * x
    return jnp.logaddexp(0.0, eta) - y * eta


def normal_loss(theta, batch):
    x, y = batch
    z = (y - theta["a"] - theta["b"] * x) * jnp.exp(-theta["log_sd"])
    return 0.5 * z**2 + theta["log_sd"]


def groups_loss(theta, batch):
    """Group means a + e^{log_sd}z_g, not centred."""
    g, y = batch
    means = theta["a"] + jnp.exp(theta["log_sd"]) * theta["z"]
    return 0.5 * (y - means[g.astype(int)]) ** 2


@functools.cache
def shards_of(name):
    """Eight shards (four of groups) of data drawn at random, all from one θ."""
    rng, n = np.random.default_rng(3), 200
    x = rng.normal(size=n)
    theta = {"a": 0.0, "b": 0.0}
    if name == "logistic":
        loss, y = logits_loss, rng.random(n) < 1 / (1 + np.exp(-2 * x))
    elif name == "overdispersed":
        loss, y = counts_loss, rng.poisson(rng.gamma(0.5, 2 * np.exp(0.5 + 0.5 * x)))
    elif name == "small counts":
        loss, y = counts_loss, rng.poisson(np.exp(-1.5 + 0.5 * x))
    elif name == "unknown noise":
        loss, y, theta = normal_loss, 1 + x + rng.normal(size=n), theta | {"log_sd": 0.0}
    else:
        loss, x = groups_loss, np.tile(np.arange(5), n // 5)
        y = rng.normal(size=5)[x] + rng.normal(size=n)
        theta = {"a": 0.0, "log_sd": 0.0, "z": np.zeros(5)}
    prior = isotropic(jax.tree.map(jnp.asarray, theta))
    parts = np.array_split(np.arange(n), 4 if name == "hierarchical" else 8)
    shards = {
        str(t): bm.Target(loss, (jnp.asarray(x[r], float), jnp.asarray(y[r], float)))
        for t, r in enumerate(parts)
    }
    return shards, prior


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def diagnosed(shards, posteriors, prior, **options):
    return quietly(bm.diagnose, shards, posteriors, np.ones(len(shards)), prior, **options)


MODELS = ["logistic", "overdispersed", "small counts", "unknown noise", "hierarchical"]


@pytest.mark.parametrize("name", MODELS)
def test_advice_does_not_make_the_weights_worse(name):
    """Pareto's k, by draws of another key than the advice was found with, to two standard errors
    of each: (1 + k)/√M with M = 3√S."""
    shards, prior = shards_of(name)
    ones = np.ones(len(shards))
    posteriors = quietly(fit_shards, shards, prior)
    found = diagnosed(shards, posteriors, prior, key=key(1), num_samples=2000)
    merged = bm.merge(posteriors, ones, prior)
    joint = bm.JointTarget(shards, ones)
    before = reweighted(merged, joint, prior, key(2), 2000)
    advice = " ".join(found.concerns)
    assert "von" not in advice
    if "Use `refine(targets, merged, weights, prior, steps=5)`" not in advice:
        return
    after = reweighted(
        quietly(bm.refine, shards, merged, ones, prior, steps=5), joint, prior, key(2), 2000
    )
    assert after.k <= before.k + 2 * (before.k_error + after.k_error)
    assert after.effective_samples > 0.9 * before.effective_samples


def test_overdispersion_is_no_conflict():
    """Counts with five times the variance of a Poisson distribution, dealt out at random; and
    Poisson counts of which one shard has another rate."""
    shards, prior = shards_of("overdispersed")
    posteriors = fit_shards(shards, prior)
    text = str(diagnosed(shards, posteriors, prior))
    assert "overdispersion" in text
    assert "conflicts with" not in text
    rng = np.random.default_rng(0)
    rates = (3.0, 3.0, 3.0, 5.0)
    shards = {
        str(t): bm.Target(
            counts_loss,
            (jnp.asarray(rng.normal(size=50)), jnp.asarray(rng.poisson(rate, 50), float)),
        )
        for t, rate in enumerate(rates)
    }
    text = str(diagnosed(shards, fit_shards(shards, prior), prior))
    assert "task 3 conflicts with the others" in text
    assert "overdispersion" not in text


def test_posteriors_that_are_not_at_a_mode_are_told():
    """Skewed, so that means of variational posteriors differ from modes."""
    shards, prior = shards_of("unknown noise")
    laplace = fit_shards(shards, prior)
    text = str(diagnosed(shards, laplace, prior))
    assert "one refinement moves log_sd by" in text
    assert "centred elsewhere" not in text
    shifted = {
        n: bm.FullGaussian.from_mean_precision(
            jax.tree.map(lambda m, v: m + jnp.sqrt(v), q.mode(), q.variance()), q.precision.value
        )
        for n, q in laplace.items()
    }
    text = str(diagnosed(shards, shifted, prior))
    assert "refinement looks for a mode, and these posteriors are centred elsewhere" in text


def scale_model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    share = numpyro.sample("share", dist.Beta(2.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([1]).to_event(1))
    numpyro.sample("y", dist.Normal(mean + share, sigma[0]), obs=y)


def test_coordinates_have_names_and_units():
    y = np.random.default_rng(0).normal(1.0, 0.5, size=24)
    with jax.numpy_rank_promotion("allow"):
        shards = {n: bm.numpyro.target(scale_model, y[i::4]) for i, n in enumerate("abcd")}
        prior = bm.numpyro.prior(shards)
        posteriors = fit_shards(shards, prior)
        with pytest.warns(MergeWarning, match=r"moves log sigma\[0\] by"):
            found = bm.diagnose(shards, posteriors, np.ones(4), prior)
    table = {line.split("  ")[0].strip(): line for line in str(found).splitlines()}
    mode = found.merged.mode()
    assert f"{np.exp(mode['sigma'][0]):.4g}" in table["log sigma[0]"]
    assert f"{1 / (1 + np.exp(-mode['share'])):.4g}" in table["logit share"]
    assert "mean" in table


def test_chi_squared_is_told_with_its_degrees_of_freedom():
    q = [isotropic(jnp.array([m, 0.0])) for m in (0.0, 1.0, 3.0)]
    found = bm.diagnostics.overlap(q, np.ones(3))
    statistic, directions = found.chi_squared["2"]
    assert directions == 2
    np.testing.assert_allclose(found.p_value["2"], stats.chi2.sf(statistic, 2), rtol=1e-12)
