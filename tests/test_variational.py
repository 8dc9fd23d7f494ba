"""Variational fits: exact where the truth is Gaussian, at their fixed points elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import bayesmerge as bm
from bayesmerge.families import DensePrecision, DiagonalPrecision
from bayesmerge.fit import VON, adamw_sg, elbo, natural_gradient_vi, run
from bayesmerge.fit.mixture_von import Components, MixtureVON
from bayesmerge.fit.von import improved_step


def key(seed=7):
    return jax.random.key(seed)


def quiet(target, prior, **options):
    return bm.von(target, prior, key=key(), progress=False, **options)


def linear(w, x):
    return x @ w


@functools.cache
def least_squares():
    """Diabetes, standardised, prior N(0.3, ½I): target, prior, exact mean and precision."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    H0, centre = 2.0, 0.3 * np.ones(10)
    precision = x.T @ x + H0 * np.eye(10)
    mean = np.linalg.solve(precision, x.T @ y + H0 * centre)
    target = bm.Target.supervised(linear, "gaussian", (jnp.asarray(x), jnp.asarray(y)))
    return target, isotropic(centre, H0), mean, precision


@functools.cache
def cancer(columns=10, rows=60):
    x, y = load_breast_cancer(return_X_y=True)
    x, y = ((x - x.mean(0)) / x.std(0))[:rows, :columns], y[:rows]
    target = bm.Target.supervised(linear, "bernoulli", (jnp.asarray(x), jnp.asarray(y)))
    return target, isotropic(np.zeros(columns), 1.0), x, y


def isotropic(mean, precision):
    return bm.IsotropicGaussian.from_mean_precision(jnp.asarray(mean), precision)


def wrong_start(size=10):
    return bm.FullGaussian.from_mean_precision(3.0 * jnp.ones(size), 0.1 * jnp.eye(size))


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_full_von_finds_the_exact_posterior_of_linear_regression(curvature):
    """Expectations are exact here: draws are antithetic pairs and the Hessian is constant."""
    target, prior, mean, precision = least_squares()
    options = {"curvature": curvature, "num_samples": 2, "num_steps": 60, "step_size": 0.5}
    q = quiet(target, prior, start=wrong_start(), **options)
    np.testing.assert_allclose(q.mean(), mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(q.precision.value, precision, rtol=1e-6, atol=1e-6)


def test_narrower_structures_find_the_nearest_of_their_kind():
    """min KL(q ‖ exact) has the exact mean, and the diagonal or mean diagonal of the precision."""
    target, prior, mean, precision = least_squares()
    for structure, expected in {
        "diagonal": np.diag(precision),
        "isotropic": np.diag(precision).mean(),
    }.items():
        q = quiet(target, prior, structure=structure, num_samples=2, num_steps=200, step_size=0.3)
        np.testing.assert_allclose(q.mean(), mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(q.precision.value, expected, rtol=1e-9)


def test_hessian_free_von_is_right_within_monte_carlo_error():
    target, prior, mean, precision = least_squares()
    q = quiet(target, prior, curvature="price", num_samples=200, num_steps=200)
    np.testing.assert_allclose(q.mean(), mean, rtol=1e-5, atol=1e-6)
    ratios = scipy.linalg.eigvalsh(np.asarray(q.precision.value), precision)
    np.testing.assert_allclose(ratios, 1.0, atol=0.15)


def test_the_fixed_point_of_von():
    """E_q[∇ℓ] + H_0(m − θ_0) = 0 and S = E_q[∇²ℓ] + H_0, E_q over the draws that were kept, in
    numpy."""
    target, prior, x, y = cancer()
    q = quiet(target, prior, resample=False, num_samples=16, num_steps=200)
    m = np.asarray(q.mean())
    draws = m + np.asarray(q.deviations(jax.random.key(0), 8))
    p = scipy.special.expit(draws @ x.T)
    gradient = ((p - y) @ x).mean(0) + m
    hessian = np.einsum("sn,ni,nj->ij", p * (1 - p), x, x) / 16 + np.eye(10)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-9)
    np.testing.assert_allclose(q.precision.value, hessian, rtol=1e-9, atol=1e-9)
    laplace = bm.laplace(target, prior)
    assert np.abs(q.precision.value - laplace.precision.value).max() > 0.1


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_von_has_a_higher_bound_than_laplace(structure):
    target, prior, *_ = cancer()
    q = quiet(target, prior, structure=structure, num_samples=32)
    laplace = bm.laplace(target, prior, structure=structure)

    def bound(q):
        return elbo(target, q, prior, key=key(), num_samples=4000)

    assert bound(q) > bound(laplace) + 0.1
    evidence = bound(quiet(target, prior, num_samples=32))
    assert bound(q) < evidence + 0.05


def test_the_bound_is_told_at_every_step_and_rises():
    target, prior, *_ = cancer()
    method = VON(prior, num_samples=32, resample=False, step_size=0.5)
    found = run(method, target, wrong_start(), num_steps=60, key=key(), progress=False)
    history = found.history["elbo"]
    assert history.shape == (60,)
    assert history[-1] > history[0] + 100
    assert np.abs(np.diff(history[-5:])).max() < 1e-6
    at_end = elbo(target, found.posterior, prior, key=key(), num_samples=20_000)
    assert history[-1] == pytest.approx(float(at_end), abs=1.0)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0))
