"""Densities, normalisers, samples and divergences against scipy and numerical integration."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from cases import FAMILIES, SCIPY

import bayesmerge as bm

cases = pytest.mark.parametrize("case", SCIPY, ids=repr)


def scipy_log_prob(case, draws):
    if case.name == "dirichlet":
        return np.array([case.scipy.logpdf(d / d.sum()) for d in draws])
    return case.scipy.logpdf(draws)


@cases
def test_log_prob(case):
    q = case.posterior()
    draws = np.asarray(case.scipy.rvs(size=50, random_state=1))
    ours = jax.jit(jax.vmap(q.log_prob))(jnp.asarray(draws))
    np.testing.assert_allclose(ours, scipy_log_prob(case, draws), rtol=1e-10, atol=1e-10)


@cases
def test_entropy(case):
    np.testing.assert_allclose(case.posterior().entropy(), case.scipy.entropy(), rtol=1e-10)


@cases
def test_mean_and_variance(case):
    q = case.posterior()
    mean = case.scipy.mean if "multivariate" in type(case.scipy).__name__ else case.scipy.mean()
    np.testing.assert_allclose(q.mean(), mean, rtol=1e-12)
    if "multivariate" in type(case.scipy).__name__:
        variance = np.diag(case.scipy.cov)
    else:
        variance = case.scipy.var()
    np.testing.assert_allclose(q.variance(), variance, rtol=1e-12)


@cases
def test_samples(case):
    """Kolmogorov-Smirnov against 20,000 scipy draws' exact marginals, at level 1e-3."""
    q = case.posterior()
    draws = np.asarray(q.sample(jax.random.key(42), (20_000,))).reshape(20_000, -1)
    for d in range(draws.shape[1]):
        if isinstance(getattr(case.scipy, "cov", None), np.ndarray):
            marginal = scipy.stats.norm(case.scipy.mean[d], np.sqrt(case.scipy.cov[d, d]))
        elif case.name == "dirichlet":
            a = case.scipy.alpha
            marginal = scipy.stats.beta(a[d], a.sum() - a[d])
        else:
            marginal = case.scipy
        assert scipy.stats.kstest(draws[:, d], marginal.cdf).pvalue > 1e-3


def test_samples_of_a_full_gaussian_have_its_covariance():
    q = next(case for case in SCIPY if case.name == "full").posterior()
    draws = np.asarray(q.sample(jax.random.key(0), (200, 500))).reshape(-1, 3)
    exact = np.asarray(q.covariance())
    # the standard error of a covariance entry is at most √2·max(exact)/√n
    np.testing.assert_allclose(np.cov(draws.T), exact, atol=5 * np.sqrt(2) * exact.max() / 316)


def unnormalised(q):
    density = jax.jit(lambda x: jnp.exp(q.log_density(x)))
    return lambda *x: float(density(jnp.array(x) if len(x) > 1 else jnp.asarray(x[0])))


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [
        (lambda: bm.Beta.from_concentrations(2.5, 4.0), 0, 1),
        (lambda: bm.Gamma.from_shape_rate(3.5, 2.0), 0, 40),
        (lambda: bm.IsotropicGaussian.from_mean_precision(jnp.array(0.5), 2.0), -8, 9),
        (lambda: bm.FullGaussian.from_mean_precision(jnp.array(0.5), jnp.array([[3.0]])), -8, 9),
    ],
    ids=["beta", "gamma", "isotropic", "full"],
)
def test_log_partition_is_the_integral(make, low, high):
    q = make()
    integral, _ = scipy.integrate.quad(unnormalised(q), low, high, epsabs=1e-13, epsrel=1e-12)
    np.testing.assert_allclose(np.exp(q.log_partition()), integral, rtol=1e-9)


def test_log_partition_is_the_integral_in_two_dimensions():
    precision = jnp.array([[2.0, 0.7], [0.7, 1.0]])
    q = bm.FullGaussian.from_mean_precision(jnp.array([0.5, -0.3]), precision)
    integral, _ = scipy.integrate.dblquad(unnormalised(q), -8, 8, -8, 8, epsabs=1e-9, epsrel=1e-9)
    np.testing.assert_allclose(np.exp(q.log_partition()), integral, rtol=1e-7)


def test_log_partition_of_a_dirichlet_is_the_integral():
    q = bm.Dirichlet.from_concentrations(jnp.array([2.0, 3.0, 2.5]))
    density = jax.jit(lambda x, y: jnp.exp(q.log_density(jnp.stack([x, y, 1 - x - y]))))
    integral, _ = scipy.integrate.dblquad(
        lambda y, x: float(density(x, y)), 0, 1, 0, lambda x: 1 - x, epsabs=1e-10
    )
    np.testing.assert_allclose(np.exp(q.log_partition()), integral, rtol=1e-6)


