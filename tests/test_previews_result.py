"""What is chosen from previews, how they are kept on disk, and who carries the work out."""

import concurrent.futures
import itertools
import os
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesmerge as bm
from bayesmerge.previews import Basis, Compute, Group, Refinement, Spread
from bayesmerge.previews.measure import Model, Uncompiled, measure

TASKS = ("a", "b", "c")
WEIGHTS = bm.simplex_grid(3, 0.1)


def surface(seed=0, higher_is_better=True, metrics=TASKS, missing=(), digits=16):
    rng = np.random.default_rng(seed)
    values = {name: rng.uniform(size=len(WEIGHTS)).round(digits) for name in metrics}
    for row in missing:
        values[metrics[0]][row] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bm.Preview(values, WEIGHTS, TASKS, higher_is_better)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_aggregates(higher_is_better):
    seen = surface(higher_is_better=higher_is_better)
    rows = list(zip(*seen.metrics.values(), strict=True))
    worst = [min(r) if higher_is_better else max(r) for r in rows]
    np.testing.assert_array_equal(seen.values("worst"), worst)
    np.testing.assert_allclose(seen.values(), [sum(r) / 3 for r in rows], rtol=1e-14)
    np.testing.assert_array_equal(seen.values(np.median), [sorted(r)[1] for r in rows])
    np.testing.assert_allclose(
        seen.values({"a": 2.0, "c": -1.0}), [2 * r[0] - r[2] for r in rows], rtol=1e-14
    )
    choose = max if higher_is_better else min
    assert seen.best("worst").value == choose(worst)
    assert seen.best("worst").row == worst.index(choose(worst))


def test_bounds_are_kept():
    seen = surface()
    best = seen.best("a", at_least={"b": 0.6}, at_most={"c": 0.5})
    allowed = [
        r
        for r in range(len(WEIGHTS))
        if seen.metrics["b"][r] >= 0.6 and seen.metrics["c"][r] <= 0.5
    ]
    assert best.row == max(allowed, key=lambda r: seen.metrics["a"][r])
    with pytest.raises(ValueError, match=r"no weighting has at_least=\{'a': 2.0\}.*reach"):
        seen.best(at_least={"a": 2.0})
    with pytest.raises(ValueError, match="a bound names"):
        seen.best(at_least={"d": 0.5})
    with pytest.raises(ValueError, match="metric names"):
        seen.best({"d": 1.0})


@pytest.mark.parametrize("digits", [16, 1])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_fronts_by_brute_force(higher_is_better, digits):
    seen = surface(1, higher_is_better, missing=[3], digits=digits)
    sign = 1 if higher_is_better else -1
    points = sign * np.stack([*seen.metrics.values()], axis=1)
    beaten = {
        i
        for i, j in itertools.permutations(range(len(points)), 2)
        if (points[j] >= points[i]).all() and (points[j] > points[i]).any()
    }
    expected = {i for i in range(len(points)) if i not in beaten and np.isfinite(points[i]).all()}
    front = seen.front()
    assert set(front.rows.tolist()) == expected
    assert (np.diff(sign * front.values[:, 0]) <= 0).all()
    np.testing.assert_array_equal(front.weights, WEIGHTS[front.rows])


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_hypervolume_is_a_volume(higher_is_better):
    seen = surface(2, higher_is_better)
    beyond = dict.fromkeys(TASKS, 0.2 if higher_is_better else 0.8)
    volume = seen.front(beyond=beyond).hypervolume
    draws = np.random.default_rng(0).uniform(size=(100_000, 1, 3))
    points, r = np.stack([*seen.metrics.values()], axis=1), np.array([*beyond.values()])
    better = (
        (draws <= points) & (draws > r) if higher_is_better else (draws >= points) & (draws < r)
    )
    np.testing.assert_allclose(volume, better.all(-1).any(-1).mean(), atol=0.005)
    two = seen.front("b", "a", beyond=beyond)
    assert two.metrics == ("b", "a")
    assert two.values.shape == (len(two.rows), 2)


def test_comparisons_of_the_best():
    seen, truth = surface(3), surface(4)
    against = seen.compare(truth)
    count = round(len(WEIGHTS) / 10)
    tops = [set(np.argsort(-x.values())[:count]) for x in (seen, truth)]
    assert against.top_overlap == len(tops[0] & tops[1]) / count
    assert seen.compare(seen).top_overlap == 1
    assert seen.compare(seen).front_share == pytest.approx(1)
    assert 0 < against.front_share < 1
    beyond = {name: x.min() for name, x in truth.metrics.items()}
    there = bm.Preview(
        {name: x[seen.front().rows] for name, x in truth.metrics.items()},
        WEIGHTS[seen.front().rows],
        TASKS,
    )
    share = there.front(beyond=beyond).hypervolume / truth.front().hypervolume
    assert against.front_share == pytest.approx(share)
    assert surface(metrics=("a",)).compare(surface(5, metrics=("a",))).front_share is None