def test_the_improved_step_keeps_precisions_positive_definite(seed, rho):
    rng = np.random.default_rng(seed)
    A, G = rng.normal(size=(4, 6)), 100 * rng.normal(size=(4, 4))
    precision, G = A @ A.T + 0.1 * np.eye(4), G + G.T
    full = bm.FullGaussian.from_mean_precision(jnp.zeros(4), jnp.asarray(precision))
    slope = jnp.asarray(rng.normal(size=4))
    step = DensePrecision(jnp.asarray(G), full.layout)
    new, down = improved_step(full, slope, step, jnp.asarray(rho))
    expected = precision + rho * G + 0.5 * rho**2 * G @ np.linalg.solve(precision, G)
    np.testing.assert_allclose(new.precision.value, expected, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(down, np.linalg.solve(precision, slope), rtol=1e-7, atol=1e-9)
    assert np.linalg.eigvalsh(np.asarray(new.precision.value))[0] > 0
    diagonal = bm.DiagonalGaussian.from_mean_precision(jnp.zeros(4), full.precision.diagonal())
    narrow = DiagonalPrecision(step.diagonal(), full.layout)
    new, _ = improved_step(diagonal, slope, narrow, jnp.asarray(rho))
    assert new.smallest_precision() > 0


def test_correlations_do_not_throw_narrower_structures_off():
    """Forty copies of nearly one column: diag(Λ)⁻¹ steps of size ρ > 2/40 diverge by themselves."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 1)) + 0.1 * rng.normal(size=(100, 40))
    y = x @ rng.normal(size=40) + rng.normal(size=100)
    target = bm.Target.supervised(linear, "gaussian", (jnp.asarray(x), jnp.asarray(y)))
    prior = isotropic(np.zeros(40), 100.0)
    precision = x.T @ x + 100 * np.eye(40)
    exact = np.linalg.solve(precision, x.T @ y)
    for structure in ("diagonal", "isotropic"):
        start = isotropic(np.ones(40), 1.0)
        q = quiet(target, prior, structure=structure, start=start, step_size=0.5, num_steps=400)
        np.testing.assert_allclose(q.mean(), exact, rtol=1e-6, atol=1e-8)


def test_minibatches_and_streams_converge_to_the_same():
    target, prior, x, y = cancer(4, rows=569)
    options = {"num_samples": 4, "num_steps": 1500}
    exact = quiet(target, prior, num_samples=64, num_steps=200)
    rows = np.array_split(np.arange(len(y)), 6)
    batches = [(jnp.asarray(x[r]), jnp.asarray(y[r])) for r in rows]
    stream = bm.Target.supervised(linear, "bernoulli", batches)
    few = {"num_samples": 4, "num_steps": 400, "start": exact}
    for q in (quiet(target, prior, batch_size=100, **options), quiet(stream, prior, **few)):
        error = exact.precision.value @ (q.mean() - exact.mean()) @ (q.mean() - exact.mean())
        assert float(error) ** 0.5 < 0.5
        ratios = scipy.linalg.eigvalsh(
            np.asarray(q.precision.value), np.asarray(exact.precision.value)
        )
        np.testing.assert_allclose(ratios, 1.0, atol=0.15)


def test_von_takes_pytrees_float32_and_joint_targets():
    _, _, x, y = cancer(3)
    data = (jnp.asarray(x, jnp.float32), jnp.asarray(y))

    def model(theta, x):
        return x @ theta["w"] + theta["b"]

    zero = {"w": jnp.zeros(3, jnp.float32), "b": jnp.zeros((), jnp.float32)}
    prior = bm.IsotropicGaussian.from_mean_precision(zero, 1.0)
    halves = [bm.Target.supervised(model, "bernoulli", data)] * 2
    joint = bm.JointTarget(halves, [0.5, 0.5])
    q = quiet(joint, prior, num_samples=16)
    assert q.linear["w"].dtype == jnp.float32
    one = quiet(halves[0], prior, num_samples=16)
    np.testing.assert_allclose(q.precision.value, one.precision.value, rtol=1e-4, atol=1e-4)


def test_von_says_what_is_wrong():
    target, prior, *_ = cancer()
    with pytest.raises(ValueError, match=r"step_size is 1\.5.*\(0, 1\]"):
        quiet(target, prior, step_size=1.5)
    with pytest.raises(ValueError, match="num_samples is 3, and it must be even"):
        quiet(target, prior, num_samples=3)
    with pytest.raises(ValueError, match="improper"):
        quiet(target, prior, start=wrong_start() ** -1.0)


# Mixtures


def density_error(q, log_density, grid):
    """½∫|q − p| on an even grid of one or two dimensions."""
    p = np.exp(log_density - log_density.max())
    found = np.exp(np.asarray(jax.jit(jax.vmap(q.log_prob))(jnp.asarray(grid))))
    return 0.5 * np.abs(found / found.sum() - p / p.sum()).sum()


THREE = np.array([[-3.0, 0.0], [2.0, 2.5], [2.0, -2.5]])


def three_modes():
    """−log of three Gaussians of unequal weight and shape, as a loss of one example."""

    def loss(theta, batch):
        means, precisions, log_weights = batch
        away = theta[None, None, :] - means
        distance = jnp.einsum("nki,nkij,nkj->nk", away, precisions, away)
        log_det = jnp.linalg.slogdet(precisions)[1]
        return -jax.nn.logsumexp(log_weights + 0.5 * (log_det - distance), axis=1)

    A = np.random.default_rng(0).normal(size=(3, 2, 4))
    precisions = A @ np.swapaxes(A, 1, 2) / 2
    log_weights = np.log([0.5, 0.3, 0.2])
    return bm.Target(loss, tuple(jnp.asarray(x)[None] for x in (THREE, precisions, log_weights)))


@pytest.mark.parametrize("curvature", ["hessian", "price"])
def test_a_mixture_recovers_three_modes(curvature):
    target = three_modes()
    start = bm.FullGaussian.from_mean_precision(jnp.zeros(2), jnp.eye(2))
    q = bm.mixture_von(
        target,
        key=jax.random.key(1),
        num_components=9,
        curvature=curvature,
        start=start,
        spread=3.0,
        num_samples=32,
        num_steps=400,
        weight_step_size=0.05,
        progress=False,
    )
    axis = np.linspace(-8, 8, 161)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    truth = -np.asarray(jax.jit(jax.vmap(target.total))(jnp.asarray(grid)))
    assert density_error(q, truth, grid) < 0.06


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_one_component_is_von(structure):
    """Where expectations are exact, the fixed points of both are the same."""
    target, prior, *_ = least_squares()
    q = quiet(target, prior, structure=structure, num_samples=2, num_steps=6000, step_size=0.5)
    mixture = bm.mixture_von(
        target,
        prior,
        key=key(),
        num_components=1,
        structure=structure,
        num_samples=2,
        num_steps=6000,
        step_size=0.5,
        progress=False,
    )
    one = jax.tree.map(lambda x: x[0], mixture.components)
    np.testing.assert_allclose(one.mean(), q.mean(), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(one.precision.value, q.precision.value, rtol=1e-6, atol=1e-6)


def test_a_mixture_of_many_has_the_mean_of_the_exact_posterior():
    target, prior, mean, precision = least_squares()
    q = bm.mixture_von(target, prior, key=key(), num_components=4, num_steps=200, progress=False)
    away = np.asarray(q.mean()) - mean
    assert np.sqrt(away @ precision @ away / 10) < 0.1
    np.testing.assert_allclose(q.variance(), np.diag(np.linalg.inv(precision)), rtol=0.15)


def test_a_mixture_has_a_higher_bound_than_one_gaussian():
    target, prior, *_ = cancer(3)
    q = quiet(target, prior, num_samples=64)
    mixture = bm.mixture_von(
        target, prior, key=key(), num_components=6, num_samples=32, num_steps=300, progress=False
    )
    bounds = [elbo(target, q, prior, key=key(), num_samples=20_000) for q in (q, mixture)]
    assert bounds[1] > bounds[0]


def test_collapsed_components_are_reported():
    target, prior, *_ = cancer(3)
    far = jax.vmap(lambda m: bm.FullGaussian.from_mean_precision(m, jnp.eye(3)))
    start = bm.Mixture([0.5, 0.5], far(jnp.array([[0.0, 0.0, 0.0], [40.0, 40.0, 40.0]])))
    with pytest.warns(bm.ConvergenceWarning) as told:
        bm.mixture_von(
            target,
            prior,
            key=key(),
            num_components=2,
            start=start,
            num_steps=20,
            weight_step_size=1.0,
            progress=False,
        )
    assert any("1 of 2 components have collapsed" in str(w.message) for w in told)
    with pytest.raises(ValueError, match="num_components is 0"):
        bm.mixture_von(target, prior, key=key(), num_components=0, progress=False)


def test_the_effective_number_of_components_is_told():
    target, prior, *_ = cancer(3)
    gaussians = jax.tree.map(lambda x: jnp.stack([x, x]), bm.laplace(target, prior))
    first = Components(jnp.log(jnp.array([0.5, 0.5])), gaussians)
    found = run(MixtureVON(prior), target, first, num_steps=3, key=key(), progress=False)
    assert found.history["components"][0] == pytest.approx(2.0)


# AdamW-SG and other families


def test_adamw_sg_is_squared_gradients_at_the_minimum():
    target, prior, mean, _ = least_squares()
    schedule = optax.schedules.cosine_decay_schedule(0.3, 2000)
    q = adamw_sg(
        target, prior, key=key(), num_steps=2000, optimiser=optax.adam(schedule), progress=False
    )
    np.testing.assert_allclose(q.mean(), mean, atol=1e-6)
    x, y = target.data
    squared = jnp.sum((x * (x @ q.mean() - y)[:, None]) ** 2, axis=0)
    np.testing.assert_allclose(q.precision.value, squared + 2.0, rtol=1e-9)
    with pytest.warns(bm.ConvergenceWarning, match="posterior standard deviations"):
        adamw_sg(target, prior, key=key(), num_steps=5, batch_size=50, progress=False)


def test_natural_gradients_find_conjugate_posteriors():
    heads = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    coin = bm.Target(lambda p, y: -y * jnp.log(p) - (1 - y) * jnp.log1p(-p), heads)
    q = natural_gradient_vi(
        coin,
        bm.Beta.from_concentrations(2.0, 3.0),
        key=key(),
        step_size=0.5,
        num_steps=60,
        progress=False,
    )
    np.testing.assert_allclose(q.concentrations, (6.0, 4.0), rtol=1e-6)
    counts = jnp.array([3.0, 7.0, 2.0])
    poisson = bm.Target(lambda rate, y: rate - y * jnp.log(rate), counts)
    prior = bm.Gamma.from_shape_rate(2.0, 1.5)
    q = natural_gradient_vi(poisson, prior, key=key(), step_size=1.0, num_steps=2, progress=False)
    np.testing.assert_allclose((q.shape, q.rate), (14.0, 4.5), rtol=1e-9)
    dice = jnp.array([0, 2, 2, 1, 2])
    roll = bm.Target(lambda p, y: -jnp.log(p)[y], dice)
    prior = bm.Dirichlet.from_concentrations(jnp.array([2.0, 2.0, 3.0]))
    q = natural_gradient_vi(roll, prior, key=key(), step_size=1.0, num_steps=2, progress=False)
    np.testing.assert_allclose(q.concentrations, [3.0, 3.0, 6.0], rtol=1e-6)


def test_natural_gradients_away_from_conjugacy():
    """A Gamma for a rate seen through y ~ N(√rate, ½²): the bound is that of the best Gamma, which
    scipy finds with the expectation as an integral."""
    y = np.array([1.7, 2.4, 2.1, 1.2])
    target = bm.Target(lambda rate, y: 2 * (y - jnp.sqrt(rate)) ** 2, jnp.asarray(y))
    prior = bm.Gamma.from_shape_rate(2.0, 1.0)
    q = natural_gradient_vi(
        target, prior, key=key(), num_steps=400, num_samples=400, progress=False
    )

    def minus_bound(v):
        shape, rate = np.exp(v)
        gamma = scipy.stats.gamma(shape, scale=1 / rate)
        u = (np.arange(4000) + 0.5) / 4000
        expected = np.mean([2 * np.sum((y - np.sqrt(r)) ** 2) for r in gamma.ppf(u)])
        other = bm.Gamma.from_shape_rate(shape.item(), rate.item())
        return expected + float(other.kl_divergence(prior))

    best = scipy.optimize.minimize(minus_bound, np.log([8.0, 2.0]), method="Nelder-Mead", tol=1e-6)
    shape, rate = np.exp(best.x)
    np.testing.assert_allclose((q.shape, q.rate), (shape, rate), rtol=0.05)
    assert minus_bound(np.log([float(q.shape), float(q.rate)])) < best.fun + 2e-3


def test_natural_gradients_of_gaussians_are_those_of_von():
    target, _, mean, precision = least_squares()
    wide = bm.FullGaussian.from_mean_precision(0.3 * jnp.ones(10), 2.0 * jnp.eye(10))
    q = natural_gradient_vi(target, wide, key=key(), step_size=1.0, num_steps=2, progress=False)
    np.testing.assert_allclose(q.mean(), mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(q.precision.value, precision, rtol=1e-5, atol=1e-4)


def test_natural_gradients_say_what_is_wrong():
    coin = bm.Target(lambda p, y: -y * jnp.log(p), jnp.ones(3))
    prior = bm.Beta.from_concentrations(2.0, 3.0)
    with pytest.raises(TypeError, match="must be one posterior of an exponential family"):
        natural_gradient_vi(coin, 1.0, key=key())
    with pytest.raises(ValueError, match="num_samples is 2, and a regression on 2"):
        natural_gradient_vi(coin, prior, key=key(), num_samples=2)
    large = isotropic(np.zeros(2000), 1.0)
    with pytest.raises(ValueError, match="2001 natural parameters"):
        natural_gradient_vi(coin, large, key=key())


@pytest.mark.slow
@pytest.mark.optimised
def test_better_posteriors_preview_better():
    """Three separable pairs of digits under a weak prior: full Laplace, VON and mixture come nearer
    to joint training in this order."""
    x, y = load_digits(return_X_y=True)
    x = np.column_stack([x / 16, np.ones(len(x))])
    pairs = [(3, 8), (4, 9), (1, 7)]
    tests, targets = [], []
    for a, b in pairs:
        mine = np.flatnonzero(np.isin(y, (a, b)))[:350]  # as many of each: one program for all
        data = jnp.asarray(x[mine]), jnp.asarray(y[mine] == b, float)
        targets.append(bm.Target.supervised(linear, "bernoulli", (data[0][70:], data[1][70:])))
        tests.append((data[0][:70], data[1][:70]))
    prior, weights = isotropic(np.zeros(65), 0.1), bm.simplex_grid(3, 0.2)

    def accuracy(w):
        return jnp.mean(jnp.stack([jnp.mean((x @ w > 0) == (y > 0.5)) for x, y in tests]))

    laplace = [bm.laplace(target, prior) for target in targets]
    von = [
        quiet(target, prior, start=q, num_samples=16)
        for target, q in zip(targets, laplace, strict=True)
    ]
    mixture = [
        bm.mixture_von(
            target,
            prior,
            key=key(),
            num_components=5,
            start=q,
            num_steps=150,
            weight_step_size=1e-3,
            progress=False,
        )
        for target, q in zip(targets, von, strict=True)
    ]
    joint = bm.joint_training(targets, weights, accuracy, prior, progress=False)
    errors = [
        bm.preview(q, weights, accuracy, prior, progress=False).compare(joint).mse
        for q in (laplace, von, mixture)
    ]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < errors[1]


@pytest.mark.parametrize("curvature", ["hessian", "price"])
def test_a_start_that_is_far_too_wide_does_not_throw_a_fit_off(curvature):
    """The first improved step divides by the old precision, here a thousandth of the new one."""
    target, prior, mean, precision = least_squares()
    wide = bm.FullGaussian.from_mean_precision(jnp.zeros(10), jnp.eye(10))
    options = {"curvature": curvature, "start": wide, "num_samples": 32}
    few = {"num_components": 3, "weight_step_size": 1e-9, "progress": False}
    mixture = bm.mixture_von(target, prior, key=key(), **few, **options)
    for q in (quiet(target, prior, **options), mixture):
        away = np.asarray(q.mean()) - mean
        assert np.sqrt(away @ precision @ away / 10) < 1


def test_zero_is_no_step_size_and_schedules_are_watched():
    target, prior, *_ = cancer()
    with pytest.raises(ValueError, match=r"step_size is 0"):
        quiet(target, prior, step_size=0.0)
    with pytest.raises(Exception, match=r"left \[0, 1\]"):
        quiet(target, prior, start=wrong_start(), step_size=lambda t: 3.0, num_steps=1)
