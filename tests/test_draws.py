"""Posteriors from draws of elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from sklearn.datasets import load_diabetes

import bayesmerge as bm
from bayesmerge.fit import kernel_density, moment_matched


def test_moments_are_those_of_the_draws():
    rng = np.random.default_rng(0)
    draws = {"a": jnp.asarray(rng.normal(size=(50, 2))), "b": jnp.asarray(rng.normal(size=50))}
    rows = np.column_stack([draws["a"], draws["b"]])
    q = moment_matched(draws)
    np.testing.assert_allclose(q.mode()["a"], rows[:, :2].mean(0), rtol=1e-9)
    np.testing.assert_allclose(q.covariance(), np.cov(rows.T), rtol=1e-9)
    q = moment_matched(draws, structure="diagonal")
    np.testing.assert_allclose(q.variance()["b"], rows[:, 2].var(ddof=1), rtol=1e-12)
    q = moment_matched(draws, structure="isotropic")
    np.testing.assert_allclose(1 / q.precision.value, rows.var(0, ddof=1).mean(), rtol=1e-12)


def test_consensus_monte_carlo():
    """Draws of three shards' exact posteriors, matched and merged, give the posterior of all data,
    within Monte-Carlo error."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    x = x[:, :5]
    prior = bm.FullGaussian.from_mean_precision(jnp.zeros(5), jnp.eye(5))

    def exact(rows):
        precision = x[rows].T @ x[rows] + np.eye(5)
        mean = np.linalg.solve(precision, x[rows].T @ y[rows])
        return bm.FullGaussian.from_mean_precision(jnp.asarray(mean), jnp.asarray(precision))

    shards = [exact(rows) for rows in np.array_split(np.arange(len(y)), 3)]
    keys = jax.random.split(jax.random.key(0), 3)
    matched = [moment_matched(q.sample(k, (20_000,))) for q, k in zip(shards, keys, strict=True)]
    merged, truth = bm.merge(matched, np.ones(3), prior), exact(np.arange(len(y)))
    away = np.asarray(merged.mode() - truth.mode())
    assert np.sqrt(away @ truth.precision.value @ away / 5) < 0.05
    ratios = scipy.linalg.eigvalsh(
        np.asarray(merged.precision.value), np.asarray(truth.precision.value)
    )
    np.testing.assert_allclose(ratios, 1.0, atol=0.05)


@pytest.mark.optimised
def test_kernel_densities_keep_skewness():
    """Two Gamma-shaped densities multiply to a third, whose mode moments miss."""
    rng = np.random.default_rng(0)
    shards = [rng.gamma(3.0, size=(4000, 1)), rng.gamma(4.0, size=(4000, 1))]
    kernels = [kernel_density(jnp.asarray(d), num_components=300, bandwidth=0.2) for d in shards]
    matched = [moment_matched(jnp.asarray(d)) for d in shards]
    truth = (2 + 3) / 2  # x² e^−x · x³ e^−x
    errors = [float(bm.merge(q, np.ones(2)).mode()[0]) - truth for q in (kernels, matched)]
    assert abs(errors[0]) < 0.2
    assert abs(errors[1]) > 0.5


def test_kernel_densities_are_those_of_scipy():
    draws = np.random.default_rng(0).gamma(3.0, size=(200, 2))
    own = kernel_density(jnp.asarray(draws))
    scipys = scipy.stats.gaussian_kde(draws.T)
    points = draws[:5] + 0.3
    found = [float(own.log_prob(jnp.asarray(point))) for point in points]
    np.testing.assert_allclose(found, scipys.logpdf(points.T), rtol=1e-9)


def test_draws_say_what_is_wrong():
    good = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    with pytest.raises(ValueError, match="there are 3 draws, and the full covariance of 3"):
        moment_matched(good[:3])
    with pytest.raises(ValueError, match="must be finite"):
        moment_matched(good.at[2, 1].set(jnp.nan))
    with pytest.raises(ValueError, match="constant in some direction"):
        moment_matched(good.at[:, 2].set(good[:, 0] + good[:, 1]))
    with pytest.raises(ValueError, match="constant in some direction"):
        moment_matched(good.at[:, 2].set(1.0), structure="diagonal")
    with pytest.raises(ValueError, match="first axes are"):
        moment_matched({"a": good, "b": good[:5]})
    with pytest.raises(ValueError, match="num_components is 21, and there are 20 draws"):
        kernel_density(good, num_components=21)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        kernel_density(good, bandwidth=0.0)


def test_components_are_taken_from_all_of_many_draws():
    draws = jnp.arange(3_000_000, dtype=jnp.float32)[:, None] / 3e6
    q = kernel_density(draws, structure="diagonal", num_components=1000)
    assert float(q.mean()[0]) == pytest.approx(0.5, abs=0.01)
