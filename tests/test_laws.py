"""The algebra of posteriors, for every family."""

import copy
import functools
import operator
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FAMILIES, Case
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesmerge as bm

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=10)  # where nothing but a seed is drawn
exponents = st.floats(-3, 3, allow_nan=False)
families = pytest.mark.parametrize("case", FAMILIES, ids=repr)


def assert_same(p, q, rtol=1e-12, atol=1e-12):
    assert jax.tree.structure(p) == jax.tree.structure(q)
    for x, y in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def some(case: Case, seed: int, number: int):
    rng = np.random.default_rng(seed)
    return [case.make(rng) for _ in range(number)], case.point(rng)


def stacked(members):
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *members)


@families
@given(seed=seeds)
@few
def test_power_zero_is_neutral(case, seed):
    (p, q), theta = some(case, seed, 2)
    assert_same(p * q**0.0, p)
    np.testing.assert_allclose((q**0.0).log_density(theta), 0, atol=1e-14)


@families
@given(seed=seeds)
@few
def test_division_undoes_multiplication(case, seed):
    (p, q), _ = some(case, seed, 2)
    assert_same((p * q) / q, p, rtol=1e-11, atol=1e-11)


@families
@given(seed=seeds, a=exponents, b=exponents)
def test_powers_of_powers_multiply(case, seed, a, b):
    (q,), _ = some(case, seed, 1)
    assert_same((q**a) ** b, q ** (a * b))


@families
@given(seed=seeds)
@few
def test_order_does_not_matter(case, seed):
    (p, q, r), _ = some(case, seed, 3)
    assert_same(p * q * r, r * (p * q), rtol=1e-11)
    assert_same(p * q, q * p)


@families
@given(seed=seeds, a=exponents, b=exponents)
def test_log_densities_add(case, seed, a, b):
    (p, q), theta = some(case, seed, 2)
    expected = a * p.log_density(theta) + b * q.log_density(theta)
    np.testing.assert_allclose((p**a * q**b).log_density(theta), expected, rtol=1e-10, atol=1e-10)


@families
@given(seed=seeds, alpha=st.lists(st.floats(0, 2), min_size=3, max_size=3))
def test_merge_is_the_operators(case, seed, alpha):
    (p0, *qs), _ = some(case, seed, 4)
    factors = [q**a for q, a in zip(qs, alpha, strict=True)]
    assert_same(bm.merge(qs, alpha), functools.reduce(operator.mul, factors))
    gamma = 1 - sum(alpha)
    product = functools.reduce(operator.mul, [p0**gamma, *factors])
    if bool(product.is_proper()):
        assert_same(bm.merge(qs, alpha, prior=p0), product, rtol=1e-11, atol=1e-11)


@families
@given(seed=seeds)
@few
def test_log_density_is_linear_in_the_natural_parameters(case, seed):
    (q,), theta = some(case, seed, 1)
    statistics = q.sufficient_statistics(theta)
    pairs = zip(jax.tree.leaves(q.natural_parameters), jax.tree.leaves(statistics), strict=True)
    inner = sum(np.vdot(x, y) for x, y in pairs)
    np.testing.assert_allclose(q.log_density(theta), inner, rtol=1e-10, atol=1e-10)
    difference = q.log_prob(theta) - (inner - q.log_partition())
    np.testing.assert_allclose(difference, 0, atol=1e-9)
    assert jax.tree.structure(statistics) == jax.tree.structure(q.natural_parameters)


@families
def test_a_batch_behaves_like_its_members(case):
    rng = np.random.default_rng(7)
    members = [case.make(rng) for _ in range(3)]
    theta, other = case.point(rng), case.make(rng)
    batch = stacked(members)
    assert batch.batch_shape == (3,)
    assert members[0].batch_shape == ()
    calls = {
        "log_density": lambda q: q.log_density(theta),
        "log_prob": lambda q: q.log_prob(theta),
        "log_partition": lambda q: q.log_partition(),
        "mode": lambda q: q.mode(),
        "mean": lambda q: q.mean(),
        "variance": lambda q: q.variance(),
        "entropy": lambda q: q.entropy(),
        "is_proper": lambda q: q.is_proper(),
        "expected_statistics": lambda q: q.expected_statistics(),
        "kl to": lambda q: q.kl_divergence(other),
        "kl from": lambda q: other.kl_divergence(q),
        "times": lambda q: (q * other).mode(),
        "over": lambda q: other / q,
        "power": lambda q: q**2.0,
    }
    every = lambda q: {name: call(q) for name, call in calls.items()}  # noqa: E731
    compiled = eqx.filter_jit(every)
    looped = [compiled(q) for q in members]
    found = {"batch": compiled(batch), "vmap": jax.jit(jax.vmap(every))(batch)}
    for actual in found.values():
        for name in calls:
            assert_same(actual[name], stacked(looped)[name], rtol=1e-9, atol=1e-9)
    for name in ("log_prob", "mode", "is_proper", "times", "over", "power"):
        assert_same(calls[name](members[1]), looped[1][name], rtol=1e-9, atol=1e-9)


