"""Merging against the papers' printed formulas, and against training on all data."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import statsmodels.api as sm
from cases import precision_matrix
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes

import bayesmerge as bm

seeds = st.integers(0, 2**32 - 1)
structures = pytest.mark.parametrize("structure", ["isotropic", "diagonal", "full"])


def curvature(rng, structure, size):
    """Random H_t in the form that the named schemes take, and as a matrix."""
    if structure == "isotropic":
        h = rng.gamma(2.0)
        return h, h * np.eye(size)
    if structure == "diagonal":
        h = rng.gamma(2.0, size=size)
        return jnp.asarray(h), np.diag(h)
    matrix = np.asarray(precision_matrix(rng, size)) + np.eye(size)
    return jnp.asarray(matrix), matrix


def problem(seed, structure, num_tasks=3, size=5):
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(num_tasks, size))
    base = rng.normal(size=size)
    pairs = [curvature(rng, structure, size) for _ in range(num_tasks + 1)]
    given_H, H = [p[0] for p in pairs], np.stack([p[1] for p in pairs])
    alpha = rng.uniform(0, 1.5, size=num_tasks)
    return theta, base, given_H, H, alpha


def assert_close(actual, expected, rtol):
    assert np.linalg.norm(actual - expected) <= rtol * np.linalg.norm(expected)


@structures
@given(seed=seeds)
def test_GM_10_is_the_mode_of_the_product(structure, seed):
    """θ_0 + Σα_t H̄⁻¹(H_0+H_t)(θ_t−θ_0), as printed, with γ = 1 − Σα not zero."""
    theta, base, given_H, H, alpha = problem(seed, structure)
    H0, Ht = H[0], H[1:]
    H_bar = H0 + np.einsum("t,tij->ij", alpha, Ht)
    pulls = [a * (H0 + h) @ (t - base) for a, h, t in zip(alpha, Ht, theta, strict=True)]
    printed = base + np.linalg.solve(H_bar, np.sum(pulls, axis=0))
    scheme = bm.schemes.gradient_matching(
        list(jnp.asarray(theta)), given_H[1:], alpha, jnp.asarray(base), given_H[0]
    )
    p0 = bm.FullGaussian.from_mean_precision(jnp.asarray(base), jnp.asarray(H0))
    qs = [
        bm.FullGaussian.from_mean_precision(jnp.asarray(t), jnp.asarray(H0 + h))
        for t, h in zip(theta, Ht, strict=True)
    ]
    assert_close(scheme.mode(), printed, 1e-12)
    assert_close(bm.merge(qs, alpha, prior=p0).mode(), printed, 1e-12)


@given(seed=seeds)
def test_simple_averaging_as_printed(seed):
    theta, _, _, _, alpha = problem(seed, "isotropic")
    assert_close(bm.schemes.average(list(jnp.asarray(theta)), alpha).mode(), alpha @ theta, 1e-13)


@given(seed=seeds)
def test_task_arithmetic_as_printed(seed):
    theta, base, _, _, alpha = problem(seed, "isotropic")
    merged = bm.schemes.task_arithmetic(list(jnp.asarray(theta)), alpha, jnp.asarray(base))
    assert_close(merged.mode(), base + alpha @ (theta - base), 1e-12)


@structures
@given(seed=seeds)
def test_fisher_averaging_as_printed(structure, seed):
    theta, _, given_F, F, alpha = problem(seed, structure)
    F = F[1:]
    F_bar = np.einsum("t,tij->ij", alpha, F)
    printed = sum(
        a * np.linalg.solve(F_bar, f @ t) for a, f, t in zip(alpha, F, theta, strict=True)
    )
    merged = bm.schemes.fisher_average(list(jnp.asarray(theta)), given_F[1:], alpha)
    assert_close(merged.mode(), printed, 1e-12)


@structures
@given(seed=seeds)
def test_hessian_weighted_merging_as_printed(structure, seed):
    """FP-10, and with γ ≠ 0 as corrected in misprint 11."""
    theta, _, given_H, H, alpha = problem(seed, structure)
    H = H[1:]
    weighted = np.einsum("t,tij,tj->i", alpha, H, theta)
    total = np.einsum("t,tij->ij", alpha, H)
    merged = bm.schemes.hessian_weighted(list(jnp.asarray(theta)), given_H[1:], alpha)
    assert_close(merged.mode(), np.linalg.solve(total, weighted), 1e-12)
    alpha = alpha / alpha.sum() * 0.7
    total = np.einsum("t,tij->ij", alpha, H)
    weighted = np.einsum("t,tij,tj->i", alpha, H, theta)
    gamma = 1 - alpha.sum()
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(5), 1.0)
    merged = bm.schemes.hessian_weighted(list(jnp.asarray(theta)), given_H[1:], alpha, prior)
    corrected = np.linalg.solve(gamma * np.eye(5) + total, weighted)
    assert_close(merged.mode(), corrected, 1e-12)


def test_special_cases_of_GM_10():
    """H_t = 0 is task arithmetic; H_0 = 0 is Fisher averaging."""
    theta, base, _, H, alpha = problem(0, "diagonal")
    theta, base = list(jnp.asarray(theta)), jnp.asarray(base)
    fishers = [jnp.asarray(np.diag(h)) for h in H[1:]]
    no_curvature = bm.schemes.gradient_matching(theta, [0.0, 0.0, 0.0], alpha, base, 1.0)
    task_arithmetic = bm.schemes.task_arithmetic(theta, alpha, base)
    np.testing.assert_allclose(no_curvature.mode(), task_arithmetic.mode(), rtol=1e-12)
    no_base = bm.schemes.gradient_matching(theta, fishers, alpha, base, 0.0)
    fisher = bm.schemes.fisher_average(theta, fishers, alpha)
    np.testing.assert_allclose(no_base.mode(), fisher.mode(), rtol=1e-12)


def ridge_loss(theta, batch):
    x, y = batch
    return 0.5 * (x @ theta - y) ** 2


def merged_ridge(x, y, delta, dtype=float):
    """Three shards, each with its posterior, multiplied with α = 1 and γ = −2."""
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    size = x.shape[1]
    prior = bm.FullGaussian.from_mean_precision(
        jnp.zeros(size, dtype), delta * jnp.eye(size, dtype=dtype)
    )
    shards = [bm.Target(ridge_loss, (x[i::3], y[i::3])) for i in range(3)]
    return bm.merge([bm.laplace(shard, prior) for shard in shards], [1.0, 1.0, 1.0], prior=prior)


def test_merged_ridge_regressions_are_ridge_on_all_data():
    x, y = load_diabetes(return_X_y=True)
    y = y - y.mean()
    delta = 0.1
    stacked = np.vstack([x, np.sqrt(delta) * np.eye(10)])
    exact, *_ = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros(10)]), rcond=None)
    assert_close(merged_ridge(x, y, delta).mode(), exact, 1e-10)


def longley():
    """Longley's data with an intercept, columns scaled to unit length: κ(XᵀX) = 1.9e9."""
    data = sm.datasets.longley.load_pandas()
    x = sm.add_constant(data.exog).to_numpy()
    return x / np.linalg.norm(x, axis=0), data.endog.to_numpy() / 1e4