def test_expected_statistics_in_closed_form():
    digamma = scipy.special.digamma
    a, b = 2.5, 4.0
    log_x, log_1_x = bm.Beta.from_concentrations(a, b).expected_statistics()
    np.testing.assert_allclose(log_x, digamma(a) - digamma(a + b), rtol=1e-10)
    np.testing.assert_allclose(log_1_x, digamma(b) - digamma(a + b), rtol=1e-10)
    log_x, minus_x = bm.Gamma.from_shape_rate(a, b).expected_statistics()
    np.testing.assert_allclose(log_x, digamma(a) - np.log(b), rtol=1e-10)
    np.testing.assert_allclose(minus_x, -a / b, rtol=1e-12)
    c = np.array([1.5, 3.0, 2.0])
    log_p = bm.Dirichlet.from_concentrations(jnp.array(c)).expected_statistics()
    np.testing.assert_allclose(log_p, digamma(c) - digamma(c.sum()), rtol=1e-10)
    full = next(case for case in SCIPY if case.name == "full")
    mean, minus_half_second = full.posterior().expected_statistics()
    second = full.scipy.cov + np.outer(full.scipy.mean, full.scipy.mean)
    np.testing.assert_allclose(mean, full.scipy.mean, rtol=1e-10)
    np.testing.assert_allclose(minus_half_second, -0.5 * second, rtol=1e-10)


@pytest.mark.parametrize(
    ("p", "q", "low", "high"),
    [
        (
            lambda: bm.Beta.from_concentrations(2.5, 4.0),
            lambda: bm.Beta.from_concentrations(5.0, 2.0),
            0,
            1,
        ),
        (
            lambda: bm.Gamma.from_shape_rate(3.5, 2.0),
            lambda: bm.Gamma.from_shape_rate(2.0, 3.0),
            0,
            40,
        ),
        (
            lambda: bm.IsotropicGaussian.from_mean_precision(jnp.array(0.5), 2.0),
            lambda: bm.IsotropicGaussian.from_mean_precision(jnp.array(-0.5), 1.0),
            -8,
            9,
        ),
    ],
    ids=["beta", "gamma", "gaussian"],
)
def test_kl_divergence_is_the_integral(p, q, low, high):
    p, q = p(), q()
    integrand = jax.jit(lambda x: jnp.exp(p.log_prob(x)) * (p.log_prob(x) - q.log_prob(x)))
    integral, _ = scipy.integrate.quad(
        lambda x: float(integrand(jnp.asarray(x))), low + 1e-9, high - 1e-9, epsabs=1e-12
    )
    np.testing.assert_allclose(p.kl_divergence(q), integral, rtol=1e-6)


def test_kl_divergence_of_gaussians_in_matrices():
    rng = np.random.default_rng(0)
    A, B = (m @ m.T + np.eye(3) for m in rng.normal(size=(2, 3, 3)))
    m, n = rng.normal(size=(2, 3))
    p = bm.FullGaussian.from_mean_precision(jnp.array(m), jnp.array(A))
    q = bm.FullGaussian.from_mean_precision(jnp.array(n), jnp.array(B))
    trace = np.trace(B @ np.linalg.inv(A))
    log_ratio = np.linalg.slogdet(A)[1] - np.linalg.slogdet(B)[1]
    expected = 0.5 * (trace - 3 + (m - n) @ B @ (m - n) + log_ratio)
    np.testing.assert_allclose(p.kl_divergence(q), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["isotropic", "diagonal", "full"])
def test_nothing_cancels_when_means_are_large(name):
    """float32, means of 1e4, standard deviations of 1: textbook formulas lose every digit."""
    mean = jnp.array([1e4, -2e4, 3e4], jnp.float32)
    family, precision = {
        "isotropic": (bm.IsotropicGaussian, 1.0),
        "diagonal": (bm.DiagonalGaussian, jnp.ones(3, jnp.float32)),
        "full": (bm.FullGaussian, jnp.eye(3, dtype=jnp.float32)),
    }[name]
    p = family.from_mean_precision(mean, precision)
    q = family.from_mean_precision(mean + 1, precision)
    expected = scipy.stats.multivariate_normal(np.zeros(3)).logpdf(np.ones(3))
    np.testing.assert_allclose(p.log_prob(mean + 1), expected, rtol=1e-5)
    np.testing.assert_allclose(p.kl_divergence(q), 1.5, rtol=1e-5)
    np.testing.assert_allclose(p.entropy(), scipy.stats.norm.entropy() * 3, rtol=1e-5)


def exact_dirichlet_divergence(a, b):
    with mpmath.workdps(40):
        a, b = [mpmath.mpf(float(x)) for x in a], [mpmath.mpf(float(x)) for x in b]

        def bregman(x, y):
            return mpmath.loggamma(y) - mpmath.loggamma(x) - (y - x) * mpmath.digamma(x)

        parts = sum(bregman(x, y) for x, y in zip(a, b, strict=True))
        return float(parts - bregman(sum(a), sum(b)))