@families
def test_samples_of_a_batch_are_those_of_its_members(case):
    rng = np.random.default_rng(3)
    members = [case.make(rng) for _ in range(4)]
    batch = stacked(members)
    keys = jax.random.split(jax.random.key(0), 4)
    five = eqx.filter_jit(lambda q, key: q.sample(key, (5,)))
    drawn = jax.jit(jax.vmap(five))(batch, jax.random.clone(keys))
    looped = [five(q, key) for q, key in zip(members, keys, strict=True)]
    assert_same(drawn, stacked(looped))
    together = five(batch, jax.random.key(0))
    assert_same(together, drawn)
    for leaf in jax.tree.leaves(together):
        assert leaf.shape[:2] == (4, 5)


@families
def test_weights_of_shape_A_T_are_a_batch_of_merges(case):
    rng = np.random.default_rng(11)
    qs = [case.make(rng) for _ in range(3)]
    alpha = rng.dirichlet(np.ones(3), size=6)
    batch = bm.merge(qs, alpha)
    assert batch.batch_shape == (6,)
    batch = jax.tree.map(np.asarray, batch)
    for a in range(6):
        member = jax.tree.map(lambda x, a=a: x[a], batch)
        assert_same(member, bm.merge(qs, alpha[a]))


@families
def test_gradients_reach_the_natural_parameters(case):
    rng = np.random.default_rng(5)
    q, theta = case.make(rng), case.point(rng)
    gradient = jax.jit(jax.grad(lambda q: q.log_prob(theta)))(q)
    statistics, expected = q.sufficient_statistics(theta), q.expected_statistics()
    difference = jax.tree.map(np.subtract, statistics, expected)
    assert_same(gradient.natural_parameters, difference, rtol=1e-9, atol=1e-9)


@families
def test_named_tasks(case):
    rng = np.random.default_rng(2)
    p, q = case.make(rng), case.make(rng)
    merged = bm.merge({"first": p, "second": q}, {"second": 0.25, "first": 0.75})
    assert_same(merged, bm.merge([p, q], [0.75, 0.25]))
    columns = {"first": np.array([0.1, 0.2]), "second": 0.5}
    batch = bm.merge({"first": p, "second": q}, columns)
    assert_same(batch, bm.merge([p, q], [[0.1, 0.5], [0.2, 0.5]]))


@families
def test_copies_and_pickles_combine_with_the_original(case):
    q, theta = case.make(np.random.default_rng(0)), case.point(np.random.default_rng(1))
    for copied in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert_same(q * copied, q**2.0)
        assert copied.log_prob(theta) == q.log_prob(theta)


def test_posteriors_over_an_equinox_model():
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    params, _ = eqx.partition(model, eqx.is_inexact_array)
    fisher = jax.tree.map(lambda x: x**2 + 0.1, params)
    q = bm.DiagonalGaussian.from_mean_precision(params, fisher)
    assert_same(q * pickle.loads(pickle.dumps(q)), q**2.0)
    merged = bm.schemes.fisher_average([params, params], [fisher, fisher], [0.5, 0.5])
    assert_same(merged.mode(), params, rtol=1e-6, atol=1e-6)


@families
def test_divergences_map_over_nested_batches(case):
    rng = np.random.default_rng(9)
    members = [[case.make(rng) for _ in range(2)] for _ in range(3)]
    batch, other = stacked([stacked(row) for row in members]), case.make(rng)
    divergence = eqx.filter_jit(lambda p, q: p.kl_divergence(q))
    expected = [[divergence(p, other) for p in row] for row in members]
    np.testing.assert_allclose(divergence(batch, other), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(divergence(batch, batch), np.zeros((3, 2)), atol=1e-10)