def test_the_top_overlap_leaves_ties_to_chance():
    truth = surface(4, metrics=("a",)).values()
    tied = bm.Preview({"a": np.round(truth, 1)}, WEIGHTS, TASKS)
    shuffled = np.random.default_rng(0).permutation(len(truth))
    again = bm.Preview({"a": tied.values()[shuffled]}, WEIGHTS, TASKS)
    overlap = tied.compare(truth).top_overlap
    assert again.compare(truth[shuffled]).top_overlap == pytest.approx(overlap, rel=1e-12)
    nothing = bm.Preview({"a": np.zeros(len(WEIGHTS))}, WEIGHTS, TASKS)
    assert nothing.compare(truth).top_overlap == pytest.approx(7 / 66)


def test_what_does_not_compare():
    with pytest.raises(ValueError, match=r"reference has the metrics \('b',\), and this preview"):
        surface(metrics=("a",)).compare(surface(metrics=("b",)))
    assert surface().compare(surface(metrics=("a",)), "a").mse == 0
    with pytest.raises(ValueError, match=r"weights have shape \(66, 3\), and for the tasks"):
        bm.Preview({"a": np.zeros(66)}, WEIGHTS, ("a", "b"))
    with pytest.raises(ValueError, match="NaN at each of the 1 weightings that keep the bounds"):
        surface(missing=[3]).best(
            "a", at_most={"b": surface().metrics["b"][3]}, at_least={"b": surface().metrics["b"][3]}
        )


def gaussians():
    rng = np.random.default_rng(0)
    roots = {t: rng.normal(size=(4, 4)) for t in TASKS}
    return {
        t: bm.FullGaussian.from_mean_precision(
            jnp.asarray(rng.normal(size=4)), jnp.asarray(r @ r.T + np.eye(4))
        )
        for t, r in roots.items()
    }


def first_and_norm(theta):
    return {"first": theta[0], "norm": jnp.linalg.norm(theta)}


def test_previews_are_kept_whole(tmp_path):
    rng = np.random.default_rng(0)
    names = {"accuracy 0/1", "größe"}
    metrics = {name: rng.normal(size=len(WEIGHTS)) for name in names}
    details = {"mode error": rng.uniform(size=len(WEIGHTS))}
    seen = bm.Preview(metrics, WEIGHTS, ("0–3", "π", "c d"), False, details)
    path = tmp_path / "seen.nc"
    seen.save(path)
    again = bm.Preview.load(path)
    assert again.tasks == seen.tasks
    assert again.higher_is_better is False
    np.testing.assert_array_equal(again.weights, seen.weights)
    for mine, theirs in ((seen.metrics, again.metrics), (seen.details, again.details)):
        assert set(mine) == set(theirs)
        for name, values in mine.items():
            np.testing.assert_array_equal(values, theirs[name])
    assert [p.name for p in tmp_path.iterdir()] == ["seen.nc"]


def test_files_that_are_no_previews(tmp_path):
    (tmp_path / "other.nc").write_bytes(b"not netCDF")
    with pytest.raises(ValueError, match="no saved preview"):
        bm.Preview.load(tmp_path / "other.nc")
    with pytest.raises(FileNotFoundError):
        bm.Preview.load(tmp_path / "none.nc")
    with pytest.raises(ValueError, match=r"must end in \.nc"):
        surface().save(tmp_path / "seen.csv")
    with pytest.raises(ValueError, match="there is no folder"):
        surface().save(tmp_path / "nowhere" / "seen.nc")


class Interrupted:
    """A metric that is interrupted at its call number `at`."""

    __name__ = "metric"

    def __init__(self, at):
        self.left, self.calls = at, 0

    def __call__(self, theta):
        self.calls += 1
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return first_and_norm(theta)