@pytest.mark.parametrize("count", [0.3, 3.0, 17.0, 600.0, 1e4, 1e6])
def test_large_counts_in_float32(count):
    """Where differences of log-partitions lose every digit: against scipy and 40 digits."""
    a = np.float32(count) * np.array([1, 2, 3], np.float32)
    moved = a * np.float32(1.001) + np.float32(np.sqrt(count))
    p, q = (bm.Dirichlet.from_concentrations(jnp.asarray(x)) for x in (a, moved))
    a64 = np.asarray(p.concentrations, float)
    expected = exact_dirichlet_divergence(a64, np.asarray(q.concentrations))
    # the change of the concentrations is itself rounded: that error is ε times its size
    rounding = np.finfo(np.float32).eps * float(np.abs(moved - a).sum())
    np.testing.assert_allclose(p.kl_divergence(q), expected, rtol=1e-4, atol=rounding)
    scipy_p = scipy.stats.dirichlet(a64)
    np.testing.assert_allclose(p.entropy(), scipy_p.entropy(), rtol=1e-5, atol=1e-5)
    point = np.array([0.2, 0.3, 0.5]) if count < 10 else a64 / a64.sum()
    at_point = p.log_prob(jnp.asarray(point, jnp.float32))
    np.testing.assert_allclose(at_point, scipy_p.logpdf(point), rtol=1e-5, atol=1e-5)
    gamma = bm.Gamma.from_shape_rate(jnp.float32(count), jnp.float32(2.0))
    shape = float(gamma.shape)
    scipy_gamma = scipy.stats.gamma(shape, scale=0.5)
    np.testing.assert_allclose(gamma.entropy(), scipy_gamma.entropy(), rtol=1e-5, atol=1e-5)
    x = np.float32(shape / 2 * 1.0001)
    np.testing.assert_allclose(gamma.log_prob(x), scipy_gamma.logpdf(x), rtol=1e-5, atol=1e-5)
    beta = bm.Beta.from_concentrations(jnp.float32(count), jnp.float32(2 * count))
    scipy_beta = scipy.stats.beta(*(float(c) for c in beta.concentrations))
    np.testing.assert_allclose(beta.entropy(), scipy_beta.entropy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FAMILIES[3:], ids=repr)
@pytest.mark.parametrize("scale", [0.5, 30.0, 1e3])
def test_textbook_identities_of_the_log_partition(case, scale):
    """entropy = A − ⟨λ, ∇A⟩ and KL = A(λ') − A(λ) − ⟨λ' − λ, ∇A(λ)⟩, by differentiating A."""
    rng = np.random.default_rng(0)
    p, q = case.make(rng) ** scale, case.make(rng) ** scale
    statistics = jax.tree.leaves(p.expected_statistics())

    def inner(natural):
        return sum(np.vdot(x, t) for x, t in zip(jax.tree.leaves(natural), statistics, strict=True))

    entropy = p.log_partition() - inner(p.natural_parameters)
    np.testing.assert_allclose(p.entropy(), entropy, rtol=1e-9, atol=1e-9)
    change = jax.tree.map(jnp.subtract, q.natural_parameters, p.natural_parameters)
    divergence = q.log_partition() - p.log_partition() - inner(change)
    np.testing.assert_allclose(p.kl_divergence(q), divergence, rtol=1e-9, atol=1e-9)


def test_densities_on_and_beyond_the_boundary():
    beta = bm.Beta.from_concentrations(1.0, 3.0)
    np.testing.assert_allclose(beta.log_prob(0.0), scipy.stats.beta(1, 3).logpdf(0))
    assert beta.log_prob(1.0) == beta.log_prob(-0.1) == beta.log_prob(1.1) == -np.inf
    assert bm.Beta.from_concentrations(0.5, 3.0).log_prob(0.0) == np.inf
    assert bm.Gamma.from_shape_rate(2.0, 1.0).log_prob(-1.0) == -np.inf
    off_simplex = bm.Dirichlet.from_concentrations(jnp.ones(3) * 2).log_prob(jnp.ones(3))
    assert off_simplex == -np.inf
    assert np.isfinite(jax.grad(beta.log_prob)(0.3))


@pytest.mark.parametrize("count", [0.2, 5.0, 10.0, 20.0, 100.0, 1e4])
def test_log_partitions_in_forty_digits(count):
    """jax.scipy.special.betaln is wrong in the seventh digit at (5, 10), so it is not used."""
    beta = bm.Beta.from_concentrations(count, 2 * count)
    with mpmath.workdps(40):
        a, b = (mpmath.mpf(float(c)) for c in beta.concentrations)
        exact = float(mpmath.log(mpmath.beta(a, b)))
    np.testing.assert_allclose(beta.log_partition(), exact, rtol=1e-13)
