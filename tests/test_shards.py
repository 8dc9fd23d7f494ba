"""Shards against all data at once: refinement, and diagnostics against closed forms."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import ZOO
from scipy import stats

import bayesmerge as bm
from bayesmerge.diagnostics import MergeWarning, difference, overlap, reweighted
from bayesmerge.fit import fit_shards


@pytest.fixture(autouse=True)
def as_numpyro_is_written():
    """NumPyro's own code promotes ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def study(name):
    """Shards, their posteriors, all data, and the prior, of one example of the zoo."""
    example = ZOO[name]
    shards = [bm.numpyro.target(example.model, *part) for part in example.parts()]
    prior = bm.numpyro.prior(shards)
    full = bm.numpyro.target(example.model, *example.whole())
    return shards, fit_shards(shards, prior), full, prior


@pytest.mark.slow
def test_refinement_closes_the_gap_to_all_data():
    """The other models of the zoo: benchmarks/shards.py."""
    shards, posteriors, full, prior = study("linear, unknown noise")
    weights = np.ones(len(shards))
    merged = bm.merge(posteriors, weights, prior)
    reference = bm.laplace(full, prior)
    refined = bm.refine(shards, merged, weights, prior, steps=4)
    found = difference(refined, reference)
    assert abs(found.largest[1]) < 1e-6
    for ratio in jax.tree.leaves(found.spread):
        np.testing.assert_allclose(ratio, 1, atol=1e-6)


def product_of_two(theta, y):
    return 0.5 * (theta[0] * theta[1] - y) ** 2


def test_refinement_where_the_joint_density_is_not_concave():
    """From beside the saddle at zero of Σ(θ_1θ_2 − y)², uphill all the same."""
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 0.1)
    tasks = [bm.Target(product_of_two, jnp.array(y)) for y in ([1.0, 2.0], [3.0, 4.0])]
    refined = bm.refine(tasks, jnp.array([0.2, 0.1]), [1.0, 1.0], prior, steps=15)
    np.testing.assert_allclose(refined.mode(), np.sqrt(2.5 - 0.1 / 4) * np.ones(2), rtol=1e-9)


def test_refinement_says_when_it_has_not_converged():
    shards, posteriors, _, prior = study("linear, unknown noise")
    merged = bm.merge(posteriors, np.ones(8), prior)
    with pytest.warns(bm.ConvergenceWarning, match="posterior standard deviations"):
        bm.refine(shards, merged, np.ones(8), prior, steps=1)
    with pytest.raises(ValueError, match="steps is 0"):
        bm.refine(shards, merged, np.ones(8), prior, steps=0)
    with pytest.raises(ValueError, match="one merge is refined at a time"):
        bm.refine(shards, merged, np.ones((2, 8)), prior)


def quartic(theta, y):
    return 0.25 * (theta - y) ** 4


def test_refinement_with_gaussian_priors_of_every_structure():
    tasks = [bm.Target(quartic, jnp.array([0.5, 2.0])), bm.Target(quartic, jnp.array([3.0]))]
    for prior in (
        bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0),
        bm.FullGaussian.from_mean_precision(jnp.array(0.0), jnp.eye(1)),
    ):
        joint = bm.find_mode(bm.JointTarget(tasks, [1.0, 2.0]), prior, method="newton").params
        refined = bm.refine(tasks, prior, [1.0, 2.0], prior, steps=12, structure="diagonal")
        np.testing.assert_allclose(refined.mode(), joint, rtol=1e-9)


def test_shards_in_one_call_are_shards_one_by_one():
    shards, posteriors, _, prior = study("linear, unknown noise")
    for shard, q in zip(shards, posteriors.values(), strict=True):
        alone = bm.laplace(shard, prior)
        np.testing.assert_allclose(q.precision.value, alone.precision.value, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(q.mode()["beta"], alone.mode()["beta"], rtol=1e-7, atol=1e-9)


def test_an_unknown_noise_scale_is_noticed_and_helped():
    """Eight shards: log σ drifts by about T·p/√(2n) standard deviations."""
    shards, posteriors, full, prior = study("linear, unknown noise")
    with pytest.warns(MergeWarning, match="moves log sigma by"):
        found = bm.diagnose(
            dict(zip(posteriors, shards, strict=True)),
            posteriors,
            np.ones(8),
            prior,
            key=jax.random.key(0),
        )
    reference = bm.laplace(full, prior)
    truth = difference(found.merged, reference).shift
    name, shift = found.refined.largest
    assert name == "sigma"
    np.testing.assert_allclose(shift, truth["sigma"], rtol=0.01)
    predicted = -8 * 3 / np.sqrt(2 * 442)
    np.testing.assert_allclose(truth["sigma"], predicted, rtol=0.05)
    assert found.reweighted.k < 0.7
    mean = found.reweighted.mean()
    assert abs(mean["sigma"] - reference.mode()["sigma"]) < 0.3 * jnp.sqrt(
        reference.variance()["sigma"]
    )
    text = str(found)
    assert "sigma" in text
    assert "beta[2]" in text
    assert "refine(targets, merged, weights" in text


def test_agreeing_shards_are_left_in_peace():
    shards, posteriors, full, prior = study("linear, known noise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bm.diagnose(
            dict(zip(posteriors, shards, strict=True)),
            posteriors,
            np.ones(4),
            prior,
            key=jax.random.key(0),
            reference=bm.laplace(full, prior),
        )
    assert found.concerns == ()
    np.testing.assert_allclose(found.reference.divergence, 0, atol=1e-9)
    assert found.reweighted.k < 0.5
    assert found.reweighted.effective_samples > 990


def squared(theta, y):
    return 0.5 * jnp.sum((theta[None, :] - y) ** 2, axis=1)


def evidence(y):
    """log p(y) of rows y_i ~ N(θ, I), θ ~ N(0, I/τ), without the factors of 2π that cancel."""
    n, tau = len(y), 0.5
    return sum(
        stats.multivariate_normal.logpdf(column, np.zeros(n), np.eye(n) + 1 / tau)
        for column in np.asarray(y).T
    )


def test_overlap_is_a_bayes_factor():
    rng = np.random.default_rng(1)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 0.5)
    parts = {
        "a": rng.normal(size=(3, 2)),
        "b": rng.normal(size=(4, 2)),
        "c": rng.normal(size=(2, 2)) + 2,
    }
    tasks = {n: bm.Target(squared, jnp.asarray(y)) for n, y in parts.items()}
    found = overlap({n: bm.laplace(t, prior) for n, t in tasks.items()}, np.ones(3), prior)
    together = evidence(np.concatenate(list(parts.values())))
    apart = sum(evidence(y) for y in parts.values())
    np.testing.assert_allclose(found.log_normaliser, together - apart, rtol=1e-9)
    others = evidence(np.concatenate([parts["a"], parts["b"]]))
    np.testing.assert_allclose(found.by_task["c"], together - others - evidence(parts["c"]))


