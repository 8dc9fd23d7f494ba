"""Curvature against brute force: jax.hessian, per-example gradients, enumeration of labels."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.flatten_util import ravel_pytree

import bayesmerge as bm
from bayesmerge.fit.likelihood import LIKELIHOODS, as_likelihood

N, D, WIDTH, CLASSES = 23, 4, 3, 3


def network(params, x):
    """A network of one hidden layer, its parameters a nested pytree."""
    hidden = jnp.tanh(x @ params["in"]["W"] + params["in"]["b"][None, :])
    return hidden @ params["out"][0] + params["out"][1][None, :]


def parameters(rng, outputs=CLASSES):
    return {
        "in": {"W": jnp.asarray(rng.normal(size=(D, WIDTH))), "b": jnp.asarray(rng.normal(size=3))},
        "out": (
            jnp.asarray(rng.normal(size=(WIDTH, outputs))),
            jnp.asarray(rng.normal(size=outputs)),
        ),
    }


def labels(rng, likelihood):
    return {
        "categorical": lambda: rng.integers(CLASSES, size=N),
        "bernoulli": lambda: rng.integers(2, size=(N, 1)),
        "gaussian": lambda: rng.normal(size=(N, 1)),
        "poisson": lambda: rng.poisson(2.0, size=(N, 1)),
    }[likelihood]()


def problem(likelihood="categorical", seed=0):
    rng = np.random.default_rng(seed)
    params = parameters(rng, CLASSES if likelihood == "categorical" else 1)
    data = (jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(labels(rng, likelihood)))
    return bm.Target.supervised(network, likelihood, data), params


def flat(target, params):
    vector, unravel = ravel_pytree(params)
    return vector, lambda v: target.loss(unravel(v), target.data)


def brute_force(kind, target, params):
    vector, losses = flat(target, params)
    if kind == "hessian":
        return np.asarray(jax.jit(jax.hessian(lambda v: losses(v).sum()))(vector))
    if kind == "squared_gradients":
        gradients = np.asarray(jax.jit(jax.jacobian(losses))(vector))
        return gradients.T @ gradients
    x, y = target.data
    _, unravel = ravel_pytree(params)

    @jax.jit
    def parts(v):
        f = network(unravel(v), x)
        B = jax.vmap(jax.hessian(target.loss.likelihood.loss))(f, y)
        J = jax.jacobian(lambda v: network(unravel(v), x))(v)
        return J, B.reshape(len(x), f.shape[1], f.shape[1])

    J, B = parts(vector)
    return np.einsum("ncp,ncd,ndq->pq", J, B, J)


kinds = pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "squared_gradients"])
likelihoods = pytest.mark.parametrize("likelihood", list(LIKELIHOODS))


@kinds
@likelihoods
def test_every_structure_against_brute_force(kind, likelihood):
    target, params = problem(likelihood)
    exact = brute_force(kind, target, params)
    scale = np.abs(exact).max()
    full = bm.curvature(target, params, kind)
    np.testing.assert_allclose(full, exact, rtol=1e-10, atol=1e-11 * scale)
    np.testing.assert_allclose(full, full.T, rtol=1e-10, atol=1e-12 * scale)
    diagonal, _ = ravel_pytree(bm.curvature(target, params, kind, "diagonal"))
    np.testing.assert_allclose(diagonal, np.diag(exact), rtol=1e-10, atol=1e-11 * scale)
    isotropic = bm.curvature(target, params, kind, "isotropic")
    np.testing.assert_allclose(isotropic, np.trace(exact) / len(exact), rtol=1e-10)


@kinds
@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("block_size", [1, 5, 1000])
def test_blocks_change_nothing(kind, structure, block_size):
    target, params = problem()
    whole = bm.curvature(target, params, kind, structure)
    blocked = bm.curvature(target, params, kind, structure, block_size=block_size)
    np.testing.assert_allclose(
        ravel_pytree(blocked)[0], ravel_pytree(whole)[0], rtol=1e-10, atol=1e-12
    )


@kinds
@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_minibatches_equal_the_full_batch(kind, structure):
    target, params = problem()
    x, y = target.data
    batches = [(x[i : i + 7], y[i : i + 7]) for i in range(0, N, 7)]
    streamed = bm.Target.supervised(network, "categorical", batches)
    expected = ravel_pytree(bm.curvature(target, params, kind, structure))[0]
    actual = ravel_pytree(bm.curvature(streamed, params, kind, structure))[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_many_examples_are_worked_on_in_chunks(monkeypatch):
    module = importlib.import_module("bayesmerge.fit.curvature")
    target, params = problem()
    whole = bm.curvature(target, params, "hessian")
    monkeypatch.setattr(module, "EXAMPLES_AT_ONCE", 5)
    np.testing.assert_allclose(
        bm.curvature(target, params, "hessian"), whole, rtol=1e-10, atol=1e-12
    )


def test_exact_fisher_of_softmax_by_enumerating_labels():
    target, params = problem()
    x, _ = target.data
    vector, unravel = ravel_pytree(params)
    p = scipy.special.softmax(network(params, x), axis=1)
    gradients = jax.jit(jax.jacobian(lambda v, y: target.loss(unravel(v), (x, y))))
    expected = 0
    for label in range(CLASSES):
        each = np.asarray(gradients(vector, np.full(N, label)))
        expected += np.einsum("n,np,nq->pq", p[:, label], each, each)
    fisher = bm.curvature(target, params, "fisher")
    np.testing.assert_allclose(fisher, expected, rtol=1e-9, atol=1e-11)


@likelihoods
def test_sampled_fisher_is_unbiased(likelihood):
    """The mean of 400 estimates, within five of its standard errors of the exact Fisher."""
    target, params = problem(likelihood)
    exact, _ = ravel_pytree(bm.curvature(target, params, "fisher", "diagonal"))

    def estimate(key):
        sampled = bm.curvature(target, params, "fisher", "diagonal", num_samples=2, key=key)
        return ravel_pytree(sampled)[0]

    estimates = np.asarray(jax.lax.map(estimate, jax.random.split(jax.random.key(0), 400)))
    error = estimates.std(axis=0, ddof=1) / 20
    assert (np.abs(estimates.mean(axis=0) - exact) < 5 * error + 1e-12).all()
    full = bm.curvature(target, params, "fisher", num_samples=2, key=jax.random.key(1))
    diagonal, _ = ravel_pytree(
        bm.curvature(target, params, "fisher", "diagonal", num_samples=2, key=jax.random.key(1))
    )
    np.testing.assert_allclose(np.diag(full), diagonal, rtol=1e-10)


@likelihoods
def test_roots_square_to_the_hessian_in_the_output(likelihood):
    known = LIKELIHOODS[likelihood]
    f = jnp.array([0.3, -1.2, 2.0]) if likelihood == "categorical" else jnp.array([0.3])
    y = jnp.array(1) if likelihood == "categorical" else jnp.array([1.0])
    B = jax.jit(jax.hessian(known.loss))(f, y)
    R = np.asarray(known.root(f, y))
    np.testing.assert_allclose(R @ R.T, B, rtol=1e-12, atol=1e-14)
    R = np.asarray(jax.jit(as_likelihood(known.loss).root)(f, y))
    np.testing.assert_allclose(R @ R.T, B, rtol=1e-9, atol=1e-12)


def test_a_loss_of_one_example_is_a_likelihood():
    def robust(output, label):
        return jnp.sum(jnp.log(jnp.cosh(output - label)))

    target, params = problem("gaussian")
    own = bm.Target.supervised(network, robust, target.data)
    exact = brute_force("ggn", own, params)
    np.testing.assert_allclose(bm.curvature(own, params, "ggn"), exact, rtol=1e-9, atol=1e-11)


def test_scalar_outputs_need_no_class_axis():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(9, 2))), jnp.asarray(rng.integers(2, size=9))
    target = bm.Target.supervised(lambda w, x: x @ w, "bernoulli", (x, y))
    w = jnp.array([0.3, -0.7])
    p = scipy.special.expit(np.asarray(x) @ w)
    expected = np.einsum("n,np,nq->pq", p * (1 - p), x, x)
    np.testing.assert_allclose(bm.curvature(target, w, "ggn"), expected, rtol=1e-12)
    np.testing.assert_allclose(bm.curvature(target, w, "hessian"), expected, rtol=1e-12)


def test_joint_targets_weigh_curvatures():
    (first, params), (second, _) = problem(seed=0), problem(seed=1)
    joint = bm.JointTarget({"a": first, "b": second}, {"a": 0.3, "b": 2.0})
    for kind in ("hessian", "ggn", "squared_gradients"):
        parts = [bm.curvature(t, params, kind) for t in (first, second)]
        expected = 0.3 * parts[0] + 2.0 * parts[1]
        np.testing.assert_allclose(bm.curvature(joint, params, kind), expected, rtol=1e-12)
