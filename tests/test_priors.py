"""Priors as objects: what users pass, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import bayesmerge as bm
from bayesmerge.families.precision import Diagonal, Full
from bayesmerge.fit import fit_shards
from bayesmerge.priors import as_prior


def cauchy(theta):
    return jnp.sum(jnp.log1p(theta**2))


def poisson(u, y):
    return jnp.exp(u) - y * u


PRIORS = {
    "flat": None,
    "gaussian": lambda: bm.IsotropicGaussian.from_mean_precision(jnp.array(0.5), 2.0),
    "exact": lambda: bm.ExactPrior(cauchy, jnp.array(0.1)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_energies_gradients_and_sites_agree(name):
    """The site touches p_0 to second order."""
    given = PRIORS[name] and PRIORS[name]()
    prior, theta = as_prior(given), jnp.array(0.7)
    site = prior.site(theta, Full())
    np.testing.assert_allclose(prior.gradient(theta), jax.grad(prior.energy)(theta), atol=1e-12)
    np.testing.assert_allclose(
        prior.gradient(theta), site.multiply(theta) - site.linear, atol=1e-12
    )
    hessian = jax.hessian(prior.energy)(theta)
    np.testing.assert_allclose(site.precision_matrix(), hessian.reshape(1, 1), atol=1e-12)
    assert prior.given is given
    assert prior.is_flat == (given is None)


def test_an_exact_prior_goes_through_everything():
    """Counts in two shards under a Cauchy prior of log rate: the mode by SciPy."""
    prior = bm.ExactPrior(cauchy, jnp.array(0.1))
    counts = {"a": jnp.array([2.0, 3.0, 2.0]), "b": jnp.array([4.0, 1.0])}
    shards = {n: bm.Target(poisson, y) for n, y in counts.items()}
    q, ones = fit_shards(shards, prior), dict.fromkeys(shards, 1.0)
    merged = bm.merge(q, ones, prior)
    total = sum(float(y.sum()) for y in counts.values())
    truth = minimize_scalar(lambda u: 5 * np.exp(u) - total * u + np.log1p(u**2)).x
    refined = bm.refine(shards, merged, ones, prior, steps=5)
    np.testing.assert_allclose(refined.mode(), truth, rtol=1e-6)
    seen = bm.preview(q, [[1.0, 1.0]], lambda u: u, prior, progress=False)
    np.testing.assert_allclose(seen.values(), merged.mode(), rtol=1e-9)
    joint = bm.joint_training(shards, [[1.0, 1.0]], lambda u: u, prior, progress=False)
    np.testing.assert_allclose(joint.values(), truth, rtol=1e-5)
    alone = bm.laplace(shards["a"], prior)
    np.testing.assert_allclose(bm.remove(merged, "b").mode(), alone.mode(), rtol=1e-6)


def test_diagonals_keep_diagonal_sites():
    prior = bm.ExactPrior(lambda t: cauchy(t) + t[0] * t[1], jnp.zeros(2))
    site = prior.site(jnp.array([0.3, -0.2]), Diagonal())
    assert isinstance(site, bm.DiagonalGaussian)


def test_what_is_no_prior_is_refused():
    target = bm.Target(poisson, jnp.array([1.0]))
    for given, message in (
        (target, "prior is a Target, and it must be a posterior"),
        (cauchy, "prior is a function"),
    ):
        with pytest.raises(TypeError, match=message):
            as_prior(given)
    with pytest.raises(ValueError, match="must be a scalar"):
        bm.ExactPrior(jnp.log1p, jnp.zeros(2))
    with pytest.raises(ValueError, match="start must be finite"):
        bm.ExactPrior(cauchy, jnp.array([0.0, jnp.nan]))
    with pytest.raises(ValueError, match="energy at start must be finite"):
        bm.ExactPrior(lambda t: jnp.sum(jnp.log(t)), jnp.array([-1.0]))
    with pytest.raises(TypeError, match="pass it to `merge` as `prior`"):
        bm.ExactPrior(cauchy, jnp.zeros(2)) * target