def test_surprise_is_the_test_of_two_means():
    """With a flat prior z is the difference of two means over its standard error, and χ² the
    sum."""
    a, b = np.array([[0.0, 1.0], [1.0, 3.0]]), np.array([[2.0, 2.0], [4.0, 2.0], [3.0, 5.0]])
    factors = [bm.expand(bm.Target(squared, jnp.asarray(y)), jnp.zeros(2)) for y in (a, b)]
    for qs in (
        factors,
        [
            bm.DiagonalGaussian.from_mean_precision(f.mode(), f.precision.diagonal())
            for f in factors
        ],
    ):
        found = overlap(qs, np.ones(2))
        z = (a.mean(0) - b.mean(0)) / np.sqrt(1 / 2 + 1 / 3)
        np.testing.assert_allclose(found.surprise["0"], z, rtol=1e-9)
        np.testing.assert_allclose(found.p_value["1"], stats.chi2.sf(z @ z, 2), rtol=1e-9)


def test_tasks_that_say_nothing_do_not_surprise():
    def first_only(theta, y):
        return 0.5 * (theta[0] - y) ** 2

    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 1.0)
    tasks = [bm.Target(first_only, jnp.array([y])) for y in (1.0, 2.0)]
    found = overlap([bm.laplace(t, prior) for t in tasks], np.ones(2), prior)
    assert found.surprise["0"][1] == 0
    z = (1.0 - 0.5 * 2.0) / np.sqrt(1 + 0.5)
    np.testing.assert_allclose(found.surprise["0"][0], z, atol=1e-9)
    q = bm.laplace(tasks[0], prior)
    with pytest.raises(ValueError, match="at least two"):
        overlap([q], [1.0])
    with pytest.raises(ValueError, match="without task '0'"):
        overlap([q, bm.expand(tasks[1], jnp.zeros(2))], [1.0, 1.0])


def test_importance_weights_and_their_tail():
    """q = N(0, 1): for p = N(0.3, 0.8²) the weighted mean is 0.3; for p = N(0, 2²) the tail of the
    weights is that of a Pareto distribution with k = 1 − 1/4, reached slowly: as many quantiles of
    the weights as there are draws have k = 0.70, and the keys 0 to 5 give 0.68 to 0.73."""
    q = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)

    def normal(mean, sd):
        return bm.Target(lambda theta, y: 0.5 * (theta - y) ** 2 / sd**2, jnp.array([mean]))

    near = reweighted(q, normal(0.3, 0.8), key=jax.random.key(0), num_samples=20_000)
    np.testing.assert_allclose(near.mean(), 0.3, atol=0.02)
    np.testing.assert_allclose(np.exp(near.log_weights).sum(), 1.0)
    assert near.k < 0.3
    assert 10_000 < near.effective_samples < 20_000
    far = reweighted(q, normal(0.0, 2.0), key=jax.random.key(0), num_samples=200_000)
    np.testing.assert_allclose(far.k, 0.70, atol=0.05)


def test_differences_by_hand():
    q = bm.DiagonalGaussian.from_mean_precision(
        {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([1.0, 4.0])}
    )
    p = bm.DiagonalGaussian.from_mean_precision(
        {"a": jnp.array([0.0, 2.0])}, {"a": jnp.array([4.0, 4.0])}
    )
    found = difference(q, p)
    np.testing.assert_allclose(found.shift["a"], [2.0, 0.0])
    np.testing.assert_allclose(found.spread["a"], [2.0, 1.0])
    assert found.largest == ("a[0]", 2.0)
    np.testing.assert_allclose(found.divergence, np.log(2) + (0.25 + 1) / 2 - 0.5)
    with pytest.raises(TypeError, match="one of Gaussians"):
        difference(bm.Beta.from_concentrations(1.0, 2.0), p)
