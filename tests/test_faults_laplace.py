"""Faults of neighbouring tools, tried on merging, removal and Laplace's approximation."""

import gc
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesmerge as bm
from bayesmerge import origins
from bayesmerge.fit import fit_shards

KINDS = ("diagonal", "scalar", "full")


def linear(w, x):
    return x @ w


def least_squares(x, y, dtype=float, **options):
    data = (jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    return bm.Target.supervised(linear, "gaussian", data, **options)


def badly_scaled(case):
    """Features of very different units, or years without centring."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 5))
    if case == "units":
        x *= 10.0 ** np.array([-6, -2, 0, 3, 6])
    else:
        x[:, 0], x[:, 1] = 1, 2000 + 10 * rng.random(60)
    scale = np.linalg.norm(x, axis=0)
    y = (x / scale) @ rng.normal(size=5) * 10 + rng.normal(size=60)
    y[7] += 20
    return x, y, 1e-3 * scale**2


def length(step, precision):
    return np.sqrt(step @ precision @ step / len(step))


@pytest.mark.parametrize("case", ["units", "years"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_removal_by_conjugate_gradients_knows_no_units(case, dtype):
    x, y, d = badly_scaled(case)
    rest = np.arange(60) != 7
    w = np.linalg.solve(x.T @ x + np.diag(d), x.T @ y)
    precision = x[rest].T @ x[rest] + np.diag(d)
    exact = np.linalg.solve(precision, x[rest].T @ y[rest])
    prior = bm.DiagonalGaussian.from_mean_precision(jnp.zeros(5, dtype), jnp.asarray(d, dtype))
    target = least_squares(x, y, dtype)
    found = bm.leave_out(target, [7], prior, params=jnp.asarray(w, dtype), solver="cg")
    assert length(exact - w, precision) > 0.3
    assert length(np.asarray(found, float) - exact, precision) < 500 * np.finfo(dtype).eps
    options = {"params": jnp.asarray(w, dtype), "solver": "cg", "max_steps": 2}
    with pytest.warns(bm.ConvergenceWarning, match="standard deviations .* short of"):
        bm.leave_out(target, [7], prior, **options)


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_find_mode_in_float32_ends_at_the_mode_of_uncentred_years(likelihood):
    rng = np.random.default_rng(0)
    years = 1990 + rng.integers(0, 30, 200)
    x = np.column_stack([np.ones(200), years, 1e-4 * rng.normal(size=200)])
    y = rng.poisson(2.0, 200)
    d = 1e-4 * np.abs(x).max(0) ** 2
    w = np.zeros(3)
    for _ in range(30):
        mean = x @ w if likelihood == "gaussian" else np.exp(x @ w)
        weight = np.ones(200) if likelihood == "gaussian" else mean
        H = x.T @ (weight[:, None] * x) + np.diag(d)
        w = w - np.linalg.solve(H, x.T @ (mean - y) + d * w)
    prior = bm.DiagonalGaussian.from_mean_precision(
        jnp.zeros(3, jnp.float32), jnp.asarray(d, jnp.float32)
    )
    labels = jnp.asarray(y, jnp.float32 if likelihood == "gaussian" else int)
    data = (jnp.asarray(x, jnp.float32), labels)
    for given in (data, [data]):
        target = bm.Target.supervised(linear, likelihood, given)
        found = bm.find_mode(target, prior)
        assert length(np.asarray(found.params, float) - w, H) < 2e-3
        assert found.distance < 2e-3


def test_collinear_columns_are_named():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    x[:, 4] = 2 * x[:, 1] - x[:, 2]
    y = rng.normal(size=30)
    params = jnp.asarray(np.linalg.lstsq(x, y, rcond=None)[0])
    target = least_squares(x, y)
    named = r"combination of theta\[1\], theta\[2\], theta\[4\].*Give a prior"
    for measure in (bm.influence, bm.leave_out):
        with pytest.raises(ValueError, match=named) as error:
            measure(target, params=params)
        assert "ggn" not in str(error.value)


def test_a_row_that_alone_determines_a_parameter_is_told_from_collinearity():
    rng = np.random.default_rng(0)
    x, y = np.column_stack([rng.normal(size=(20, 2)), np.eye(20)[0]]), rng.normal(size=20)
    params = jnp.asarray(np.linalg.lstsq(x, y, rcond=None)[0])
    for rows in (None, [0]):
        with pytest.raises(ValueError, match=r"Nothing determines theta\[2\]"):
            bm.leave_out(least_squares(x, y), rows, params=params)


def test_separated_classes_are_named_and_no_curvature_in_use_is_advised():
    x = np.column_stack([np.ones(20), np.arange(20) - 9.5])
    data = (jnp.asarray(x), jnp.asarray(x[:, 1] > 0, int))
    target = bm.Target.supervised(linear, "bernoulli", data)
    with pytest.raises(ValueError, match=r"classes are separated.*Give a prior") as error:
        bm.laplace(target, params=jnp.array([0.0, 1e4]))
    assert "curvature='ggn'" not in str(error.value)


def holes(tree):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), tree)


def test_nothing_that_is_not_finite_is_merged_at_any_weight():
    good, base = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    bad = {"w": jnp.array([1.0, jnp.nan, jnp.inf])}
    negative = {"w": jnp.array([1.0, -2.0, 1.0])}
    calls = {
        r"params\['1'\].*'\['w'\]', index \(1,\): nan": [
            lambda: bm.schemes.average([good, bad], [1.0, 0.0]),
            lambda: bm.schemes.task_arithmetic([good, bad], [1.0, 0.0], base),
            lambda: bm.schemes.fisher_average([good, bad], [1.0, 1.0], [1.0, 0.0]),
            lambda: bm.schemes.gradient_matching([good, bad], [1.0, 1.0], [1.0, 0.0], base, 1.0),
        ],
        r"base must be finite": [lambda: bm.schemes.task_arithmetic([good], [1.0], bad)],
        r"fishers\['1'\] must be finite": [
            lambda: bm.schemes.fisher_average([good, good], [good, bad], [1.0, 0.0])
        ],
        r"precisions\['1'\] must not be negative.*index \(1,\): -2": [
            lambda: bm.schemes.hessian_weighted([good, good], [good, negative], [0.5, 0.5])
        ],
        r"base_precision must not be negative": [
            lambda: bm.schemes.gradient_matching([good], [1.0], [1.0], base, -1.0)
        ],
        r"curvature must be finite": [
            lambda: bm.schemes.task_removal(
                good, bad, base, tuning_precision=1.0, remaining_precision=1.0
            )
        ],
    }
    q = bm.IsotropicGaussian.from_mean_precision(base, 1.0)
    calls |= {
        r"posteriors\['b'\] must be finite": [
            lambda: bm.merge({"a": q, "b": holes(q)}, [1.0, 0.0]),
        ],
        r"prior must be finite": [lambda: bm.merge([q, q], [0.5, 0.5], holes(q))],
        r"part must be finite": [lambda: bm.remove(q, holes(q))],
        r"posterior must be finite": [lambda: bm.remove(holes(q), q, 0.5)],
        r"weight must be finite": [lambda: bm.remove(q, q, np.inf)],
        r"linear must be finite": [
            lambda: bm.IsotropicGaussian.from_natural_parameters(bad, 1.0),
            lambda: bm.FullGaussian.from_natural_parameters(bad, jnp.eye(3)),
        ],
    }
    for message, functions in calls.items():
        for function in functions:
            with pytest.raises(ValueError, match=message):
                function()


def as_given(F, kind):
    if kind == "scalar":
        return F
    return jnp.asarray(F if kind == "diagonal" else np.diag(F))


def limit(theta, F, alpha, unknown=1e-12):
    """(Σα_t(F_t + εI))⁻¹Σα_t(F_t + εI)θ_t for a small ε."""
    matrices = [f + unknown * np.eye(theta.shape[1]) for f in F]
    total = sum(a * f for a, f in zip(alpha, matrices, strict=True))
    right = sum(a * f @ t for a, f, t in zip(alpha, matrices, theta, strict=True))
    return np.linalg.solve(total, right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [[0.5, 0.5], [1.0, 2.0], [1.0, 0.0], [0.7, 0.3]])
def test_what_no_task_knows_keeps_the_plain_average(kind, alpha):
    theta = np.array([[1.0, 2.0, 3.0], [5.0, 7.0, -1.0]])
    F = np.array([[0.0, 1e-30, 2.0], [0.0, 3e-30, 0.0]])
    if kind == "scalar":
        F = [0.0, 0.0]
        expected = np.dot(alpha, theta) / np.sum(alpha)
    else:
        known = np.dot(alpha, F)
        average = np.dot(alpha, theta) / np.sum(alpha)
        expected = np.where(
            known > 0, np.dot(alpha, F * theta) / np.where(known > 0, known, 1), average
        )
    given = [as_given(f, kind) for f in F]
    q = bm.schemes.fisher_average(list(jnp.asarray(theta)), given, alpha)
    np.testing.assert_allclose(q.mode(), expected, rtol=1e-12)
    batch = bm.schemes.fisher_average(list(jnp.asarray(theta)), given, [alpha, alpha])
    np.testing.assert_allclose(batch.mode()[1], expected, rtol=1e-12)
    inside = jax.jit(
        lambda w: bm.schemes.hessian_weighted(list(jnp.asarray(theta)), given, w).mode()
    )
    np.testing.assert_allclose(inside(jnp.asarray(alpha)), expected, rtol=1e-12)


def test_matrices_singular_in_one_direction_keep_the_average_along_it():
    rng = np.random.default_rng(0)
    theta, alpha = rng.normal(size=(2, 4)), [0.3, 0.9]
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :3]
    F = [basis @ np.diag(rng.gamma(2.0, size=3)) @ basis.T for _ in range(2)]
    found = bm.schemes.fisher_average(list(jnp.asarray(theta)), [jnp.asarray(f) for f in F], alpha)
    np.testing.assert_allclose(found.mode(), limit(theta, F, alpha, 1e-7), atol=1e-5)


def test_what_nothing_knows_stays_at_the_base_and_weights_of_sum_zero_have_no_average():
    theta, base = [jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])], jnp.array([9.0, 9.0])
    H = [jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])]
    found = bm.schemes.gradient_matching(theta, H, [0.5, 0.5], base, 0.0).mode()
    np.testing.assert_allclose(found, [9.0, 3.0])
    with pytest.raises(ValueError, match="weights sum to 0"):
        bm.schemes.fisher_average(
            theta, [jnp.array([0.0, 2.0]), jnp.array([0.0, 1.0])], [1.0, -1.0]
        )
    with pytest.raises(ValueError, match="improper"):
        bm.schemes.fisher_average(theta, [jnp.array([1.0, 1.0])] * 2, [1.0, -2.0])


def test_factors_of_low_rank_adapters_do_not_average():
    rng = np.random.default_rng(0)
    first = {"layer.lora_A.weight": rng.normal(size=(2, 6)), "layer.lora_B.weight": np.ones((5, 2))}
    other = {"layer.lora_A.weight": rng.normal(size=(2, 6)), "layer.lora_B.weight": np.ones((5, 2))}
    both = {**other, "layer.lora_B.weight": rng.normal(size=(5, 2))}
    nested = [{"q": {"lora_a": jnp.asarray(m["layer.lora_A.weight"]),
                     "lora_b": jnp.asarray(m["layer.lora_B.weight"])}}
              for m in (first, both)]  # fmt: skip
    with pytest.warns(UserWarning, match="weighted sum of the products BA"):
        bm.schemes.average([first, both], [0.5, 0.5])
    with pytest.warns(UserWarning, match="factors of a low-rank adapter"):
        bm.schemes.fisher_average(nested, [1.0, 1.0], [0.5, 0.5])
    bm.schemes.average([first], [1.0])
    bm.schemes.average([first, both], [1.0, 0.0])
    merged = bm.schemes.average([first, other], [0.5, 0.5]).mode()  # one differs: linear, and right

    def product(m):
        return np.asarray(m["layer.lora_B.weight"]) @ np.asarray(m["layer.lora_A.weight"])

    np.testing.assert_allclose(product(merged), 0.5 * (product(first) + product(other)))
    wrong = [m["layer.lora_B.weight"] @ m["layer.lora_A.weight"] for m in (first, both)]
    halves = [0.5 * (first[k] + both[k]) for k in ("layer.lora_B.weight", "layer.lora_A.weight")]
    assert np.linalg.norm(halves[0] @ halves[1] - 0.5 * sum(wrong)) > 0.1 * np.linalg.norm(
        sum(wrong)
    )


def squared(theta, y):
    return 0.5 * (y - theta) ** 2


@pytest.fixture(scope="module")
def fitted():
    with jax.enable_x64(True):
        prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 2.0)
        data = {"a": [1.0, 2.0], "b": [4.0, 5.0], "c": [-1.0, 3.0]}
        targets = {n: bm.Target(squared, jnp.array(y)) for n, y in data.items()}
        return targets, {n: bm.laplace(t, prior) for n, t in targets.items()}, prior


ONES = (1.0, 1.0, 1.0)


def quiet(function):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function()


def test_a_prior_that_is_counted_several_times_is_told(fitted):
    targets, q, prior = fitted
    once = quiet(lambda: bm.merge(q, ONES, prior))
    np.testing.assert_allclose(once.mode(), 14 / 8)
    quiet(lambda: bm.merge(q, [0.333, 0.333, 0.334]))
    quiet(lambda: bm.merge({n: p / prior for n, p in q.items()}, ONES))
    factors = {n: bm.laplace(t, prior, include_prior=False) for n, t in targets.items()}
    quiet(lambda: bm.merge(factors, ONES))
    with pytest.warns(UserWarning, match="holds it 3 times"):
        bm.merge(q, ONES)
    with pytest.warns(UserWarning, match="holds it 3 times") as seen:
        bm.preview(q, [ONES, (2.0, 0.5, 0.0)], lambda theta: theta, progress=False)
    assert len(seen) == 1
    with pytest.warns(UserWarning, match="without a prior"):
        bm.merge(factors, ONES, prior)
    with pytest.warns(UserWarning, match="is not the prior that"):
        bm.merge(q, ONES, prior**2.0)
    shards = fit_shards(targets, prior)
    quiet(lambda: bm.merge(shards, ONES, prior))
    with pytest.warns(UserWarning, match="holds it 3 times"):
        bm.merge(shards, ONES)


def test_a_task_is_removed_by_name(fitted):
    _, q, prior = fitted
    some = {n: q[n] for n in "ab"}
    merged = bm.merge(q, ONES, prior)
    np.testing.assert_allclose(
        quiet(lambda: bm.remove(merged, "c")).mode(), bm.merge(some, [1, 1], prior).mode()
    )
    twice = bm.remove(bm.remove(merged, "c"), "b", 0.5)
    np.testing.assert_allclose(twice.mode(), bm.merge(some, [1, 0.5], prior).mode())
    with pytest.raises(ValueError, match=r"part is .c., which has weight 0.*removed before"):
        bm.remove(twice, "c")
    grid = [ONES, (1.0, 2.0, 0.5)]
    batch = bm.remove(bm.merge(q, grid, prior), "c")
    np.testing.assert_allclose(batch.mode()[1], bm.merge(some, [1, 2], prior).mode())
    with pytest.warns(UserWarning, match="part holds its prior"):
        bm.remove(merged, q["c"])
    quiet(lambda: bm.remove(merged, q["c"] / prior))
    with pytest.raises(ValueError, match=r"'d', and the merged tasks are \('a', 'b', 'c'\)"):
        bm.remove(merged, "d")
    with pytest.raises(ValueError, match="parts of this posterior are not known"):
        bm.remove(merged * prior, "c")
    gone = bm.merge({n: p**1.0 for n, p in q.items()}, ONES, prior)
    with pytest.raises(ValueError, match="no longer in memory"):
        bm.remove(gone, "c")


def test_nothing_is_remembered_of_posteriors_that_are_gone(fitted):
    _, q, prior = fitted
    gc.collect()
    before = len(origins._origins)
    held = [bm.merge(q, ONES, prior) for _ in range(5)]
    assert len(origins._origins) == before + 5
    chain = held.pop()
    del held
    for _ in range(5):
        chain = bm.merge({"now": chain, "a": q["a"]}, [1.0, 1.0], prior)
    gc.collect()
    assert len(origins._origins) == before + 1


def test_early_stopped_models_warn_alike_and_the_gradient_can_be_kept(fitted):
    targets, q, prior = fitted
    params = {"a": 0.55, "b": 2.05, "c": 0.3}  # modes 0.75, 2.25 and 0.5, each 0.4 away
    params = {n: jnp.array(p) for n, p in params.items()}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        early = {n: bm.laplace(t, prior, params=params[n]) for n, t in targets.items()}
    (message,) = {str(warning.message) for warning in seen}  # alike, so Python shows it once a line
    assert "more than 0.2 posterior standard deviations" in message
    assert "prior * expand(target, params)" in message
    joint = bm.merge(q, ONES, prior).mode()
    kept = {n: prior * bm.expand(t, params[n]) for n, t in targets.items()}
    np.testing.assert_allclose(bm.merge(kept, ONES, prior).mode(), joint)
    assert abs(bm.merge(early, ONES, prior).mode() - joint) > 0.2


def test_a_point_far_beyond_all_models_is_told(fitted):
    targets, _, prior = fitted
    with pytest.warns(UserWarning, match="towards is 2e.30 posterior standard deviations"):
        bm.laplace(targets["a"], prior, towards=jnp.array(1e30))


@pytest.mark.slow
def test_schemes_hold_little_more_than_their_inputs_and_outputs():
    code = """
import jax, jax.numpy as jnp, numpy as np, bayesmerge as bm
def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1e6
def models(size, count): return [{'w': jnp.full((8, size), 1.0 + t)} for t in range(count)]
def run(size):
    theta, fisher = models(size, 2), models(size, 2)
    before = peak()
    bm.schemes.fisher_average(theta, fisher, [0.5, 0.5]).mode()['w'].block_until_ready()
    return peak() - before
run(8)
print(run(2_500_000))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    inputs = 4 * 8 * 2_500_000 * 4 / 1e9
    assert float(done.stdout) < 2 * inputs
