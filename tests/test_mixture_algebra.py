"""Mixtures reduced, products of mixtures multiplied out, expanded and sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from cases import FAMILIES
from scipy.special import digamma

import bayesmerge as bm
from bayesmerge.mixtures.reduction import nearest_member


def mixture(seed, K, d=2, spread=2.0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(K, d, d + 2))
    means, precisions = spread * rng.normal(size=(K, d)), root @ root.swapaxes(-1, -2) / d
    make = jax.vmap(bm.FullGaussian.from_mean_precision)
    return bm.Mixture(rng.dirichlet(np.ones(K)), make(jnp.asarray(means), jnp.asarray(precisions)))


def test_whole_exponents_multiply_out():
    p, q = mixture(0, 3), mixture(1, 2)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.ones(2), 0.3)
    product = p**2.0 * q / prior
    expanded = product.expand()
    assert expanded.num_components == 3 * 3 * 2
    points = jnp.asarray(np.random.default_rng(2).normal(size=(50, 2)) * 3)
    gap = np.asarray(jax.jit(jax.vmap(expanded.log_prob))(points))
    gap = gap - np.asarray(jax.jit(jax.vmap(product.log_density))(points))
    np.testing.assert_allclose(gap - gap[0], 0, atol=1e-11)
    assert float(expanded.weights.sum()) == pytest.approx(1.0, abs=1e-12)
    best = product.maxima().log_density[0] + gap[0]
    assert float(best) == pytest.approx(float(expanded.maxima().log_density[0]), abs=1e-10)
    with pytest.raises(ValueError, match=r"factor 0 is a mixture with exponent 1\.5"):
        (p**1.5).expand()
    with pytest.raises(ValueError, match=r"10\^14\.3 terms, and at most 200,000"):
        (p**30.0).expand()
    with pytest.raises(ValueError, match="a term of the product is improper"):
        (p / bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 100.0)).expand()


@pytest.mark.parametrize("exponents", [(0.3, 0.7, 0.0), (1.0, 0.6, -0.6), (2.3, 0.0, 0.4)])
def test_draws_of_products_have_their_distribution(exponents):
    """Kolmogorov-Smirnov distance from the integrated density; 5 % of samples exceed 1.36/√n."""
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(1), 0.05)
    product = bm.Product([mixture(3, 4, 1), mixture(4, 3, 1), prior], jnp.array(exponents))
    grid = np.linspace(-15, 15, 30_001)
    log = np.asarray(jax.jit(jax.vmap(product.log_density))(jnp.asarray(grid)[:, None]))
    cumulative = scipy.integrate.cumulative_trapezoid(np.exp(log - log.max()), grid, initial=0)
    draws = np.sort(product.sample(jax.random.key(0), 20_000)[:, 0])
    found = np.interp(draws, grid, cumulative / cumulative[-1])
    assert np.max(np.abs(found - np.arange(20_000) / 20_000)) < 1.9 / 20_000**0.5


def test_draws_have_shapes_and_keys():
    product = mixture(0, 2) * mixture(1, 2)
    assert product.sample(jax.random.key(0)).shape == (2,)
    assert product.sample(jax.random.key(0), (3, 4)).shape == (3, 4, 2)
    first, second = (product.sample(jax.random.key(k), 5) for k in (0, 1))
    assert not np.any(np.isclose(first, second))
    coins = [bm.Beta.from_concentrations(2.0, 3.0)] * 2
    draws = bm.Product(coins, jnp.ones(2)).sample(jax.random.key(0), 4000)
    assert float(draws.mean()) == pytest.approx(3 / 8, abs=0.01)


def test_the_curvature_at_a_mode_is_the_second_derivative():
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 0.2)
    product = bm.merge([mixture(5, 4), mixture(6, 3)], [0.7, 0.9], prior)
    second = jax.jit(jax.hessian(product.log_density))
    for theta in product.maxima().distinct().params:
        hessian = -np.asarray(second(theta))
        q = product.laplace(theta)
        np.testing.assert_allclose(q.precision.value, hessian, atol=1e-11)
        np.testing.assert_allclose(q.mode(), theta, atol=1e-11)
        narrow = product.laplace(theta, structure="diagonal")
        np.testing.assert_allclose(narrow.precision.value, np.diag(hessian), atol=1e-11)
    make = jax.vmap(bm.DiagonalGaussian.from_mean_precision)
    apart = bm.Mixture([0.5, 0.5], make(jnp.array([[-2.0, 0.0], [2.0, 0.0]]), jnp.ones((2, 2))))
    assert isinstance((apart**0.5).laplace(), bm.DiagonalGaussian)
    hessian = -np.asarray(jax.jit(jax.hessian(apart.log_density))(apart.mode()))
    found = (apart**1.0).laplace(structure="full")
    np.testing.assert_allclose(found.precision.value, hessian, atol=1e-7)
    with pytest.raises(ValueError, match="so these are no maximum"):
        (apart**1.0).laplace(jnp.zeros(2))
    coins = bm.Mixture([1.0], [bm.Beta.from_concentrations(3.0, 3.0)]) ** 1.0
    with pytest.raises(TypeError, match="family Beta"):
        coins.laplace()


# Newton's line search stops where rounding hides a fall, at 1e-8 without optimisations.
GAMMA = [
    pytest.param(case, marks=pytest.mark.optimised) for case in FAMILIES if "gamma" in case.name
]
OTHERS = [case for case in FAMILIES if "gamma" not in case.name]


@pytest.mark.parametrize("case", [*OTHERS, *GAMMA], ids=repr)
def test_the_nearest_member_has_the_same_moments(case):
    rng = np.random.default_rng(0)
    q = bm.Mixture(rng.dirichlet(np.ones(3)), [case.make(rng) for _ in range(3)])
    statistics = jax.jit(lambda q: q.expected_statistics())
    nearest, components = statistics(q.collapse()), statistics(q.components)
    for found, each in zip(jax.tree.leaves(nearest), jax.tree.leaves(components), strict=True):
        np.testing.assert_allclose(found, np.tensordot(q.weights, each, 1), rtol=1e-9, atol=1e-9)


def test_the_nearest_gamma_solves_its_equation():
    """log a − ψ(a) = log E[x] − E[log x], by scipy."""
    a, b = np.array([2.0, 5.0, 300.0]), np.array([1.0, 3.0, 2.0])
    weights = np.array([0.3, 0.2, 0.5])
    mean, mean_log = weights @ (a / b), weights @ (digamma(a) - np.log(b))
    gap = np.log(mean) - mean_log
    shape = scipy.optimize.brentq(lambda x: np.log(x) - digamma(x) - gap, 1e-3, 1e3, xtol=1e-14)
    components = jax.vmap(bm.Gamma.from_shape_rate)(jnp.asarray(a), jnp.asarray(b))
    q = bm.Mixture(weights, components).collapse()
    assert float(q.shape) == pytest.approx(shape, rel=1e-10)
    assert float(q.rate) == pytest.approx(shape / mean, rel=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_reducing_keeps_moments_and_merges_the_nearest_first(seed):
    q = mixture(seed, 6)
    small = q.reduce(3)
    assert small.num_components == 3
    np.testing.assert_allclose(small.mean(), q.mean(), atol=1e-9)
    np.testing.assert_allclose(small.variance(), q.variance(), rtol=1e-9)
    np.testing.assert_allclose(
        q.reduce(1).components.precision.value[0], q.collapse().precision.value
    )
    assert q.reduce(6) is q
    costs = {}
    weights = np.asarray(q.weights)
    for i in range(6):
        for j in range(i):
            pair = jax.tree.map(lambda x, i=i, j=j: x[np.array([j, i])], q.components)
            share = weights[[j, i]] / weights[[j, i]].sum()
            merged = nearest_member(jnp.asarray(share), pair)
            log_determinants = np.linalg.slogdet(np.asarray(pair.covariance()))[1]
            log_merged = np.linalg.slogdet(np.asarray(merged.covariance()))[1]
            costs[j, i] = 0.5 * weights[[j, i]] @ (log_merged - log_determinants)
    first = min(costs, key=costs.get)
    untouched = [k for k in range(6) if k not in first]
    kept = q.reduce(5)
    for k in untouched:
        assert np.min(np.linalg.norm(kept.means - q.means[k][None], axis=1)) < 1e-9


def test_equal_components_become_one():
    one = bm.Gamma.from_shape_rate(3.0, 2.0)
    q = bm.Mixture([0.2, 0.3, 0.5], [one, one, bm.Gamma.from_shape_rate(50.0, 2.0)]).reduce(2)
    np.testing.assert_allclose(np.sort(q.weights), [0.5, 0.5])
    np.testing.assert_allclose(np.sort(q.means), [1.5, 25.0])


def test_truncation_keeps_the_heaviest():
    q = bm.Mixture([0.1, 0.6, 0.3], mixture(0, 3).components)
    np.testing.assert_allclose(q.truncate(2).weights, [2 / 3, 1 / 3])
    np.testing.assert_array_equal(q.truncate(2).means, q.means[1:])
    assert q.truncate(min_weight=0.5).num_components == 1
    with pytest.raises(ValueError, match=r"leaves no component; the largest weight is 0\.6"):
        q.truncate(min_weight=0.7)
    with pytest.raises(ValueError, match="count is 0"):
        q.truncate(0)
    with pytest.raises(ValueError, match="count is 0"):
        q.reduce(0)
