"""IVON: the numbers of the reference optimiser, and what a training loop needs."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy
from sklearn.datasets import load_diabetes, load_digits

import bayesmerge as bm
from bayesmerge.fit import ivon_noise, ivon_optimiser, ivon_posterior, multi_ivon
from bayesmerge.fit.noise import normal, normal_like

RECORDED = json.loads((Path(__file__).parent / "recorded" / "ivon.json").read_text())["runs"]
SHAPES = {"W": (2, 3), "b": (3,)}


def key(seed=0):
    return jax.random.key(seed)


def arrays(flat):
    return {n: jnp.asarray(np.reshape(flat[n], s), jnp.float32) for n, s in SHAPES.items()}


def stacked(samples):
    trees = [arrays(sample) for sample in samples]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def optimiser_of(options, learning_rates):
    schedule = lambda t: jnp.asarray(learning_rates)[t]  # noqa: E731
    return ivon_optimiser(
        schedule,
        options["ess"],
        hess_init=options["hess_init"],
        beta1=options["beta1"],
        beta2=options["beta2"],
        weight_decay=options["weight_decay"],
        hessian={"price": "price", "gradsq": "squared_gradients"}[options["hess_approx"]],
        clip_radius=options["clip_radius"] or math.inf,
        rescale_lr=options["rescale_lr"],
        debias=options["debias"],
    )


@pytest.mark.parametrize("name", RECORDED)
def test_the_same_gradients_and_noise_give_the_numbers_of_the_reference(name):
    record = RECORDED[name]
    optimiser = optimiser_of(record["options"], [step["lr"] for step in record["steps"]])
    params = arrays(record["initial"])
    state = optimiser.init(params)
    for step in record["steps"]:
        noise, gradient = (
            arrays(step[part][0]) if len(step[part]) == 1 else stacked(step[part])
            for part in ("noise", "gradient")
        )
        updates, state = optimiser.update(gradient, state, params, noise=noise)
        params = optax.apply_updates(params, updates)
        for found, expected in (
            (params, step["parameters"]),
            (state.hessian, step["hessian"]),
            (state.momentum, step["momentum"]),
        ):
            for leaf, truth in zip(
                jax.tree.leaves(found), jax.tree.leaves(arrays(expected)), strict=True
            ):
                scale = np.abs(truth).max()
                np.testing.assert_allclose(leaf, truth, rtol=1e-5, atol=2e-6 * scale)
    assert int(state.steps) == len(record["steps"])


def test_noise_has_the_scale_of_the_posterior():
    optimiser = ivon_optimiser(0.1, 50.0, weight_decay=0.5)
    params = {"w": jnp.ones((200, 300), jnp.float32)}
    state = optimiser.init(params)
    state = state._replace(hessian={"w": jnp.full((200, 300), 3.0, jnp.float32)})
    noise = ivon_noise(key(), params, state)["w"]
    assert noise.dtype == jnp.float32
    assert float(noise.std()) == pytest.approx((50 * 3.5) ** -0.5, rel=0.01)
    q = ivon_posterior(params, state)
    np.testing.assert_allclose(q.precision.value["w"], 175.0, rtol=1e-6)
    np.testing.assert_allclose(q.mode()["w"], 1.0, rtol=1e-6)
    several = ivon_noise(key(1), params, state, num_samples=3)["w"]
    assert several.shape == (3, 200, 300)
    assert abs(np.corrcoef(several.reshape(3, -1))[0, 1]) < 0.02


def test_fast_noise_is_standard_normal():
    x = np.asarray(normal(key(3), (400, 500))).astype(float)
    n = x.size
    for power, mean, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - mean) < 4 * (spread / n) ** 0.5
    assert scipy.stats.kstest(x.ravel(), "norm").pvalue > 0.01
    assert scipy.stats.kstest(x[:, 7], "norm").pvalue > 0.01
    assert 4 < np.abs(x).max() < 5.7
    flat = x.ravel()
    for lag in (1, 2, 3, 4, 16, 500, 512):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 4 / n**0.5
        assert abs((flat[lag:] ** 2 * flat[:-lag] ** 2).mean() - 1) < 4 * (8 / n) ** 0.5
    assert abs(np.corrcoef(x[::2].ravel(), x[1::2].ravel())[0, 1]) < 6 / n**0.5


def test_fast_noise_differs_by_key_and_leaf_and_not_by_compilation():
    keys = jax.random.split(key(1), 400)
    x = np.asarray(jax.vmap(lambda k: normal(k, (300,)))(keys)).astype(float)
    products = (x @ x.T) / 300
    off = products[~np.eye(400, dtype=bool)]
    assert (off**2).mean() * 300 == pytest.approx(1.0, abs=0.05)
    columns = (x.T @ x) / 400
    off = columns[~np.eye(300, dtype=bool)]
    assert (off**2).mean() * 400 == pytest.approx(1.0, abs=0.05)
    tree = normal_like(key(2), {"a": jnp.zeros(50), "b": jnp.zeros(50)})
    assert not np.allclose(tree["a"], tree["b"])
    eager = normal(key(4), (3, 7))
    np.testing.assert_allclose(jax.jit(lambda k: normal(k, (3, 7)))(key(4)), eager, atol=1e-6)
    assert normal(key(5), ()).shape == ()
    with pytest.raises(ValueError, match=r"fewer than 2\*\*32"):
        jax.eval_shape(lambda k: normal(k, (2**17, 2**16)), key(6))


def digits():
    x, y = load_digits(return_X_y=True)
    return jnp.asarray(x[:500] / 16, jnp.float32), jnp.asarray(y[:500])


def model(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def initial(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, dtype)  # noqa: E731
    return {"in": draw(64, 16), "out": draw(16, 10)}


def mean_loss(params, x, y):
    logits = model(params, x).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@functools.partial(jax.jit, static_argnums=0)
def loop(optimiser, params, state, keys):
    """Steps in one compiled scan, as a user would write them."""
    x, y = digits_once()

    def step(carry, key):
        params, state = carry
        noise = ivon_noise(key, params, state)
        theta = optax.apply_updates(params, noise)
        loss, grads = jax.value_and_grad(mean_loss)(theta, x, y)
        updates, state = optimiser.update(grads, state, params, noise=noise)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, state), keys)


digits_once = functools.cache(digits)


def test_it_trains_in_a_scan_within_a_chain_and_with_a_schedule():
    digits_once()
    schedule = optax.schedules.cosine_decay_schedule(0.2, 150)
    optimiser = optax.chain(
        optax.clip_by_global_norm(10.0),
        ivon_optimiser(schedule, 500.0, beta2=0.999, hess_init=0.5, weight_decay=1e-3),
    )
    params = initial()
    (trained, state), losses = loop(
        optimiser, params, optimiser.init(params), jax.random.split(key(), 150)
    )
    assert losses[0] > 2
    assert losses[-10:].mean() < 1
    q = ivon_posterior(trained, state)
    assert isinstance(q, bm.DiagonalGaussian)
    assert q.smallest_precision() > 0


def test_a_saved_state_goes_on_as_if_never_stopped():
    digits_once()
    optimiser = ivon_optimiser(0.1, 500.0, beta2=0.99)
    params = initial()
    whole, _ = loop(optimiser, params, optimiser.init(params), jax.random.split(key(), 20))
    half, _ = loop(optimiser, params, optimiser.init(params), jax.random.split(key(), 20)[:10])
    saved = [np.asarray(x) for x in jax.tree.leaves(half)]
    half = jax.tree.unflatten(jax.tree.structure(half), [jnp.asarray(x) for x in saved])
    rest, _ = loop(optimiser, *half, jax.random.split(key(), 20)[10:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), rest, whole)


def test_half_precision_keeps_its_hessian_in_float32_and_moving():
    digits_once()
    optimiser = ivon_optimiser(0.1, 500.0, beta2=0.9999, hess_init=1.0)
    params = initial(jnp.bfloat16)
    (trained, state), _ = loop(
        optimiser, params, optimiser.init(params), jax.random.split(key(), 100)
    )
    assert trained["in"].dtype == jnp.bfloat16
    assert state.hessian["in"].dtype == state.momentum["in"].dtype == jnp.float32
    moved = 1 - state.hessian["out"]
    assert 0.005 < float(jnp.median(moved)) < 0.02
    with pytest.raises(TypeError, match="bfloat16"):
        ivon_posterior(trained, state)
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), trained)
    assert ivon_posterior(whole, state).smallest_precision() > 0


def test_an_exception_leaves_nothing_perturbed():
    """Perturbed parameters are other values: those of the loop are as they were."""
    optimiser = ivon_optimiser(0.1, 500.0)
    params = initial()
    before = jax.tree.map(np.asarray, params)
    state = optimiser.init(params)
    noise = ivon_noise(key(), params, state)
    with pytest.raises(ZeroDivisionError):
        mean_loss(optax.apply_updates(params, noise), 1 / 0, None)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert int(state.steps) == 0


def test_the_optimiser_says_what_is_wrong():
    params = initial()
    optimiser = ivon_optimiser(0.1, 500.0)
    state = optimiser.init(params)
    with pytest.raises(ValueError, match="needs `params`, the mean m, and `noise`"):
        optimiser.update(params, state, params)
    noise = ivon_noise(key(), params, state, num_samples=2)
    with pytest.raises(ValueError, match="take one gradient at every sample"):
        optimiser.update(params, state, params, noise=noise)
    noise = ivon_noise(key(1), params, state)
    with pytest.raises(ValueError, match="gradients have the structure"):
        optimiser.update({"a": params["in"], "b": params["out"]}, state, params, noise=noise)
    with pytest.raises(ValueError, match=r"learning_rate is -1\.0"):
        ivon_optimiser(-1.0, 10.0)
    with pytest.raises(TypeError, match="holds 0 states"):
        ivon_noise(key(), params, optax.adam(0.1).init(params))
    for option, value in {
        "ess": 0.0,
        "hess_init": -1.0,
        "beta1": 1.0,
        "beta2": 1.5,
        "weight_decay": -0.1,
        "clip_radius": 0.0,
    }.items():
        options = {"ess": 10.0, option: value}
        with pytest.raises(ValueError, match=f"{option} is {value}"):
            ivon_optimiser(0.1, options.pop("ess"), **options)


def linear(w, x):
    return x @ w


@functools.cache
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    x = np.linalg.qr(x)[0] * len(x) ** 0.5  # uncorrelated, so that the diagonal is all there is
    target = bm.Target.supervised(linear, "gaussian", (jnp.asarray(x), jnp.asarray(y)))
    precision = x.T @ x + 2 * np.eye(10)
    return target, np.linalg.solve(precision, x.T @ y + 0.6), np.diag(precision)


@pytest.mark.parametrize(
    ("options", "spread", "spread_of_average"),
    [
        ({}, 0.044, 0.014),
        ({"mc_samples": 3}, 0.027, 0.010),
        ({"batch_size": 100}, 0.063, 0.029),
    ],
)
def test_ivon_finds_the_posterior_of_linear_regression(options, spread, spread_of_average):
    """Within Monte-Carlo error: the mean to a tenth of a standard deviation, precisions and their
    average to four of the relative standard deviations that eight keys gave."""
    target, mean, precision = diabetes()
    prior = bm.IsotropicGaussian.from_mean_precision(0.3 * jnp.ones(10), 2.0)
    schedule = optax.schedules.cosine_decay_schedule(0.3, 4000)
    q = bm.ivon(
        target,
        prior,
        key=key(),
        num_steps=4000,
        learning_rate=schedule,
        beta2=0.998,
        progress=False,
        **options,
    )
    assert np.sqrt(np.mean((q.mean() - mean) ** 2 * precision)) < 0.1
    ratios = np.asarray(q.precision.value) / precision
    assert np.abs(ratios - 1).max() < 4 * spread
    assert abs(ratios.mean() - 1) < 4 * spread_of_average


def test_fine_tuning_starts_from_a_posterior():
    """Five steps with β_2 = 0.99999 move h by 5e-5 times the spread of its estimate."""
    target, mean, precision = diabetes()
    pretrained = bm.DiagonalGaussian.from_mean_precision(jnp.asarray(mean), jnp.asarray(precision))
    q = bm.ivon(
        target, key=key(), num_steps=5, start=pretrained, learning_rate=1e-3, progress=False
    )
    np.testing.assert_allclose(q.precision.value, precision, rtol=1e-3)
    np.testing.assert_allclose(q.mean(), mean, atol=5e-3)


def test_ess_that_is_not_the_number_of_examples_is_told():
    target, *_ = diabetes()
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(10), 1.0)
    told = pytest.warns(UserWarning, match="ess is 50000, and the target has 442 examples")
    with pytest.warns(bm.ConvergenceWarning), told:
        bm.ivon(target, prior, key=key(), num_steps=1, ess=50_000, progress=False)
    with pytest.raises(ValueError, match=r"has precision 44\.2"):
        bm.ivon(target, prior, key=key(), num_steps=1, weight_decay=0.1, progress=False)
    full = bm.FullGaussian.from_mean_precision(jnp.zeros(10), jnp.eye(10))
    with pytest.raises(TypeError, match="posterior is diagonal"):
        bm.ivon(target, full, key=key(), num_steps=1, progress=False)
    with pytest.raises(ValueError, match="nothing to start from"):
        bm.ivon(target, key=key(), num_steps=1, progress=False)


def test_several_runs_and_stops_make_a_mixture():
    target, mean, precision = diabetes()
    prior = bm.IsotropicGaussian.from_mean_precision(0.3 * jnp.ones(10), 2.0)
    q = multi_ivon(
        target,
        prior,
        key=key(),
        num_runs=3,
        stops=(600, 800),
        learning_rate=0.1,
        beta2=0.99,
        batch_size=100,
        progress=False,
    )
    assert q.num_components == 6
    np.testing.assert_allclose(q.weights, 1 / 6)
    assert np.sqrt(np.mean((q.mean() - mean) ** 2 * precision)) < 0.5
    means = np.asarray(q.means)
    assert np.ptp(means, axis=0).min() > 0
    with pytest.raises(ValueError, match="numbers of steps in ascending order"):
        multi_ivon(target, prior, key=key(), num_runs=2, stops=(5, 5))


def test_hyperparameters_may_be_injected():
    params = {"w": jnp.ones(3, jnp.float32)}
    injected = optax.inject_hyperparams(ivon_optimiser)(learning_rate=0.1, ess=10.0)
    plain = ivon_optimiser(0.1, 10.0)

    @jax.jit
    def update(state, own):
        noise = ivon_noise(key(), params, own)
        return injected.update(params, state, params, noise=noise)[0]

    found = update(injected.init(params), plain.init(params))
    noise = ivon_noise(key(), params, plain.init(params))
    expected, _ = plain.update(params, plain.init(params), params, noise=noise)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)


def test_starts_of_other_kinds_are_widened_or_refused():
    target, *_ = diabetes()
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(10), 2.0)
    with pytest.warns(bm.ConvergenceWarning, match="after 2 steps"):
        q = bm.ivon(target, prior, key=key(), num_steps=2, start=prior, progress=False)
    assert q.precision.value.shape == (10,)
    full = bm.FullGaussian.from_mean_precision(jnp.zeros(10), jnp.eye(10))
    with pytest.raises(TypeError, match="start is a FullGaussian"):
        bm.ivon(target, prior, key=key(), num_steps=2, start=full, progress=False)
    with pytest.raises(ValueError, match="prior and start"):
        bm.ivon(target, prior, key=key(), num_steps=2, start=jnp.zeros(1), progress=False)


def test_double_precision_parameters_decay_in_double_precision():
    centre = jnp.array([1e9 + 10.0])
    optimiser = ivon_optimiser(1.0, 1.0, weight_decay=1.0, centre=centre, beta1=0.0)
    zero = jnp.zeros(1)
    updates, _ = optimiser.update(zero, optimiser.init(centre), centre, noise=zero)
    assert float(updates[0]) == 0
