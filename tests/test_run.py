"""Fits of many steps: resumed, interrupted, stopped at NaN, side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesmerge as bm
from bayesmerge.fit import IVON, VON, DivergenceError, MixtureVON, run

X = np.random.default_rng(0).normal(size=(60, 3))
Y = (X @ [1.0, -1.0, 0.5] > 0).astype(float)
PRIOR = bm.DiagonalGaussian.from_mean_precision(jnp.zeros(3), jnp.ones(3))


def key(seed=0):
    return jax.random.key(seed)


def linear(w, x):
    return x @ w


def logistic(batches=None):
    data = (jnp.asarray(X), jnp.asarray(Y))
    return bm.Target.supervised(linear, "bernoulli", data if batches is None else batches)


def ivon_method():
    return IVON(60, 60.0, 1 / 60, jnp.zeros(3), learning_rate=0.1, beta2=0.9)


FOUR = list(zip(np.split(X, 4), np.split(Y, 4), strict=True))
METHODS = {
    "von": (VON(PRIOR, structure="diagonal", num_samples=4), PRIOR),
    "ivon": (ivon_method(), ivon_method().init(jnp.zeros(3))),
}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_resumed_fit_is_the_uninterrupted_one(name, batch_size):
    method, start = METHODS[name]
    options = {"key": key(), "batch_size": batch_size, "progress": False}
    whole = run(method, logistic(), start, num_steps=23, **options)
    options["key"] = key()
    part = run(method, logistic(), start, num_steps=9, **options)
    options["key"] = key(5)  # the key of the state counts
    rest = run(method, logistic(), start, num_steps=23, state=part.state, **options)
    same(rest.posterior, whole.posterior)
    told = {n: np.concatenate([part.history[n], rest.history[n]]) for n in whole.history}
    same(told, whole.history)


def test_keys_make_the_difference():
    method, start = METHODS["von"]
    runs = [
        run(method, logistic(), start, num_steps=3, key=key(seed), progress=False).posterior
        for seed in (0, 0, 1)
    ]
    same(runs[0], runs[1])
    assert not np.array_equal(runs[0].linear, runs[2].linear)


def test_every_epoch_sees_every_example_once():
    """The mean gradient over an epoch is that of all data, where batches divide them."""
    target, theta = logistic(), jnp.ones(3)
    order = target.order(key())
    gradients = [
        target.minibatch(order, jnp.asarray(i), 15).value_and_gradient(theta)[1] for i in range(4)
    ]
    _, full = target.value_and_gradient(theta)
    np.testing.assert_allclose(np.mean(gradients, axis=0), full, rtol=1e-12)
    joint = bm.JointTarget([target, target], [0.25, 0.5])
    order = joint.order(key())
    parts = [joint.minibatch(order, jnp.asarray(i), 15) for i in range(4)]
    total = np.mean([part.total(theta) for part in parts])
    np.testing.assert_allclose(total, 0.75 * target.total(theta), rtol=1e-12)


def test_a_stream_gives_a_minibatch_a_step_and_resumes_in_its_middle():
    batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in FOUR]
    method, start = METHODS["ivon"]
    target = logistic(batches)
    assert target.num_examples == 60
    whole = run(method, target, start, num_steps=7, key=key(), progress=False)
    part = run(method, target, start, num_steps=3, key=key(), progress=False)
    rest = run(method, target, start, num_steps=7, key=key(), state=part.state, progress=False)
    same(rest.posterior, whole.posterior)
    assert whole.history["loss"].shape == (7,)


class Interrupted:
    """A stream that the user interrupts after some minibatches."""

    def __init__(self, batches, after):
        self.batches, self.left = batches, after

    def __iter__(self):
        for batch in self.batches:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch


def test_an_interrupted_fit_continues_from_its_checkpoint(tmp_path):
    batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in FOUR]
    method, start = METHODS["ivon"]
    file = tmp_path / "fit.npz"
    options = {"num_steps": 20, "checkpoint": file, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        # four to count the minibatches
        run(method, logistic(Interrupted(batches, 4 + 10)), start, key=key(), **options)
    with np.load(file) as saved:
        taken = int(saved["state 0"])
    assert 3 <= taken <= 10
    found = run(method, logistic(batches), start, key=key(), **options)
    whole = run(method, logistic(batches), start, num_steps=20, key=key(), progress=False)
    same(found.posterior, whole.posterior)
    same(found.history, whole.history)
    again = run(method, logistic(batches), start, key=key(), **options)
    same(again.posterior, whole.posterior)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.npz"]


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    method, start = METHODS["von"]
    options = {"num_steps": 2, "checkpoint": tmp_path / "fit.npz", "progress": False}
    run(method, logistic(), start, key=key(), **options)
    with pytest.raises(ValueError, match="is of another fit"):
        run(*(METHODS["ivon"][0], logistic(), METHODS["ivon"][1]), key=key(), **options)
    with pytest.raises(ValueError, match="the key or the batch size differ"):
        run(method, logistic(), start, key=key(3), **options)
    for bad, message in {"fit.pkl": "must end in .npz", "no/fit.npz": "no folder"}.items():
        with pytest.raises(ValueError, match=message):
            bm.von(logistic(), PRIOR, key=key(), checkpoint=tmp_path / bad, progress=False)


def treacherous(theta, batch):
    """A loss that is NaN beyond 1."""
    return jnp.where(theta > 1, jnp.nan, -theta) + 0 * batch[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_nan_stops_the_fit_with_the_last_good_state(streamed):
    data = (jnp.zeros(5),)
    target = bm.Target(treacherous, [data] if streamed else data)
    method = IVON(5, 1e4, 0.0, None, learning_rate=0.2, beta1=0.0, debias=False)
    start = method.init(jnp.array(0.1))
    with pytest.raises(DivergenceError, match=r"step 5 gave numbers that are not finite") as error:
        run(method, target, start, num_steps=50, key=key(), progress=False)
    good = error.value.run
    assert int(good.state.step) == 5
    assert good.history["loss"].shape == (5,)
    assert np.isfinite(good.history["loss"]).all()
    assert 1 < good.state.inner.params < 1.2


def test_a_batch_of_keys_makes_fits_side_by_side():
    method, start = METHODS["ivon"]
    keys = jax.random.split(key(), 3)
    starts = jax.tree.map(lambda x: jnp.stack([x] * 3), start)
    together = run(
        method, logistic(), starts, num_steps=12, key=keys, batch_size=16, progress=False
    )
    assert together.history["loss"].shape == (12, 3)
    alone = run(method, logistic(), start, num_steps=12, key=keys[1], batch_size=16, progress=False)
    one = jax.tree.map(lambda x: x[1], together.posterior)
    np.testing.assert_allclose(one.linear, alone.posterior.linear, rtol=1e-6)
    np.testing.assert_allclose(together.history["loss"][:, 1], alone.history["loss"], rtol=1e-6)
    assert not np.allclose(together.posterior.linear[0], together.posterior.linear[1])


def test_the_progress_bar_shows_what_matters(capsys):
    method, start = METHODS["von"]
    run(method, logistic(), start, num_steps=3, key=key(), progress="task a")
    shown = capsys.readouterr().err
    assert "task a" in shown
    assert "elbo=" in shown


def test_options_are_checked():
    method, start = METHODS["von"]
    with pytest.raises(ValueError, match="num_steps is -1"):
        run(method, logistic(), start, num_steps=-1, key=key())
    with pytest.raises(ValueError, match="batch_size is 0"):
        run(method, logistic(), start, num_steps=1, batch_size=0, key=key())
    with pytest.raises(ValueError, match=r"step_size is 0"):
        VON(PRIOR, step_size=0.0)


def test_a_checkpoint_of_another_task_or_prior_is_refused(tmp_path):
    method, start = METHODS["von"]
    options = {"num_steps": 4, "checkpoint": tmp_path / "fit.npz", "progress": False}
    run(method, logistic(), start, key=key(), **options)
    other = bm.Target.supervised(linear, "bernoulli", (jnp.asarray(X), jnp.asarray(1 - Y)))
    with pytest.raises(ValueError, match="is of another fit"):
        run(method, other, start, key=key(), **options)
    with pytest.raises(ValueError, match="is of another fit"):
        run(VON(PRIOR**2.0, structure="diagonal"), logistic(), start, key=key(), **options)
    with pytest.raises(ValueError, match="num_steps is 3, and the fit to continue has taken 4"):
        run(method, logistic(), start, key=key(), **{**options, "num_steps": 3})
    (tmp_path / "bad.npz").write_bytes(b"not arrays")
    with pytest.raises(ValueError, match="cannot be read"):
        run(method, logistic(), start, key=key(), **{**options, "checkpoint": tmp_path / "bad.npz"})


@pytest.mark.parametrize("seed", [jax.random.PRNGKey, lambda s: jax.random.key(s, impl="rbg")])
def test_keys_of_every_kind_serve(seed):
    method, start = METHODS["von"]
    found = run(method, logistic(), start, num_steps=2, key=seed(3), progress=False)
    assert found.history["elbo"].shape == (2,)


def test_streams_have_batches_of_their_own():
    batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in FOUR]
    with pytest.raises(ValueError, match="sizes of their own"):
        run(
            *(METHODS["ivon"][0], logistic(batches), METHODS["ivon"][1]),
            num_steps=1,
            key=key(),
            batch_size=5,
        )


def test_mixtures_run_side_by_side_from_a_mixture():
    method = MixtureVON(PRIOR, structure="diagonal")
    first = method.init(bm.Mixture(np.array([0.0, 1.0]), [PRIOR, PRIOR]))
    starts = jax.tree.map(lambda x: jnp.stack([x, x]), first)
    keys = jax.random.split(key(), 2)
    found = run(method, logistic(), starts, num_steps=3, key=keys, progress=False)
    assert found.posterior.log_weights.shape == (2, 2)


def test_a_checkpoint_knows_the_names_among_the_options(tmp_path):
    options = {"num_steps": 2, "checkpoint": tmp_path / "fit.npz", "progress": False}
    run(VON(PRIOR, structure="diagonal"), logistic(), PRIOR, key=key(), **options)
    other = VON(PRIOR, structure="diagonal", curvature="price")
    with pytest.raises(ValueError, match="is of another fit"):
        run(other, logistic(), PRIOR, key=key(), **options)
