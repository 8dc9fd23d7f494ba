"""Losses from some of their examples, against all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

import bayesmerge as bm
from bayesmerge.fit import subsampled

KEY = jax.random.key(0)


def logits(theta, x):
    return x @ theta["w"] + theta["b"]


def breast_cancer():
    x, y = load_breast_cancer(return_X_y=True)
    x = (x[:, :6] - x[:, :6].mean(0)) / x[:, :6].std(0)
    data = jnp.asarray(x), jnp.asarray(y, float)
    return bm.Target.supervised(logits, "bernoulli", data)


def standard_normal():
    return bm.IsotropicGaussian.from_mean_precision(at(0.0), 1.0)


def at(value):
    return {"w": jnp.full(6, value), "b": jnp.asarray(value)}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_it_is_right_to_first_order_where_it_is_told():
    target = breast_cancer()
    few = subsampled(target, 50, at(-0.3), key=KEY)
    (value, gradient), (seen, slope) = (t.value_and_gradient(at(-0.3)) for t in (target, few))
    np.testing.assert_allclose(seen, value, rtol=1e-12)
    np.testing.assert_allclose(flat(slope), flat(gradient), rtol=1e-10)


def test_elsewhere_it_differs_by_the_examples_alone():
    target = breast_cancer()
    few = subsampled(target, 50, at(-0.3), key=KEY)
    alone = target.minibatch(target.order(KEY), 0, 50)

    def change(t):
        return flat(t.value_and_gradient(at(-0.4))[1]) - flat(t.value_and_gradient(at(-0.3))[1])

    np.testing.assert_allclose(change(few), change(alone), rtol=1e-9)
    assert np.abs(change(few) - change(target)).max() > 0.01


def test_all_examples_are_the_target_itself():
    target = breast_cancer()
    assert subsampled(target, 10_000, at(0.5), key=KEY) is target


def test_its_mode_errs_in_proportion_to_the_distance_of_the_point():
    target = breast_cancer()
    truth = bm.find_mode(target, standard_normal(), method="newton").params

    def error(distance):
        near = jax.tree.map(lambda x: x + distance, truth)
        few = subsampled(target, 100, near, key=KEY)
        found = bm.find_mode(few, standard_normal(), start=near, method="newton").params
        return np.linalg.norm(flat(found) - flat(truth))

    assert error(0.0) < 1e-6
    assert error(0.02) > 1e-3
    assert error(0.02) / error(0.01) == pytest.approx(2, rel=0.05)


def test_refined_previews_take_it():
    target, prior = breast_cancer(), standard_normal()
    x, y = target.data
    sites = {
        name: bm.Target.supervised(logits, "bernoulli", (x[rows], y[rows]))
        for name, rows in {"even": slice(0, 568, 2), "odd": slice(1, 568, 2)}.items()
    }
    q = {name: bm.laplace(site, prior, structure="isotropic") for name, site in sites.items()}
    middle = bm.merge(q, [0.5, 0.5], prior).mode()
    few = {name: subsampled(site, 100, middle, key=KEY) for name, site in sites.items()}
    alone = {name: site.minibatch(site.order(KEY), 0, 100) for name, site in sites.items()}
    weights = [[0.3, 0.7], [0.5, 0.5], [0.7, 0.3]]

    def metric(theta):
        return {f"w{i}": theta["w"][i] for i in range(6)}

    joint = bm.joint_training(sites, weights, metric, prior, progress=False)
    errors = {}
    for name, targets in {"merged": None, "few": few, "alone": alone, "all": sites}.items():
        options = {} if targets is None else {"refine": bm.previews.Refinement(targets, 30)}
        seen = bm.preview(q, weights, metric, prior, progress=False, **options)
        pairs = [(seen.metrics[k], joint.metrics[k]) for k in joint.metrics]
        errors[name] = np.sqrt(np.mean([(a - b) ** 2 for a, b in pairs]))
    assert errors["all"] < 1e-3 < errors["few"] < 0.7 * errors["merged"]
    assert errors["few"] < 0.5 * errors["alone"]


def test_bad_input_is_named():
    target = breast_cancer()
    for size in (0, -3, True):
        with pytest.raises(ValueError, match=f"size is {size!r}"):
            subsampled(target, size, at(0.0), key=KEY)
    with pytest.raises(ValueError, match=r"computed of params with"):
        subsampled(target, 10, {"w": jnp.zeros(5), "b": 0.0}, key=KEY)
    stream = bm.Target.supervised(logits, "bernoulli", [target.data, target.data])
    with pytest.raises(ValueError, match="a stream"):
        subsampled(stream, 10, at(0.0), key=KEY)
    with pytest.raises(ValueError, match="params"):
        subsampled(target, 10, at(jnp.nan), key=KEY)
    with pytest.raises(TypeError, match=r"[Tt]arget"):
        subsampled(lambda theta: 0.0, 10, at(0.0), key=KEY)
