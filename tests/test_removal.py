"""Removing data, against fitting again and against statsmodels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

import bayesmerge as bm
from bayesmerge.fit import curvature_product


def linear(w, x):
    return x @ w


def least_squares(x, y):
    data = (jnp.asarray(x, float), jnp.asarray(y, float))
    return bm.Target.supervised(linear, "gaussian", data)


def regression(name):
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
    else:
        data = getattr(sm.datasets, name).load()
        x, y = np.asarray(data.exog, float), np.asarray(data.endog, float)
        y = y if y.ndim == 1 else y[:, 0]
    return np.column_stack([np.ones(len(x)), x]), y


def fit(x, y):
    return np.linalg.lstsq(x, y, rcond=None)[0]


def error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


datasets = pytest.mark.parametrize("name", ["diabetes", "stackloss", "ccard"])


@datasets
@pytest.mark.parametrize("fraction", [None, 0.5])
@pytest.mark.parametrize("form", ["leave_out", "cg", "hessian", "quotient", "tuned"])
def test_removal_equals_refitting_for_linear_regression(name, fraction, form):
    x, y = regression(name)
    rng = np.random.default_rng(0)
    count = 1 if fraction is None else int(fraction * len(x))
    rows = rng.choice(len(x), count, replace=False)
    rest = np.setdiff1d(np.arange(len(x)), rows)
    target, base = least_squares(x, y), jnp.asarray(fit(x, y))
    part = least_squares(x[rows], y[rows])
    if form in ("leave_out", "cg", "hessian"):
        options = {"cg": {"solver": "cg"}, "hessian": {"curvature": "hessian"}}.get(form, {})
        if form == "cg":
            scale = np.linalg.norm(x, axis=0)
            target, base = least_squares(x / scale, y), base * scale
        without = bm.leave_out(target, rows, params=base, **options)
        without = without / scale if form == "cg" else without
    elif form == "quotient":
        q = bm.laplace(target, params=base)
        without = bm.remove(q, bm.expand(part, base)).mode()
    else:
        H0 = np.diag(rng.gamma(2.0, size=len(base)))
        prior = bm.FullGaussian.from_mean_precision(base, jnp.asarray(H0))
        tuned = bm.find_mode(part, prior, method="newton").params
        without = bm.schemes.task_removal(
            tuned,
            x[rows].T @ x[rows],
            base,
            tuning_precision=H0,
            remaining_precision=x[rest].T @ x[rest],
        ).mode()
    assert error(without, fit(x[rest], y[rest])) < 1e-9


@datasets
def test_influence_equals_statsmodels(name):
    x, y = regression(name)
    expected = sm.OLS(y, x).fit().get_influence()
    found = bm.influence(least_squares(x, y), params=jnp.asarray(fit(x, y)))
    np.testing.assert_allclose(found.leverage, expected.hat_matrix_diag, rtol=1e-9)
    np.testing.assert_allclose(found.cooks_distance, expected.cooks_distance[0], rtol=1e-8)
    assert error(found.dfbeta, expected.dfbeta) < 1e-9
    assert error(found.dfbetas, expected.dfbetas) < 1e-9


def logistic(prior_precision=1.0):
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(30), prior_precision)
    data = (jnp.asarray(x), jnp.asarray(y))
    return bm.Target.supervised(linear, "bernoulli", data), prior


def test_influence_of_a_logistic_regression_equals_statsmodels():
    """One Newton step without each row, as `GLMInfluence` has it, but for its rounding."""
    data = sm.datasets.spector.load()
    x = np.column_stack([np.ones(len(data.exog)), data.exog])
    fitted = sm.GLM(np.asarray(data.endog), x, family=sm.families.Binomial()).fit(tol=1e-14)
    expected = fitted.get_influence()
    target = bm.Target.supervised(linear, "bernoulli", (jnp.asarray(x), jnp.asarray(data.endog)))
    found = bm.influence(target, params=jnp.asarray(fitted.params))
    np.testing.assert_allclose(found.leverage, expected.hat_matrix_diag, rtol=1e-7)
    np.testing.assert_allclose(found.cooks_distance, expected.cooks_distance[0], rtol=1e-6)
    assert error(found.dfbeta, expected.d_params) < 1e-6


def mlp(params, x):
    return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"]


@pytest.fixture(scope="module")
def network():
    with jax.enable_x64(True):
        x, y = load_iris(return_X_y=True)
        x = jnp.asarray((x - x.mean(0)) / x.std(0))
        rng = np.random.default_rng(1)
        start = {
            "in": jnp.asarray(rng.normal(size=(4, 5))),
            "bias": jnp.zeros(5),
            "out": jnp.asarray(rng.normal(size=(5, 3))),
        }
        prior = bm.IsotropicGaussian.from_mean_precision(jax.tree.map(jnp.zeros_like, start), 1.0)
        target = bm.Target.supervised(mlp, "categorical", (x, jnp.asarray(y)))
        mode = bm.find_mode(target, prior, start=start, method="newton")
        return target, prior, mode.params


def flat(tree, axes=1):
    return np.concatenate(
        [np.asarray(x).reshape((*x.shape[: axes - 1], -1)) for x in jax.tree.leaves(tree)], axis=-1
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ggn", "hessian", "squared_gradients"])
@pytest.mark.parametrize("method", ["newton", "influence"])
def test_every_way_to_remove_a_row_of_a_network_agrees(network, kind, method):
    target, prior, params = network
    options = {"prior": prior, "params": params, "curvature": kind, "method": method}
    at_once = flat(bm.leave_out(target, **options), 2)
    assert at_once.shape == (150, 40)
    some = np.array([[3], [77], [149]])
    by_factor = flat(bm.leave_out(target, some, **options), 2)
    by_products = flat(bm.leave_out(target, some, solver="cg", **options), 2)
    base = flat(params)
    step = np.linalg.norm(by_factor - base)
    assert np.linalg.norm(at_once[some[:, 0]] - by_factor) < 1e-9 * step
    assert np.linalg.norm(by_products - by_factor) < 1e-7 * step

    row = jax.tree.map(lambda x: x[77:78], target.data)
    part = bm.Target.supervised(mlp, "categorical", row)
    rest = jax.tree.map(lambda x: jnp.asarray(np.delete(x, 77, axis=0)), target.data)
    rest = bm.Target.supervised(mlp, "categorical", rest)
    H = bm.curvature(rest if method == "newton" else target, params, kind) + np.eye(40)
    gradient = flat(part.value_and_gradient(params)[1])
    assert error(by_factor[1] - base, np.linalg.solve(H, gradient)) < 1e-9


@pytest.mark.parametrize("kind", ["ggn", "hessian", "squared_gradients", "fisher"])
def test_products_equal_matrices(network, kind):
    target, _, params = network
    rng = np.random.default_rng(2)
    v = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
    expected = bm.curvature(target, params, kind) @ flat(v)
    assert error(flat(curvature_product(target, params, v, kind)), expected) < 1e-12


def test_several_groups_and_a_mask_are_the_same_removals():
    target, prior = logistic()
    groups = np.arange(30).reshape(3, 10)
    many = bm.leave_out(target, groups, prior)
    mask = np.isin(np.arange(569), groups[1])
    np.testing.assert_allclose(many[1], bm.leave_out(target, mask, prior), rtol=1e-10)
    np.testing.assert_allclose(many[2], bm.leave_out(target, groups[2] - 569, prior), rtol=1e-10)


def test_removing_a_fraction_of_a_row_is_halfway_there_to_second_order():
    target, prior = logistic()
    base = bm.find_mode(target, prior, method="newton").params
    one = bm.leave_out(target, [5], prior, params=base, method="influence") - base
    tenth = bm.leave_out(target, [5], prior, params=base, method="influence", weight=0.1) - base
    np.testing.assert_allclose(tenth, 0.1 * one, atol=1e-13)
    newton = bm.leave_out(target, prior=prior, params=base, weight=0.5)
    np.testing.assert_allclose(
        newton[5], bm.leave_out(target, [5], prior, params=base, weight=0.5), atol=1e-13
    )


def test_float32_removal_stays_close():
    x, y = regression("diabetes")
    rows = np.arange(44)
    x = x / np.linalg.norm(x, axis=0)
    single = bm.Target.supervised(
        linear, "gaussian", (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    )
    without = bm.leave_out(single, rows, params=jnp.asarray(fit(x, y), jnp.float32))
    condition = np.linalg.cond(x[44:]) ** 2
    assert without.dtype == jnp.float32
    assert error(without, fit(x[44:], y[44:])) < condition * np.finfo(np.float32).eps


def test_more_parameters_than_rows_in_float32():
    """1 − h is 1/‖x‖² here: small, and determined by the prior all the same."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 1000)), rng.normal(size=100)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(1000, jnp.float32), 1.0)
    dual = np.linalg.solve(x @ x.T + np.eye(100), y)
    single = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    target = bm.Target.supervised(linear, "gaussian", single)
    base = x.T @ dual
    left = bm.leave_out(target, None, prior, params=jnp.asarray(base, jnp.float32))
    rest = x[1:].T @ np.linalg.solve(x[1:] @ x[1:].T + np.eye(99), y[1:])
    assert np.linalg.norm(left[0] - rest) < 1e-3 * np.linalg.norm(rest - base)


