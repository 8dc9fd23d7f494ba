"""Fitting: modes, posteriors, likelihood factors, convergence, and batches of fits."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import bayesmerge as bm


def logit(w, x):
    return x @ w


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def target_of(x, y):
    return bm.Target.supervised(logit, "bernoulli", (jnp.asarray(x), jnp.asarray(y)))


def isotropic_prior(size, precision=1.0):
    return bm.IsotropicGaussian.from_mean_precision(jnp.zeros(size), precision)


def test_the_mode_is_that_of_scikit_learn(cancer):
    x, y = cancer
    model = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=10_000)
    expected = model.fit(x, y).coef_[0]
    found = bm.find_mode(target_of(x, y), isotropic_prior(30), method="newton")
    assert found.gradient_norm < 1e-10
    np.testing.assert_allclose(found.params, expected, rtol=1e-5, atol=1e-6)
    # L-BFGS alone stops where the loss no longer falls in float64, about √ε away
    by_lbfgs = bm.find_mode(target_of(x, y), isotropic_prior(30))
    np.testing.assert_allclose(by_lbfgs.params, expected, rtol=1e-3, atol=1e-4)


def test_the_mode_does_not_depend_on_the_scale_of_the_inputs():
    """Raw columns span six orders of magnitude: L-BFGS alone stops early, Newton does not mind."""
    x, y = load_breast_cancer(return_X_y=True)
    scale = x.std(0)
    prior = bm.DiagonalGaussian.from_mean_precision(jnp.zeros(30), jnp.asarray(scale**2))
    raw = bm.find_mode(target_of(x, y), prior, method="newton")
    scaled = bm.find_mode(target_of(x / scale, y), isotropic_prior(30), method="newton")
    np.testing.assert_allclose(raw.params * scale, scaled.params, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_posterior_is_mode_and_curvature_plus_prior(cancer, structure):
    x, y = cancer
    prior = bm.IsotropicGaussian.from_mean_precision(0.1 * jnp.ones(30), 2.0)
    q = bm.laplace(target_of(x, y), prior, structure=structure)
    mode = bm.find_mode(target_of(x, y), prior, method="newton").params
    # diagonal and isotropic fits search by L-BFGS alone
    np.testing.assert_allclose(q.mode(), mode, rtol=1e-3, atol=1e-4)
    H = np.asarray(jax.jit(jax.hessian(target_of(x, y).total))(q.mode()))
    expected = {
        "full": H + 2 * np.eye(30),
        "diagonal": np.diag(H) + 2,
        "isotropic": np.trace(H) / 30 + 2,
    }[structure]
    np.testing.assert_allclose(q.precision.value, expected, rtol=1e-9, atol=1e-9)


def test_likelihood_factor_keeps_its_linear_term(cancer):
    """q/p_0 has linear term H_tθ_t − ∇ℓ_t(θ_t), not H_tθ_t (misprint 5)."""
    x, y = cancer
    prior = bm.IsotropicGaussian.from_mean_precision(0.3 * jnp.ones(30), 2.0)
    target = target_of(x, y)
    q = bm.laplace(target, prior)
    factor = bm.laplace(target, prior, include_prior=False)
    theta = q.mode()
    H = np.asarray(jax.jit(jax.hessian(target.total))(theta))
    gradient = np.asarray(jax.jit(jax.grad(target.total))(theta))
    np.testing.assert_allclose(factor.linear, H @ theta - gradient, rtol=1e-8, atol=1e-8)
    assert np.abs(factor.linear - H @ theta).max() > 1
    for mine, quotient in zip(jax.tree.leaves(factor), jax.tree.leaves(q / prior), strict=True):
        np.testing.assert_allclose(mine, quotient, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((factor * prior).mode(), theta, rtol=1e-9, atol=1e-10)


def test_trained_parameters_are_taken_as_the_mode(cancer):
    x, y = cancer
    target, prior = target_of(x, y), isotropic_prior(30)
    trained = bm.find_mode(target, prior, method="newton").params
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = bm.laplace(target, prior, params=trained)
    np.testing.assert_allclose(q.mode(), trained, rtol=1e-10)
    with pytest.warns(bm.ConvergenceWarning, match="standard deviations"):
        away = bm.laplace(target, prior, params=trained + 0.5)
    np.testing.assert_allclose(away.mode(), trained + 0.5, rtol=1e-8)


def test_an_optimiser_that_stops_early_says_how_far_it_is(cancer):
    x, y = cancer
    with pytest.warns(bm.ConvergenceWarning, match="after 2 steps") as seen:
        q = bm.laplace(target_of(x, y), isotropic_prior(30), structure="diagonal", max_steps=2)
    reported = float(str(seen[0].message).split("are ")[1].split(" ")[0])
    objective = lambda w: target_of(x, y).total(w) + 0.5 * jnp.sum(w**2)  # noqa: E731
    objective_gradient = np.asarray(jax.jit(jax.grad(objective))(q.mode()))
    distance = np.sqrt(np.mean(objective_gradient**2 / q.precision.value))
    # the message shows two digits
    np.testing.assert_allclose(reported, distance, rtol=0.1)


def test_fits_are_deterministic(cancer):
    x, y = cancer
    first, second = (bm.laplace(target_of(x, y), isotropic_prior(30)) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert (a == b).all()


def test_minibatches_give_the_posterior_of_all_data(cancer):
    x, y = cancer
    prior = isotropic_prior(30)
    batches = [(x[i : i + 100], y[i : i + 100]) for i in range(0, len(x), 100)]
    streamed = bm.Target.supervised(logit, "bernoulli", batches)
    for structure in ("full", "diagonal"):
        whole = bm.laplace(target_of(x, y), prior, structure=structure)
        q = bm.laplace(streamed, prior, structure=structure)
        tolerance = 1e-9 if structure == "full" else 1e-3
        np.testing.assert_allclose(q.mode(), whole.mode(), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(
            q.precision.value, whole.precision.value, rtol=tolerance, atol=tolerance
        )


def test_shards_fit_in_one_vmapped_call(cancer):
    x, y = cancer
    xs, ys = x[:560].reshape(7, 80, 30), y[:560].reshape(7, 80)
    prior = isotropic_prior(30)
    targets = bm.Target.supervised(logit, "bernoulli", (jnp.asarray(xs), jnp.asarray(ys)))
    batch = eqx.filter_vmap(lambda t: bm.laplace(t, prior))(targets)
    assert batch.batch_shape == (7,)
    for i in range(7):
        alone = bm.laplace(target_of(xs[i], ys[i]), prior)
        np.testing.assert_allclose(batch.mode()[i], alone.mode(), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(
            batch.precision.value[i], alone.precision.value, rtol=1e-8, atol=1e-9
        )


def test_new_data_of_the_same_shape_need_no_new_trace(cancer):
    x, y = cancer
    traces = 0

    def counted(w, inputs):
        nonlocal traces
        traces += 1
        return inputs @ w

    def fit(rows):
        data = (jnp.asarray(x[rows]), jnp.asarray(y[rows]))
        return bm.laplace(bm.Target.supervised(counted, "bernoulli", data), isotropic_prior(30))

    fit(slice(0, 100))
    seen = traces
    fit(slice(100, 200))
    # one abstract evaluation checks the shape of the loss; nothing is traced for compilation
    assert traces <= seen + 1


def test_pytrees_and_a_network_from_a_start():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(60, 2)))
    y = jnp.asarray((np.asarray(x[:, 0] * x[:, 1]) > 0).astype(int))

    def network(params, x):
        hidden = jnp.tanh(x @ params["W"] + params["b"][None, :])
        return hidden @ params["v"]

    shapes = {"W": (2, 6), "b": (6,), "v": (6,)}
    start = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    prior = bm.IsotropicGaussian.from_mean_precision(jax.tree.map(jnp.zeros_like, start), 0.1)
    target = bm.Target.supervised(network, "bernoulli", (x, y))
    q = bm.laplace(target, prior, start=start)
    assert isinstance(q, bm.FullGaussian)
    assert jax.tree.structure(q.mode()) == jax.tree.structure(start)
    gradient = jax.jit(jax.grad(lambda p: target.total(p) - prior.log_density(p)))(q.mode())
    assert np.linalg.norm(ravel_pytree(gradient)[0]) < 1e-6


def test_without_a_prior_it_is_maximum_likelihood():
    x, y = load_diabetes(return_X_y=True)

    def loss(theta, batch):
        x, y = batch
        return 0.5 * (x @ theta - y) ** 2

    target = bm.Target(loss, (jnp.asarray(x), jnp.asarray(y)))
    q = bm.laplace(target, start=jnp.zeros(10))
    expected, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(q.mode(), expected, rtol=1e-9)
    np.testing.assert_allclose(q.precision.value, x.T @ x, rtol=1e-9, atol=1e-12)


def test_joint_training_is_stationary_for_the_weighted_loss(cancer):
    x, y = cancer
    tasks = {"a": target_of(x[:250], y[:250]), "b": target_of(x[250:], y[250:])}
    prior = isotropic_prior(30)
    joint = bm.JointTarget(tasks, {"a": 0.3, "b": 1.4})
    theta = bm.find_mode(joint, prior, method="newton").params
    slope = jax.jit(jax.grad(lambda w: 0.3 * tasks["a"].total(w) + 1.4 * tasks["b"].total(w)))
    np.testing.assert_allclose(np.asarray(slope(theta)) + theta, 0, atol=1e-9)


def test_float32_under_either_setting(cancer):
    x, y = (jnp.asarray(a, dtype) for a, dtype in zip(cancer, (jnp.float32, int), strict=True))
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(30, jnp.float32), 1.0)
    exact = bm.laplace(target_of(*cancer), isotropic_prior(30))
    for structure in ("full", "diagonal"):
        q = bm.laplace(target_of(x, y), prior, structure=structure)
        assert q.mode().dtype == q.precision.value.dtype == jnp.float32
        np.testing.assert_allclose(q.mode(), exact.mode(), rtol=2e-2, atol=2e-2)


def test_a_search_that_stops_early_or_never_moves_says_so(cancer):
    x, y = cancer
    with pytest.warns(bm.ConvergenceWarning, match="stopped after 3 steps, before it converged"):
        found = bm.find_mode(target_of(x, y), isotropic_prior(30), max_steps=3)
    assert not found.converged

    def network(params, inputs):
        return jnp.tanh(inputs @ params["W"]) @ params["v"]

    zero = {"W": jnp.zeros((30, 3)), "v": jnp.zeros(3)}
    prior = bm.IsotropicGaussian.from_mean_precision(zero, 1.0)
    target = bm.Target.supervised(network, "bernoulli", (jnp.asarray(x), jnp.asarray(y)))
    with pytest.warns(bm.ConvergenceWarning, match=r"\['v'\].*have not moved.*saddle point"):
        bm.laplace(target, prior, structure="diagonal")
    start = jax.tree.map(lambda z: z + 0.1 + 0.01 * jnp.arange(z.size).reshape(z.shape), zero)
    tasks = {"a": target}
    accuracy = lambda p: jnp.mean((network(p, jnp.asarray(x)) > 0) == y)  # noqa: E731
    trained = bm.joint_training(tasks, [[1.0]], accuracy, prior, start=start, progress=False)
    assert trained.best().value > 0.95


def test_a_vmapped_fit_merges_as_its_members(cancer):
    x, y = cancer
    xs, ys = x[:560].reshape(7, 80, 30), y[:560].reshape(7, 80)
    prior = isotropic_prior(30)
    targets = bm.Target.supervised(logit, "bernoulli", (jnp.asarray(xs), jnp.asarray(ys)))
    batch = eqx.filter_vmap(lambda t: bm.laplace(t, prior))(targets)
    members = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(7)]
    merged = bm.merge(batch, [1.0] * 7, prior)
    np.testing.assert_allclose(merged.mode(), bm.merge(members, [1.0] * 7, prior).mode())


def test_a_joint_target_is_its_tasks(cancer):
    x, y = cancer
    prior, data = isotropic_prior(30), (jnp.asarray(x), jnp.asarray(y))
    tasks = [bm.Target.supervised(logit, "bernoulli", data)] * 2
    joint = bm.find_mode(bm.JointTarget(tasks, [0.5, 0.5]), prior)
    alone = bm.find_mode(tasks[0], prior)
    np.testing.assert_allclose(joint.params, alone.params, atol=1e-5)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "squared_gradients"])
def test_an_exact_prior_has_its_own_curvature(cancer, kind):
    """The same Gaussian prior, as one and as a function: N(1, I/5)."""
    x, y = cancer
    target = bm.Target.supervised(logit, "bernoulli", (jnp.asarray(x), jnp.asarray(y)))
    gaussian = bm.IsotropicGaussian.from_mean_precision(jnp.ones(30), 5.0)
    exact = bm.ExactPrior(lambda theta: 2.5 * jnp.sum((theta - 1) ** 2), jnp.ones(30))
    expected, found = (bm.laplace(target, p, curvature=kind) for p in (gaussian, exact))
    np.testing.assert_allclose(found.precision.value, expected.precision.value, rtol=1e-8)
    np.testing.assert_allclose(found.mode(), expected.mode(), atol=1e-8)


def test_a_network_is_searched_to_rounding_error():
    """Gauss-Newton steps alone converge linearly here, and stop at gradients of 1e-10."""
    x, y = load_iris(return_X_y=True)
    x = jnp.asarray((x - x.mean(0)) / x.std(0))
    rng = np.random.default_rng(1)
    start = [jnp.asarray(rng.normal(size=shape)) for shape in ((4, 5), (5, 3))]
    target = bm.Target.supervised(
        lambda w, x: jnp.tanh(x @ w[0]) @ w[1], "categorical", (x, jnp.asarray(y))
    )
    prior = bm.IsotropicGaussian.from_mean_precision([jnp.zeros((4, 5)), jnp.zeros((5, 3))], 1.0)
    mode = bm.find_mode(target, prior, start=start, method="newton")
    assert mode.converged
    assert mode.gradient_norm < 1e-12