def exact_ridge(x, y, delta):
    """In 50 digits, from the same float64 numbers."""
    with mpmath.workdps(50):
        X, Y = mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())
        normal = X.T * X + mpmath.mpf(delta) * mpmath.eye(x.shape[1])
        return np.array([float(b) for b in mpmath.lu_solve(normal, X.T * Y)])


def test_longley_reaches_the_accuracy_of_its_condition_number():
    """Natural parameters hold XᵀX, rounded: no method that starts from them can be more accurate
    than κ(XᵀX + δI)·ε = 4e-7. Reached: about 1e-8."""
    x, y = longley()
    delta = 1e-12
    condition = np.linalg.cond(x.T @ x + delta * np.eye(7))
    assert condition > 1e9
    exact = exact_ridge(x, y, delta)
    assert_close(merged_ridge(x, y, delta).mode(), exact, condition * np.finfo(float).eps)


def test_longley_with_some_regularisation_is_accurate_in_proportion():
    x, y = longley()
    for delta in (1e-8, 1e-6, 1e-4):
        condition = np.linalg.cond(x.T @ x + delta * np.eye(7))
        exact = exact_ridge(x, y, delta)
        assert_close(merged_ridge(x, y, delta).mode(), exact, condition * np.finfo(float).eps)


def test_float32_is_finite_and_within_its_precision():
    x, y = load_diabetes(return_X_y=True)
    y = y - y.mean()
    delta = 0.1
    condition = np.linalg.cond(x.T @ x + delta * np.eye(10))
    merged = merged_ridge(x, y, delta, jnp.float32)
    assert merged.precision.value.dtype == jnp.float32
    exact = exact_ridge(x, y, delta)
    assert_close(merged.mode(), exact, condition * np.finfo(np.float32).eps)
    x, y = longley()
    mode = merged_ridge(x, y, 1e-3, jnp.float32).mode()
    condition = np.linalg.cond(x.T @ x + 1e-3 * np.eye(7))
    assert_close(mode, exact_ridge(x, y, 1e-3), 3 * condition * np.finfo(np.float32).eps)