def test_interrupted_sweeps_go_on(tmp_path):
    path = tmp_path / "sweep.nc"
    options = {"save": path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        bm.preview(gaussians(), WEIGHTS, Uncompiled(Interrupted(20)), **options)
    with pytest.warns(UserWarning, match="with 19 of 66 weightings"):
        partly = bm.Preview.load(path)
    assert len(partly.weights) == 19
    rest = Interrupted(0)
    seen = bm.preview(gaussians(), WEIGHTS, Uncompiled(rest), **options)
    assert rest.calls == len(WEIGHTS) - 19
    whole = bm.preview(gaussians(), WEIGHTS, first_and_norm, progress=False)
    for name, values in whole.metrics.items():
        np.testing.assert_allclose(seen.metrics[name], values, rtol=1e-12)
    kept = bm.Preview.load(path)
    np.testing.assert_array_equal(kept.values(), seen.values())
    with pytest.raises(ValueError, match="is of another preview"):
        bm.preview(gaussians(), WEIGHTS[::-1], Uncompiled(Interrupted(0)), **options)


def test_a_sweep_does_not_go_on_with_another_metric(tmp_path):
    options = {"save": tmp_path / "sweep.nc", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        bm.preview(gaussians(), WEIGHTS, Uncompiled(Interrupted(20)), **options)
    other = Uncompiled(lambda theta: {"first": theta[0]})
    with pytest.raises(ValueError, match=r"is of another preview: .*the code of first_and_norm"):
        bm.preview(gaussians(), WEIGHTS, other, **options)


def test_a_sweep_does_not_go_on_with_metrics_of_other_names(tmp_path, monkeypatch):
    def metric(theta):
        if os.environ["CALLS"] == "2":
            raise KeyboardInterrupt
        monkeypatch.setenv("CALLS", str(int(os.environ["CALLS"]) + 1))
        return {os.environ["NAME"]: theta[0]}

    monkeypatch.setenv("CALLS", "0")
    monkeypatch.setenv("NAME", "first")
    options = {"save": tmp_path / "sweep.nc", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        bm.preview(gaussians(), WEIGHTS, Uncompiled(metric), **options)
    monkeypatch.setenv("CALLS", "3")
    monkeypatch.setenv("NAME", "second")
    with pytest.raises(ValueError, match=r"has the metrics \('first',\), and the metric ret"):
        bm.preview(gaussians(), WEIGHTS, Uncompiled(metric), **options)


def test_damage_is_noticed(tmp_path):
    surface().save(tmp_path / "seen.nc")
    whole = (tmp_path / "seen.nc").read_bytes()
    values = whole.index(surface().weights.astype(">f8").tobytes())
    for cut in (21, 100, len(whole) // 2):
        (tmp_path / "seen.nc").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="no saved preview, or a damaged one"):
            bm.Preview.load(tmp_path / "seen.nc")
    for byte in range(values, values + 400, 37):
        damaged = bytearray(whole)
        damaged[byte] ^= 4
        (tmp_path / "seen.nc").write_bytes(damaged)
        with pytest.raises(ValueError, match="its checksum is not that of its content"):
            bm.Preview.load(tmp_path / "seen.nc")
    (tmp_path / "folder.nc").mkdir()
    with pytest.raises(ValueError, match="that is a folder"):
        surface().save(tmp_path / "folder.nc")


def test_what_is_not_finite_is_no_accuracy():
    def largest(theta):
        return (jnp.argmax(theta) == 0).astype(float)

    good = gaussians()
    damaged = eqx.tree_at(lambda q: q.linear, good["b"], good["b"].linear.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="the posterior of 'b' has parameters that are not finite"):
        bm.preview(good | {"b": damaged}, WEIGHTS, largest)
    group = Group(lambda scale, w: Model(scale * w, {}), jnp.inf, jnp.eye(2), np.arange(2), 2)
    for metric in (largest, Uncompiled(largest)):
        measured = measure(group, metric)
        assert all(np.isnan(batch.measured.metrics["metric"]).all() for batch in measured)


def test_metrics_keep_their_order_and_details_their_names():
    seen = bm.preview(gaussians(), WEIGHTS, lambda x: {"z": x[0], "a": x[1]}, progress=False)
    assert tuple(seen.metrics) == ("z", "a")
    with pytest.raises(ValueError, match=r"'mismatch'.*are reserved names"):
        bm.preview(gaussians(), WEIGHTS, lambda x: {"mismatch": x[0]}, progress=False)
    with pytest.raises(ValueError, match="are metrics and details"):
        bm.Preview({"a": np.zeros(66)}, WEIGHTS, TASKS, True, {"a": np.zeros(66)})


def test_a_sweep_that_found_nothing_leaves_no_file(tmp_path):
    path = tmp_path / "sweep.nc"
    with pytest.raises(KeyboardInterrupt):
        bm.preview(gaussians(), WEIGHTS, Uncompiled(Interrupted(1)), save=path, progress=False)
    assert not list(tmp_path.iterdir())


def threads():
    return concurrent.futures.ThreadPoolExecutor(2)


def dask():
    distributed = pytest.importorskip("distributed")
    return distributed.Client(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
    )


@pytest.mark.parametrize("metric", [first_and_norm, Uncompiled(first_and_norm)])
@pytest.mark.parametrize("pool", [threads, dask])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_executors_find_the_same(pool, metric):
    few = Compute(weightings_at_once=7)
    alone = bm.preview(gaussians(), WEIGHTS, metric, compute=few, progress=False)
    with pool() as workers:
        executor = workers.get_executor() if hasattr(workers, "get_executor") else workers
        compute = Compute(executor, weightings_at_once=7)
        seen = bm.preview(gaussians(), WEIGHTS, metric, compute=compute, progress=False)
    for name, values in alone.metrics.items():
        np.testing.assert_array_equal(seen.metrics[name], values)


def squared(theta, batch):
    x, y = batch
    return 0.5 * (x @ theta - y) ** 2


def regressions(streamed=False):
    rng = np.random.default_rng(0)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(3), 1.0)
    targets = {}
    for t in TASKS:
        x, y = jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.normal(size=20))
        halves = [(x[:12], y[:12]), (x[12:], y[12:])]
        targets[t] = bm.Target(squared, halves if streamed else (x, y))
    return targets, prior


def test_joint_training_by_an_executor_and_in_a_file(tmp_path):
    targets, prior = regressions()
    weights, path = bm.simplex_grid(3, 0.25), tmp_path / "joint.nc"
    alone = bm.joint_training(targets, weights, lambda w: w[0], prior, progress=False)
    with threads() as executor:
        options = {"compute": Compute(executor, 4), "save": path, "progress": False}
        seen = bm.joint_training(targets, weights, lambda w: w[0], prior, **options)
    np.testing.assert_allclose(seen.values(), alone.values(), rtol=1e-9)
    np.testing.assert_array_equal(bm.Preview.load(path).values(), seen.values())


def test_streams_are_refined_as_arrays_are():
    (arrays, prior), (streams, _) = regressions(), regressions(streamed=True)
    posteriors = {
        t: bm.laplace(target, prior, structure="diagonal") for t, target in arrays.items()
    }
    weights = [[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]
    options = {"progress": False}
    seen = [
        bm.preview(
            posteriors, weights, first_and_norm, prior, refine=Refinement(x, steps=3), **options
        )
        for x in (arrays, streams)
    ]
    np.testing.assert_allclose(seen[1].values("first"), seen[0].values("first"), rtol=1e-9)
    np.testing.assert_allclose(seen[1].details["mismatch"], seen[0].details["mismatch"], rtol=1e-9)


@pytest.mark.parametrize("wrap", [lambda metric: metric, Uncompiled])
def test_spreads_are_of_the_merged_posterior(wrap):
    posteriors = gaussians()
    slope = jnp.array([1.0, -2.0, 0.5, 3.0])

    def metric(theta):
        return {"up": slope @ theta, "down": -0.5 * slope @ theta}

    seen = bm.preview(
        posteriors,
        WEIGHTS[30:34],
        wrap(metric),
        spread=Spread(400, jax.random.key(0)),
        progress=False,
    )
    for row, alpha in enumerate(WEIGHTS[30:34]):
        precision = bm.merge(posteriors, alpha).precision.value
        sd = np.sqrt(slope @ np.linalg.solve(precision, slope))
        np.testing.assert_allclose(seen.details["spread of up"][row], sd, rtol=0.1)
        np.testing.assert_allclose(seen.details["spread of down"][row], sd / 2, rtol=0.1)
        np.testing.assert_allclose(seen.details["spread"][row], sd / 4, rtol=0.1)
    np.testing.assert_array_equal(seen.values("spread"), seen.details["spread"])


def test_spreads_say_what_they_need():
    with pytest.raises(ValueError, match="num_draws is 1, and a standard deviation needs two"):
        Spread(1, jax.random.key(0))
    options = {"spread": Spread(8, jax.random.key(0)), "progress": False}
    with pytest.raises(ValueError, match=r"modes=Basis\(.*\) does not .*draws need the factor"):
        bm.preview(gaussians(), WEIGHTS, first_and_norm, modes=Basis(), **options)
    coin = bm.Beta.from_concentrations(2.0, 3.0)
    with pytest.raises(TypeError, match="a Beta, and refinement and spreads"):
        bm.preview([coin, coin], [[0.5, 0.5]], lambda p: p, **options)


def test_spreads_are_kept_in_files(tmp_path):
    options = {"save": tmp_path / "seen.nc", "progress": False}
    spreads = [Spread(4, jax.random.key(i)) for i in range(2)]
    seen = bm.preview(gaussians(), WEIGHTS[:9], first_and_norm, spread=spreads[0], **options)
    again = bm.Preview.load(tmp_path / "seen.nc")
    np.testing.assert_array_equal(again.values("spread"), seen.values("spread"))
    with pytest.raises(ValueError, match="is of another preview"):
        bm.preview(gaussians(), WEIGHTS[:9], first_and_norm, spread=spreads[1], **options)
