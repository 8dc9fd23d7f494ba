"""Inputs that a new user tried, and that gave a wrong answer or another library's error."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import bayesmerge as bm
from bayesmerge.fit import fit_shards

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = X @ [3.0, -1.0, 0.5] + RNG.normal(size=60)
ONES = {"a": 1.0, "b": 1.0}


def linear(w, x):
    return x @ w


@pytest.fixture(scope="module")
def halves():
    with jax.enable_x64(True):
        return {
            name: bm.Target.supervised(linear, "gaussian", (X[i::2], Y[i::2]))
            for i, name in enumerate("ab")
        }


@pytest.fixture(scope="module")
def prior():
    with jax.enable_x64(True):
        return bm.IsotropicGaussian.from_mean_precision(jnp.zeros(3), 10.0)


def ridge():
    return np.linalg.solve(X.T @ X + 10 * np.eye(3), X.T @ Y)


def test_a_prior_that_a_merge_holds_and_refinement_does_not_is_told(halves, prior):
    fitted = {name: bm.laplace(target, prior) for name, target in halves.items()}
    merged = bm.merge(fitted, ONES, prior)
    refined = bm.refine(halves, merged, ONES, prior, steps=2)
    np.testing.assert_allclose(refined.mode(), ridge(), rtol=1e-8)
    joint, options = bm.JointTarget(halves, ONES), {"key": jax.random.key(0), "num_samples": 200}
    drawn = bm.diagnostics.reweighted(merged, joint, prior, **options)
    with pytest.warns(UserWarning, match="prior is None, a flat one"):
        flat = bm.refine(halves, merged, ONES, steps=2)
    np.testing.assert_allclose(flat.mode(), np.linalg.lstsq(X, Y)[0], rtol=1e-8)
    with pytest.warns(UserWarning, match="prior is None, a flat one"):
        bm.diagnostics.reweighted(merged, joint, **options)
    assert drawn.k == -np.inf, "the merge of linear regressions is exact"


def test_shards_may_be_fitted_to_what_is_no_posterior(halves, prior):
    found = fit_shards(halves, prior, lambda target, p: {"mode": bm.laplace(target, p).mode()})
    for name, i in (("a", 0), ("b", 1)):
        x, y = X[i::2], Y[i::2]
        right = np.linalg.solve(x.T @ x + 10 * np.eye(3), x.T @ y)
        np.testing.assert_allclose(found[name]["mode"], right, rtol=1e-8)


def test_empty_leaves_are_fitted():
    weak = bm.IsotropicGaussian.from_mean_precision(
        {"w": jnp.zeros(3), "none": jnp.zeros((0, 2))}, 10.0
    )
    target = bm.Target.supervised(lambda p, x: x @ p["w"], "gaussian", (X, Y))
    np.testing.assert_allclose(bm.laplace(target, weak).mode()["w"], ridge(), rtol=1e-8)
    q = bm.von(target, weak, key=jax.random.key(0), num_steps=3, step_size=1.0, progress=False)
    np.testing.assert_allclose(q.mode()["w"], ridge(), rtol=1e-6)


def test_labels_of_parameters_are_not_taken_by_position():
    a, b = pd.Series({"x": 1.0, "y": 2.0}), pd.Series({"y": 4.0, "x": 3.0})
    for call in (
        lambda: bm.schemes.average([a, b], [0.5, 0.5]),
        lambda: bm.schemes.fisher_average([a, a], [a, b], [0.5, 0.5]),
        lambda: bm.DiagonalGaussian.from_mean_precision(a, b),
    ):
        with pytest.raises(ValueError, match="the same labels in another order"):
            call()
    same = bm.schemes.average([a, b[["x", "y"]]], [0.5, 0.5]).mode()
    np.testing.assert_allclose(same, [2.0, 3.0])


def test_a_labelled_mask_keeps_its_rows(halves, prior):
    mask = pd.Series(np.arange(30) == 4)
    at = {"prior": prior, "params": bm.find_mode(halves["a"], prior, method="newton").params}
    left = bm.leave_out(halves["a"], mask.sample(frac=1.0, random_state=0), **at)
    np.testing.assert_allclose(left, bm.leave_out(halves["a"], [4], **at))


def test_other_names_are_no_adapters(recwarn):
    names = ("flora_A", "flora_B"), ("kernel_lora_A", "kernel_lora_B")
    for pair, warned in zip(names, (False, True), strict=True):
        models = [{name: jnp.full((2, 2), float(i)) for name in pair} for i in (1, 2)]
        if warned:
            with pytest.warns(UserWarning, match="factors of a low-rank adapter"):
                bm.schemes.average(models, [0.5, 0.5])
        else:
            bm.schemes.average(models, [0.5, 0.5])
    assert not recwarn.list


@pytest.mark.parametrize(
    ("likelihood", "labels", "remedy"),
    [("bernoulli", [-1, 1, 1], r"\(labels > 0\)"), ("poisson", [-1, 0, 2], r"an example\.$")],
)
def test_remedies_for_labels(prior, likelihood, labels, remedy):
    target = bm.Target.supervised(linear, likelihood, (X[:3], np.array(labels)))
    with pytest.raises(ValueError, match=remedy):
        bm.find_mode(target, prior)


def test_integers_of_numpy_do_not_wrap_in_models():
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def model(n, y):
        p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        numpyro.sample("y", dist.Binomial(n, p), obs=y)

    with jax.enable_x64(False), pytest.raises(ValueError, match="does not fit into int32"):
        bm.numpyro.target(model, np.int64(5_000_000_000), np.array([3]))