def test_negative_weights_remove_data_exactly():
    x, y = load_diabetes(return_X_y=True)
    y = y - y.mean()
    x, y, delta = jnp.asarray(x), jnp.asarray(y), 0.1
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(10), delta)
    everything = bm.laplace(bm.Target(ridge_loss, (x, y)), prior)
    part = bm.laplace(bm.Target(ridge_loss, (x[:100], y[:100])), prior)
    rest = bm.laplace(bm.Target(ridge_loss, (x[100:], y[100:])), prior)
    assert_close(bm.merge([everything, part], [1.0, -1.0], prior=prior).mode(), rest.mode(), 1e-10)
    assert_close(bm.remove(everything, part / prior).mode(), rest.mode(), 1e-10)


def test_structures_promote_to_the_wider_one():
    rng = np.random.default_rng(0)
    mean = {"a": jnp.asarray(rng.normal(size=2)), "b": jnp.asarray(rng.normal(size=3))}
    diagonal = {"a": jnp.asarray(rng.gamma(2.0, size=2)), "b": jnp.asarray(rng.gamma(2.0, size=3))}
    matrix = np.asarray(precision_matrix(rng))
    iso = bm.IsotropicGaussian.from_mean_precision(mean, 2.0)
    diag = bm.DiagonalGaussian.from_mean_precision(mean, diagonal)
    full = bm.FullGaussian.from_mean_precision(mean, jnp.asarray(matrix))
    assert type(iso * iso) is bm.IsotropicGaussian
    assert type(iso * diag) is type(diag / iso) is bm.DiagonalGaussian
    assert type(iso * full) is type(full * diag) is bm.FullGaussian
    expected = matrix + 2 * np.eye(5)
    np.testing.assert_allclose((iso * full).precision.value, expected, rtol=1e-13)
    expected = matrix + np.diag(np.concatenate([diagonal["a"], diagonal["b"]]))
    np.testing.assert_allclose((full * diag).precision.value, expected, rtol=1e-13)
    for theta in ({"a": jnp.ones(2), "b": jnp.zeros(3)}, mean):
        added = iso.log_density(theta) + diag.log_density(theta) + full.log_density(theta)
        np.testing.assert_allclose((iso * diag * full).log_density(theta), added, rtol=1e-12)


def test_merge_works_inside_jit_and_grad():
    q = bm.DiagonalGaussian.from_mean_precision(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0]))
    r = bm.DiagonalGaussian.from_mean_precision(jnp.array([3.0, -1.0]), jnp.array([2.0, 1.0]))

    def first_entry(alpha):
        return bm.merge([q, r], alpha).mode()[0]

    alpha = jnp.array([0.5, 0.5])
    np.testing.assert_allclose(jax.jit(first_entry)(alpha), first_entry(alpha), rtol=1e-14)
    # d/dα₁ (α₁·1·1 + α₂·2·3)/(α₁·1 + α₂·2) at ½, ½
    expected = (1 * 1.5 - 3.5 * 1) / 1.5**2
    np.testing.assert_allclose(jax.grad(first_entry)(alpha)[0], expected, rtol=1e-12)


@structures
def test_the_reported_feasible_scale_is_the_largest(structure):
    theta, _, given_H, H, _ = problem(4, structure)
    alpha = np.array([1.0, -2.5, 0.2])
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(5), 1.5)
    with pytest.raises(ValueError, match="scaling all weights by less than") as error:
        bm.schemes.hessian_weighted(list(jnp.asarray(theta)), given_H[1:], alpha, prior)
    scale = float(str(error.value).split("less than ")[1].split(" ")[0])
    change = np.einsum("t,tij->ij", alpha, H[1:]) - alpha.sum() * 1.5 * np.eye(5)
    exact = -1.5 / np.linalg.eigvalsh(change)[0]
    np.testing.assert_allclose(scale, exact, rtol=1e-5)
    reported = float(str(error.value).split("precision is ")[1].split(". ")[0])
    merged = 1.5 * np.eye(5) + change
    np.testing.assert_allclose(reported, np.linalg.eigvalsh(merged)[0], rtol=1e-5)
    within = bm.schemes.hessian_weighted(
        list(jnp.asarray(theta)), given_H[1:], 0.99 * exact * alpha, prior
    )
    assert bool(within.is_proper())
