"""Grids, previews, joint training, comparisons, pictures."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
from scipy.special import comb

import bayesmerge as bm


def two_gaussians():
    return {
        "a": bm.DiagonalGaussian.from_mean_precision(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0])),
        "b": bm.DiagonalGaussian.from_mean_precision(jnp.array([4.0, 0.0]), jnp.array([2.0, 1.0])),
    }


def gaussians(num_tasks, structure="diagonal", size=3):
    rng = np.random.default_rng(num_tasks)
    posteriors = {}
    for t in range(num_tasks):
        mean, root = jnp.asarray(rng.normal(size=size)), rng.normal(size=(size, size))
        posteriors[f"task {t}"] = {
            "isotropic": lambda m=mean: bm.IsotropicGaussian.from_mean_precision(m, 1.5),
            "diagonal": lambda m=mean: bm.DiagonalGaussian.from_mean_precision(m, 1 + m**2),
            "full": lambda m=mean, r=root: bm.FullGaussian.from_mean_precision(
                m, jnp.asarray(r @ r.T + np.eye(size))
            ),
        }[structure]()
    return posteriors


@pytest.mark.parametrize(
    ("num_tasks", "spacing"), [(1, 1.0), (2, 0.1), (3, 0.05), (4, 0.25), (5, 1.0)]
)
def test_simplex_grid(num_tasks, spacing):
    grid = bm.simplex_grid(num_tasks, spacing)
    steps = round(1 / spacing)
    assert grid.shape == (comb(steps + num_tasks - 1, num_tasks - 1), num_tasks)
    np.testing.assert_allclose(grid.sum(1), 1, atol=1e-14)
    assert (grid >= 0).all()
    assert len(np.unique(grid.round(9), axis=0)) == len(grid)
    assert np.allclose(grid * steps, (grid * steps).round())
    for corner in np.eye(num_tasks):
        assert (grid == corner).all(1).any()


@pytest.mark.parametrize("structure", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("at_once", [None, 1, 4])
def test_preview_is_the_naive_loop(structure, at_once):
    posteriors, weights = gaussians(3, structure), bm.simplex_grid(3, 0.25)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(3), 0.5)

    def metric(theta):
        return {"first": theta[0], "norm": jnp.linalg.norm(theta)}

    seen = bm.preview(
        posteriors,
        0.8 * weights,
        metric,
        prior,
        compute=bm.previews.Compute(weightings_at_once=at_once),
        progress=False,
    )
    assert set(seen.metrics) == {"first", "norm"}
    for i, alpha in enumerate(0.8 * weights):
        theta = bm.merge(posteriors, alpha, prior).mode()
        np.testing.assert_allclose(seen.values("first")[i], theta[0], rtol=1e-11)
        np.testing.assert_allclose(seen.values("norm")[i], jnp.linalg.norm(theta), rtol=1e-11)
    np.testing.assert_allclose(
        seen.values(), (seen.values("first") + seen.values("norm")) / 2, rtol=1e-14
    )


def test_dataset_has_named_axes():
    seen = bm.preview(two_gaussians(), bm.simplex_grid(2, 0.25), lambda x: x[0], progress=False)
    dataset = seen.to_dataset()
    assert dict(dataset.sizes) == {"weighting": 5, "task": 2}
    assert dataset.task.values.tolist() == ["a", "b"]
    best = dataset.isel(weighting=int(dataset.metric.argmax("weighting")))
    assert float(best.weights.sel(task="a")) == seen.best().weights["a"]
    assert "5 weightings of a, b" in repr(seen)


def test_smaller_can_be_better():
    def loss(x):
        return jnp.sum((x - 1) ** 2)

    weights = bm.simplex_grid(2, 0.1)
    seen = bm.preview(two_gaussians(), weights, loss, higher_is_better=False, progress=False)
    values = [float(loss(bm.merge(two_gaussians(), a).mode())) for a in weights]
    assert seen.best().row == int(np.argmin(values))
    reference = np.abs(weights[:, 0] - 0.5)
    assert seen.compare(reference).regret >= 0
    assert seen.compare(np.asarray(values)).regret == 0


def test_compare_against_scipy():
    rng = np.random.default_rng(0)
    weights = bm.simplex_grid(3, 0.2)
    values, truth = rng.normal(size=(2, len(weights)))
    seen = bm.Preview({"accuracy": values}, weights, ("a", "b", "c"))
    against = seen.compare(truth)
    np.testing.assert_allclose(against.mse, np.mean((values - truth) ** 2))
    np.testing.assert_allclose(
        against.rank_correlation, scipy.stats.spearmanr(values, truth).statistic
    )
    assert against.regret == truth.max() - truth[values.argmax()]
    reference = bm.Preview({"accuracy": truth}, weights, ("a", "b", "c"))
    assert seen.compare(reference) == against


def test_nan_metrics_are_kept_and_reported():
    def metric(x):
        return jnp.where(x[0] > 3, jnp.nan, x[0])

    weights = bm.simplex_grid(2, 0.1)
    with pytest.warns(UserWarning, match=r"metric 'metric' is NaN at 4 of 11 weightings, first at"):
        seen = bm.preview(two_gaussians(), weights, metric, progress=False)
    assert np.isnan(seen.values()).sum() == 4
    assert not np.isnan(seen.best().value)
    assert seen.compare(np.zeros(11)).compared == 7
    assert np.isnan(seen.to_dataset().metric).sum() == 4


def test_all_nan_has_no_best():
    with pytest.warns(UserWarning, match="NaN"):
        seen = bm.Preview({"m": np.full(3, np.nan)}, bm.simplex_grid(2, 0.5), ("a", "b"))
    with pytest.raises(ValueError, match="NaN at every weighting"):
        seen.best()
    with pytest.raises(ValueError, match="nothing to compare"):
        seen.compare(np.zeros(3))


@pytest.mark.parametrize("streamed", [False, True])
def test_joint_training_of_quadratics_is_exactly_previewed(streamed):
    """For quadratic losses merging full Gaussians is joint training (GMA §1.6), γ ≠ 0 included."""
    rng = np.random.default_rng(0)

    def loss(theta, batch):
        x, y = batch
        return 0.5 * (x @ theta - y) ** 2

    def data(rng):
        return jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.normal(size=12))

    arrays = {name: data(rng) for name in "abc"}
    prior = bm.FullGaussian.from_mean_precision(jnp.ones(3), 2 * jnp.eye(3))
    posteriors = {t: bm.laplace(bm.Target(loss, d), prior) for t, d in arrays.items()}

    def as_data(x, y):
        return [(x[:5], y[:5]), (x[5:], y[5:])] if streamed else (x, y)

    targets = {t: bm.Target(loss, as_data(*d)) for t, d in arrays.items()}
    weights = 0.9 * bm.simplex_grid(3, 0.5)
    metric = lambda theta: {"sum": theta.sum(), "first": theta[0]}  # noqa: E731
    seen = bm.preview(posteriors, weights, metric, prior, progress=False)
    trained = bm.joint_training(targets, weights, metric, prior, progress=False)
    for name in ("sum", "first"):
        np.testing.assert_allclose(seen.values(name), trained.values(name), rtol=1e-5, atol=1e-6)
        assert seen.compare(trained, name).mse < 1e-10


def test_progress_bar_and_its_silence(capfd):
    bm.preview(two_gaussians(), bm.simplex_grid(2, 0.5), lambda x: x[0], progress="digits")
    assert "digits: 100%" in capfd.readouterr().err
    bm.preview(two_gaussians(), bm.simplex_grid(2, 0.5), lambda x: x[0], progress=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("num_tasks", [2, 3, 4, 5])
def test_pictures(num_tasks, tmp_path):
    weights = bm.simplex_grid(num_tasks, 0.25)
    values = weights @ np.arange(num_tasks) - 2 * (weights**2).sum(1)
    tasks = tuple(f"task {t}" for t in range(num_tasks))
    ax = bm.Preview({"accuracy": values}, weights, tasks).plot()
    ax.figure.savefig(tmp_path / "picture.png")
    drawn = {text.get_text() for text in ax.figure.findobj(plt.Text)}
    if num_tasks == 3:
        assert set(tasks) <= drawn
        assert len(ax.figure.axes) == 2
    if num_tasks == 2:
        x, y = ax.lines[0].get_data()
        np.testing.assert_allclose(y, values[np.argsort(weights[:, 0])])
        np.testing.assert_allclose(x, np.sort(weights[:, 0]))
    if num_tasks > 3:
        assert set(tasks) <= drawn
        for t, line in enumerate(ax.lines):
            for place, best in zip(*line.get_data(), strict=True):
                assert best == values[np.isclose(weights[:, t], place)].max()
    plt.close(ax.figure)


def test_a_picture_in_given_axes_with_one_scale():
    weights = bm.simplex_grid(3, 0.25)
    _, (first, second) = plt.subplots(1, 2)
    seen = bm.Preview({"m": weights[:, 0]}, weights, ("a", "b", "c"))
    assert seen.plot(ax=first, vmin=0.0, vmax=2.0, colorbar=False) is first
    seen.plot(ax=second, vmin=0.0, vmax=2.0, colorbar=False)
    limits = [ax.collections[0].get_clim() for ax in (first, second)]
    assert limits[0] == limits[1] == (0, 2)
    plt.close("all")


def test_a_picture_leaves_missing_points_out():
    weights = bm.simplex_grid(3, 0.25)
    values = weights[:, 0].copy()
    values[4] = np.nan
    with pytest.warns(UserWarning, match="NaN"):
        ax = bm.Preview({"m": values}, weights, ("a", "b", "c")).plot()
    plt.close(ax.figure)


def test_many_random_weightings_are_binned():
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=200)
    ax = bm.Preview({"m": weights[:, 0]}, weights, tuple("abcd")).plot()
    assert all(len(line.get_xdata()) <= 10 for line in ax.lines)
    plt.close(ax.figure)


def test_metric_may_be_jitted_and_close_over_data():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)))
    metric = jax.jit(lambda theta: jnp.mean(x @ theta > 0))
    seen = bm.preview(two_gaussians(), bm.simplex_grid(2, 0.5), metric, progress=False)
    expected = float(metric(two_gaussians()["a"].mode()))
    np.testing.assert_allclose(seen.values()[-1], expected)
