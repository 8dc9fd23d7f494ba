"""Curvature averaged on the way to merged models: exact merges. (Better previews: test_demo.py.)"""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

import bayesmerge as bm

ALPHA = {"a": 0.7, "b": 0.9}


def quartic(w, batch):
    """Its Hessian is quadratic in w, so that three nodes integrate it exactly."""
    x, y = batch
    return (x @ w - y) ** 4


@pytest.fixture
def prior():
    return bm.IsotropicGaussian.from_mean_precision(jnp.zeros(3), 1.0)


@pytest.fixture
def tasks():
    rng = np.random.default_rng(0)
    found = {}
    for name in ALPHA:
        x = rng.normal(size=(8, 3))
        found[name] = bm.Target(quartic, (jnp.asarray(x), jnp.asarray(x @ rng.normal(size=3))))
    return found


def jointly_trained(tasks, prior):
    joint = bm.JointTarget([*tasks.values()], [*ALPHA.values()])
    return bm.find_mode(joint, prior, method="newton").params


def posteriors(tasks, prior, **options):
    return {t: bm.laplace(target, prior, **options) for t, target in tasks.items()}


def test_a_merge_is_exact_with_the_curvature_on_the_way_to_its_result(tasks, prior):
    truth = jointly_trained(tasks, prior)
    at_modes = bm.merge(posteriors(tasks, prior), ALPHA, prior).mode()
    on_the_way = bm.merge(posteriors(tasks, prior, towards=truth), ALPHA, prior).mode()
    assert np.abs(at_modes - truth).max() > 0.1
    np.testing.assert_allclose(on_the_way, truth, atol=1e-9)


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_it_is_an_integral_of_curvatures(tasks, prior, structure):
    target = tasks["a"]
    to = jnp.array([1.0, -2.0, 0.5])
    q = bm.laplace(target, prior, structure=structure, towards=to)
    mode = bm.laplace(target, prior, structure=structure).mode()
    s, weights = np.polynomial.legendre.leggauss(40)
    along = [
        bm.curvature(target, mode + (1 + at) / 2 * (to - mode), "hessian", structure) for at in s
    ]
    average = sum(w / 2 * H for w, H in zip(weights, along, strict=True))
    expected = average + (jnp.eye(3) if structure == "full" else 1.0)
    np.testing.assert_allclose(q.precision.value, expected, rtol=1e-10)
    np.testing.assert_allclose(q.mode(), mode, atol=1e-10)


def test_its_likelihood_factor_times_the_prior_is_it(tasks, prior):
    options = {"towards": jnp.ones(3)}
    factor = bm.laplace(tasks["a"], prior, include_prior=False, **options)
    q = bm.laplace(tasks["a"], prior, **options)
    np.testing.assert_allclose((prior * factor).precision.value, q.precision.value, rtol=1e-12)
    np.testing.assert_allclose((prior * factor).mode(), q.mode(), atol=1e-10)


def test_an_exact_prior_keeps_its_curvature_at_the_mode():
    """Poisson counts with a gamma prior of their rate, in two shards: `merge` takes the prior's
    curvature out at every shard's mode."""
    rate = bm.ExactPrior(lambda u: jnp.exp(u) - 30.0 * u, jnp.log(30.0))
    shards = {
        name: bm.Target(lambda u, y: jnp.exp(u) - y * u, jnp.asarray(y))
        for name, y in {"a": [2.0, 3.0, 2.0], "b": [60.0, 70.0, 55.0]}.items()
    }
    alpha = dict.fromkeys(shards, 1.0)
    total, count = 30 + 7 + 185, 1 + 3 + 3
    truth = jnp.log(total / count)

    def merged(**options):
        q = {t: bm.laplace(s, rate, start=truth, **options) for t, s in shards.items()}
        return bm.merge(q, alpha, prior=rate).mode(truth)

    assert abs(merged() - truth) > 0.05
    assert abs(merged(towards=truth) - truth) < 1e-5
    factor = bm.laplace(shards["b"], rate, start=truth, towards=truth, include_prior=False)
    mode = bm.laplace(shards["b"], rate, start=truth).mode()
    mean = 3 * (jnp.exp(truth) - jnp.exp(mode)) / (truth - mode)
    np.testing.assert_allclose(factor.precision.value, mean, rtol=1e-5)


def test_quadratic_losses_have_one_curvature(prior):
    x, y = load_breast_cancer(return_X_y=True)
    data = jnp.asarray(x[:, :3] / x[:, :3].std(0)), jnp.asarray(y, float)
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", data)
    q = bm.laplace(target, prior)
    same = bm.laplace(target, prior, towards=jnp.full(3, 7.0))
    np.testing.assert_allclose(same.precision.value, q.precision.value, rtol=1e-12)


def test_streams_are_arrays_in_parts(tasks, prior):
    x, y = tasks["a"].data
    stream = bm.Target(quartic, [(x[:5], y[:5]), (x[5:], y[5:])])
    params = bm.find_mode(tasks["a"], prior, method="newton").params
    whole = bm.laplace(tasks["a"], prior, params=params, towards=jnp.ones(3))
    parts = bm.laplace(stream, prior, params=params, towards=jnp.ones(3))
    np.testing.assert_allclose(parts.precision.value, whole.precision.value, rtol=1e-12)


def test_bad_input_is_named(tasks, prior):
    with pytest.raises(ValueError, match="towards"):
        bm.laplace(tasks["a"], prior, towards=jnp.zeros(4))
    with pytest.raises(ValueError, match="towards"):
        bm.laplace(tasks["a"], prior, towards=jnp.full(3, jnp.nan))
    wavy = bm.Target(lambda u, b: 20 * jnp.cos(u) * b, jnp.ones(1))
    near = bm.IsotropicGaussian.from_mean_precision(jnp.asarray(3.1), 1.0)
    with pytest.raises(ValueError, match="Look without `towards` first"):
        bm.laplace(wavy, near, towards=jnp.asarray(-1.0))


def test_it_maps_over_shards(tasks, prior):
    to = jnp.array([0.3, 0.1, -0.2])
    together = bm.fit.fit_shards(tasks, prior, lambda t, p: bm.laplace(t, p, towards=to))
    for name, target in tasks.items():
        alone = bm.laplace(target, prior, towards=to)
        np.testing.assert_allclose(together[name].precision.value, alone.precision.value, rtol=1e-9)
