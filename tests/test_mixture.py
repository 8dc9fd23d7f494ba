"""Mixtures and lazy products: densities, moments, minorizers, modes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from cases import FAMILIES, Case
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesmerge as bm

seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(FAMILIES)


def mixture(case: Case, rng, K=3):
    return bm.Mixture(rng.dirichlet(np.ones(K)), [case.make(rng) for _ in range(K)])


@given(families, seeds)
@settings(max_examples=12)
def test_density_and_responsibilities_are_those_of_the_components(case, seed):
    rng = np.random.default_rng(seed)
    members, weights = [case.make(rng) for _ in range(3)], rng.dirichlet(np.ones(3))
    q, theta = bm.Mixture(weights, members), case.point(rng)
    logs = np.log(weights) + [float(m.log_prob(theta)) for m in members]
    assert float(q.log_prob(theta)) == pytest.approx(scipy.special.logsumexp(logs), abs=1e-9)
    np.testing.assert_allclose(q.responsibilities(theta), scipy.special.softmax(logs), atol=1e-9)


@given(families, seeds)
@settings(max_examples=12)
def test_the_minorizer_touches_from_below(case, seed):
    rng = np.random.default_rng(seed)
    q, here, there = mixture(case, rng), case.point(rng), case.point(rng)
    low = q.minorizer(here)
    rise = q.log_density(there) - q.log_density(here)
    assert rise >= low.log_density(there) - low.log_density(here) - 1e-9


@given(families, seeds)
@settings(max_examples=12)
def test_a_mixture_of_one_is_its_component(case, seed):
    rng = np.random.default_rng(seed)
    one, theta = case.make(rng), case.point(rng)
    q = bm.Mixture(np.ones(1), [one])
    assert float(q.log_prob(theta)) == pytest.approx(float(one.log_prob(theta)), rel=1e-9)
    for found, expected in ((q.mode(), one.mode()), (q.variance(), one.variance())):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("case", FAMILIES, ids=repr)
def test_samples_have_the_moments(case):
    rng = np.random.default_rng(0)
    q = mixture(case, rng)
    draws = q.sample(jax.random.key(0), (20_000,))
    for found, mean, variance in zip(
        jax.tree.leaves(draws),
        jax.tree.leaves(q.mean()),
        jax.tree.leaves(q.variance()),
        strict=True,
    ):
        spread = np.sqrt(np.asarray(variance))
        np.testing.assert_allclose(found.mean(0), mean, atol=5 * spread.max() / 20_000**0.5)
        away = (np.asarray(found) - np.asarray(mean)[None]) ** 2
        assert np.all(np.abs(away.mean(0) - variance) < 5 * away.std(0) / 20_000**0.5)
    single = q.sample(jax.random.key(1))
    assert jax.tree.structure(single) == jax.tree.structure(q.mean())


@given(families, seeds)
@settings(max_examples=12)
def test_no_step_towards_a_mode_goes_downhill(case, seed):
    rng = np.random.default_rng(seed)
    product = bm.Product([mixture(case, rng), mixture(case, rng)], rng.uniform(0.2, 1.5, 2))
    theta = product.blend().mode()
    heights = [float(product.log_density(theta))]
    for _ in range(5):
        theta = product.minorizer(theta).mode()
        heights.append(float(product.log_density(theta)))
    assert np.diff(heights).min() > -1e-9 * max(1.0, abs(heights[-1]))


def gaussians(seed, K, size=2):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(K, size, size + 2))
    precisions = A @ np.swapaxes(A, 1, 2) + 0.5 * np.eye(size)
    members = [
        bm.FullGaussian.from_mean_precision(jnp.asarray(m), jnp.asarray(p))
        for m, p in zip(2 * rng.normal(size=(K, size)), precisions, strict=True)
    ]
    return bm.Mixture(rng.dirichlet(np.ones(K)), members)


@eqx.filter_jit
def densities(product, points):
    return jax.vmap(product.log_density)(points)


@eqx.filter_jit
def gradient_of(product, theta):
    return jax.grad(product.log_density)(theta)


@pytest.mark.parametrize("seed", range(4))
def test_the_mode_of_a_product_is_stationary_and_the_best_of_a_grid(seed):
    first, second = gaussians(seed, 3), gaussians(seed + 10, 4)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 0.3)
    product = bm.merge({"a": first, "b": second}, {"a": 0.7, "b": 0.9}, prior)
    assert isinstance(product, bm.Product)
    starts = jnp.concatenate([first.means, second.means])
    mode = product.mode(starts)
    assert np.linalg.norm(gradient_of(product, mode)) < 1e-9
    axis = np.linspace(-6.0, 6.0, 121)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert product.log_density(mode) >= np.max(densities(product, jnp.asarray(grid)))


def test_operators_build_the_same_products():
    q = gaussians(0, 3)
    p0 = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 1.0)
    theta = jnp.array([0.3, -0.2])
    expected = 2.0 * q.log_density(theta) - 0.5 * p0.log_density(theta)
    for product in (q**2.0 / p0**0.5, (q * q) * p0**-0.5, p0**-0.5 * q**2.0):
        assert float(product.log_density(theta)) == pytest.approx(float(expected), rel=1e-12)


def test_previews_take_mixtures():
    q = {"a": gaussians(0, 3), "b": gaussians(1, 2)}
    seen = bm.preview(q, bm.simplex_grid(2, 0.25), lambda theta: theta[0], progress=False)
    for row, value in zip(bm.simplex_grid(2, 0.25), seen.values(), strict=True):
        if min(row) > 0:
            expected = bm.merge(q, row).mode()[0]
            assert value == pytest.approx(float(expected), abs=1e-8)


def test_far_components_of_many_dimensions_are_ordinary():
    """Sixty standard deviations apart in fifty dimensions, and a million dimensions in float32."""
    means = jnp.stack([jnp.zeros(50), jnp.full(50, 60.0)])
    make = jax.vmap(bm.IsotropicGaussian.from_mean_precision)
    q = bm.Mixture(np.array([0.5, 0.5]), make(means, jnp.ones(2)))
    np.testing.assert_allclose(q.responsibilities(jnp.full(50, 29.0)), [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(q.responsibilities(jnp.full(50, 30.0)), [0.5, 0.5], atol=1e-9)
    ones = jnp.ones(1_000_000, jnp.float32)
    make = jax.vmap(bm.DiagonalGaussian.from_mean_precision)
    centres = jnp.stack([100 * ones, 100.003 * ones])
    large = bm.Mixture(np.array([0.5, 0.5]), make(centres, jnp.stack([ones, ones])))
    half = large.responsibilities(100.0015 * ones)
    np.testing.assert_allclose(half, [0.5, 0.5], atol=0.15)
    np.testing.assert_allclose(
        large.responsibilities(centres[0])[0], 1 / (1 + np.exp(-4.5)), atol=0.05
    )


def test_mixtures_say_what_is_wrong():
    one = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 1.0)
    two = bm.DiagonalGaussian.from_mean_precision(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match="components is empty"):
        bm.Mixture(np.ones(0), [])
    with pytest.raises(TypeError, match="components of one family"):
        bm.Mixture(np.ones(2), [one, two])
    with pytest.raises(ValueError, match=r"shape \(3,\), and for 2 components"):
        bm.Mixture(np.ones(3), [one, one])
    with pytest.raises(ValueError, match="must not be negative"):
        bm.Mixture(np.array([1.5, -0.5]), [one, one])
    with pytest.raises(ValueError, match="a component is improper"):
        bm.Mixture(np.ones(2), [one, one**-1.0])
    with pytest.raises(TypeError, match="one leading axis K"):
        bm.Mixture(np.ones(1), one)
    q = gaussians(0, 2)
    with pytest.raises(ValueError, match="Factor 1 is a Mixture with exponent -1"):
        q / q
    with pytest.raises(ValueError, match="exponents subtract more than the posteriors have"):
        (q / bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 1e4)).mode()
    with pytest.raises(ValueError, match=r"exponents have shape \(1,\)"):
        bm.Product([q, q], np.ones(1))
    with pytest.raises(TypeError):
        q * 2.0


def test_the_best_mode_is_found_where_densities_are_large():
    """In float32 both log-densities are 5e7 here; their difference of two nats must not drown."""
    with jax.enable_x64(False):
        make = lambda mean: bm.IsotropicGaussian.from_mean_precision(jnp.array([mean]), 100.0)  # noqa: E731
        q = bm.Mixture([0.1, 0.9], [make(1000.0), make(1002.0)]) * make(1001.0)
        mode = q.mode(starts=jnp.array([[1000.0], [1002.0]]))
    assert float(mode[0]) == pytest.approx(1001.5, abs=0.01)


def test_negative_exponents_are_refused_under_jit_too():
    q = gaussians(0, 2)
    with pytest.raises(Exception, match="climbs only while exponents"):
        jax.jit(lambda a: bm.merge([q, q], a).mode())(jnp.array([1.0, -1.0]))