def test_the_influence_function_needs_no_remaining_data():
    """A row of leverage 1 has an influence, though nothing determines its parameter without it."""
    rng = np.random.default_rng(0)
    x, y = np.column_stack([rng.normal(size=(20, 3)), np.eye(20)[0]]), rng.normal(size=20)
    base = jnp.asarray(fit(x, y))
    every = bm.leave_out(least_squares(x, y), params=base, method="influence")
    alone = bm.leave_out(least_squares(x, y), [[0], [7]], params=base, method="influence")
    np.testing.assert_allclose(every[np.array([0, 7])], alone, atol=1e-12)
    with pytest.raises(ValueError, match="undetermined"):
        bm.leave_out(least_squares(x, y), params=base)


def test_a_negative_weight_counts_rows_twice():
    x, y = regression("stackloss")
    base = jnp.asarray(fit(x, y))
    twice = fit(np.vstack([x, x[4:5]]), np.append(y, y[4]))
    target = least_squares(x, y)
    assert error(bm.leave_out(target, [4], params=base, weight=-1.0), twice) < 1e-10
    assert error(bm.leave_out(target, params=base, weight=-1.0)[4], twice) < 1e-10


def test_rows_of_a_narrow_dtype_and_leaves_of_two():
    x, y = load_diabetes(return_X_y=True)
    target = least_squares(x, y)
    base = jnp.asarray(fit(x, y))
    found = bm.leave_out(target, np.array([1, 2], "uint8"), params=base)
    np.testing.assert_allclose(found, bm.leave_out(target, [1, 2], params=base))

    def split(w, x):
        return x[:, :4] @ w[0].astype(float) + x[:, 4:] @ w[1]

    halves = [base[:4].astype(jnp.float32), base[4:]]
    prior = bm.IsotropicGaussian.from_mean_precision(halves, 1e-3)
    two = bm.Target.supervised(split, "gaussian", target.data)
    mode = bm.find_mode(two, prior, method="newton").params
    by = {s: bm.leave_out(two, [3], prior, params=mode, solver=s) for s in ("cholesky", "cg")}
    for a, b in zip(by["cholesky"], by["cg"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
