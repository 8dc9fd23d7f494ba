"""The parts of a preview: checks of options, those that would be ignored, and ways of one's own."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesmerge as bm
from bayesmerge.previews import (
    AbstractModes,
    Basis,
    Climbs,
    Compute,
    Each,
    Fastest,
    Group,
    Line,
    Merges,
    Obstacle,
    Refinement,
    Spread,
    Start,
    Sweep,
    Uncompiled,
)
from bayesmerge.previews.executors import as_compute
from bayesmerge.previews.modes import basis, merges
from bayesmerge.previews.weightings import _require_parts

WEIGHTS = bm.simplex_grid(2, 0.25)
QUIET = {"progress": False}
KEY = jax.random.key(0)


def normal(mean, precision=1.0):
    return bm.IsotropicGaussian.from_mean_precision(jnp.asarray(mean, float), precision)


def full(mean):
    return bm.FullGaussian.from_mean_precision(jnp.full(2, mean), jnp.eye(2))


def squared(theta, y):
    return 0.5 * (y - theta) ** 2


TWO = {"a": normal(0.0), "b": normal(4.0)}
TARGETS = {"a": bm.Target(squared, jnp.array([0.0])), "b": bm.Target(squared, jnp.array([4.0]))}
MIXTURES = [bm.Mixture([0.75, 0.25], [normal(0.0), normal(9.0)]), normal(9.0)]


def identity(theta):
    return theta


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Basis(-5.0), r"tolerance is -5.0.* > 0.*`bm\.previews\.Each\(\)`"),
        (lambda: Basis(float("nan")), "tolerance is nan"),
        (lambda: Basis(largest=0.0), r"largest is 0.0.*\(0, 1\]"),
        (lambda: Basis(largest=1.5), r"largest is 1.5.*\(0, 1\]"),
        (lambda: Climbs(0), "max_steps is 0, .*≥ 1"),
        (lambda: Fastest(()), "ways is empty"),
        (lambda: Refinement(TARGETS, 0), "steps is 0, .*leave out `refine`"),
        (lambda: Refinement(TARGETS, -1), "steps is -1"),
        (lambda: Refinement(TARGETS, until=-0.1), "until is -0.1, .*≥ 0"),
        (lambda: Refinement(TARGETS, until=float("nan")), "until is nan"),
        (lambda: Refinement({}), "targets is empty"),
        (lambda: Spread(0, KEY), "num_draws is 0, .*leave out `spread`"),
        (lambda: Spread(1, KEY), "num_draws is 1, .*two draws or more"),
        (lambda: Compute(weightings_at_once=0), "weightings_at_once is 0, .*≥ 1"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Refinement([squared]), "target of '0' is a function, .* must be a `Target`"),
        (lambda: Spread(2, 0), r"key is 0, .*jax\.random\.key\(0\)"),
        (lambda: as_compute(8), r"compute is 8, .*`bm\.previews\.Compute\(weightings_at_once=8\)`"),
        (lambda: Compute("threads"), r"executor is a str, .*`concurrent\.futures\.Executor`"),
    ],
)
def test_options_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"modes": "basis"}, r"modes is 'basis', .*`bm\.previews\.Basis\(tolerance=1e-3\)`"),
        ({"modes": Each}, r"modes is <class .*Each'>.*make one, or leave it out"),
        ({"refine": 2}, r"refine is 2, .*`bm\.previews\.Refinement\(targets, steps=2\)`"),
        ({"spread": 16}, r"spread is 16, .*`bm\.previews\.Spread\("),
    ],
)
def test_what_is_no_part_of_a_preview(part, message):
    with pytest.raises(TypeError, match=message):
        _require_parts(**part)
    with pytest.raises(TypeError, match=next(iter(part))):
        bm.preview(TWO, WEIGHTS, identity, **part, **QUIET)


@pytest.mark.parametrize(
    ("posteriors", "modes", "message"),
    [
        (TWO, Basis(), r"modes=Basis\(\) .*IsotropicGaussian.*Leave out `modes`"),
        (TWO, Line(), r"modes=Line\(\) does not apply: .*IsotropicGaussian"),
        (TWO, Climbs(), r"modes=Climbs\(.*IsotropicGaussian.*products of mixtures"),
        (TWO, Fastest((Line(), Climbs())), r"modes=Fastest\(.*IsotropicGaussian.*mixtures"),
        (MIXTURES, Each(), r"modes=Each\(\) .*no modes in closed form.*`bm\.previews\.Climbs\(\)`"),
        ([full(1.0), full(2.0)], Fastest((Line(),)), "none of its ways is fast.*add `Each"),
    ],
)
def test_ways_that_do_not_apply(posteriors, modes, message):
    with pytest.raises(ValueError, match=message):
        bm.preview(posteriors, WEIGHTS, lambda x: jnp.sum(x), modes=modes, **QUIET)


def test_options_that_would_be_ignored():
    streams = {
        t: bm.Target(lambda theta, batch: squared(theta, *batch), [(x.data,)])
        for t, x in TARGETS.items()
    }
    few = {"compute": Compute(weightings_at_once=2), **QUIET}
    prior = normal(0.0)
    with pytest.raises(ValueError, match=r"weightings_at_once is 2, and targets .* from streams"):
        bm.preview(TWO, WEIGHTS, identity, prior, refine=Refinement(streams), **few)
    with pytest.raises(ValueError, match=r"weightings_at_once is 2, and targets .* from streams"):
        bm.joint_training(streams, WEIGHTS, identity, prior, **few)
    with pytest.raises(ValueError, match="name the same tasks"):
        bm.preview(TWO, WEIGHTS, identity, prior, refine=Refinement([*TARGETS.values()]), **QUIET)
    for option in ("method", "tolerance", "targets", "until", "num_samples", "key", "executor"):
        with pytest.raises(TypeError, match="unexpected keyword"):
            bm.preview(TWO, WEIGHTS, identity, **{option: None})


class Averages(AbstractModes):
    """Σα_tθ_t, whatever the precisions: coordinates as wide as `width`, if there is one."""

    width: float | None = None

    def obstacle(self, merges):
        return "there are more than two tasks." if len(merges.posteriors) > 2 else None

    def pays(self, merges):
        return True

    def sweep(self, merges, progress):
        means = jnp.stack([q.mode() for q in merges.posteriors.values()])
        return Sweep([Group(self.at, means, merges.weights, np.arange(len(merges)), 2)])

    def at(self, means, alpha):
        return Start(alpha @ means, self.width and (lambda u: self.width * u))


def test_a_way_of_ones_own():
    means = {"a": normal(0.0, 1.0), "b": normal(4.0, 3.0)}
    for modes in (Averages(), Fastest((Line(), Averages(), Each()))):
        seen = bm.preview(means, WEIGHTS, identity, modes=modes, **QUIET)
        np.testing.assert_allclose(seen.values(), 4 * WEIGHTS[:, 1])
    spread = Spread(200, KEY)  # 2.0 to 5 % (one standard error): within four of these
    seen = bm.preview(means, WEIGHTS, identity, modes=Averages(2.0), spread=spread, **QUIET)
    np.testing.assert_allclose(seen.values("spread"), 2.0, rtol=0.2)
    refine = Refinement(TARGETS, 30)
    seen = bm.preview(
        means, WEIGHTS, identity, normal(0.0), modes=Averages(1.0), refine=refine, **QUIET
    )
    np.testing.assert_allclose(seen.values(), 4 * WEIGHTS[:, 1] / 2, atol=1e-6)
    with pytest.raises(TypeError, match=r"without the coordinates.*`Start\.colour`"):
        bm.preview(means, WEIGHTS, identity, modes=Averages(), spread=spread, **QUIET)
    with pytest.raises(ValueError, match=r"modes=Averages\(.*more than two tasks"):
        bm.preview([*means.values(), normal(1.0)], bm.simplex_grid(3, 0.5), identity,
                   modes=Averages(), **QUIET)  # fmt: skip


def test_an_obstacle_on_the_way_is_passed_on_or_raised():
    rng = np.random.default_rng(0)
    q = [
        bm.FullGaussian.from_mean_precision(rng.normal(size=40), jnp.asarray(r @ r.T + np.eye(40)))
        for r in rng.normal(size=(3, 40, 40))
    ]
    weights = bm.simplex_grid(3, 0.25)
    metric = jnp.sum
    tight = Basis(1e-6, largest=0.1)
    with pytest.raises(ValueError, match=r"modes=Basis.* of 40 directions are not enough"):
        bm.preview(q, weights, metric, modes=tight, **QUIET)
    exact = bm.preview(q, weights, metric, modes=Each(), **QUIET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merges, "LARGE", 0)
        patch.setattr(basis, "FEWEST", 1)
        seen = bm.preview(q, weights, metric, modes=Fastest((tight, Each())), **QUIET)
    np.testing.assert_allclose(seen.values(), exact.values(), rtol=1e-9)
    assert not seen.details
    flat = bm.FullGaussian.from_natural_parameters(jnp.zeros(2), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="improper posteriors only"):
        bm.preview([full(1.0), flat], WEIGHTS, metric, modes=Basis(), **QUIET)


def test_mixtures_climb_as_far_as_they_may():
    with pytest.warns(bm.ConvergenceWarning):
        bm.preview(MIXTURES, WEIGHTS, identity, modes=Climbs(max_steps=1), **QUIET)
    seen = bm.preview(MIXTURES, [[0.5, 0.5]], identity, modes=Climbs(), **QUIET)
    np.testing.assert_allclose(seen.values(), 9.0, atol=1e-6)


def test_an_uncompiled_metric_is_the_metric_in_files(tmp_path):
    options = {"save": tmp_path / "seen.nc", **QUIET}
    first = bm.preview(TWO, WEIGHTS, identity, **options)
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        again = bm.preview(TWO, WEIGHTS, Uncompiled(identity), compute=Compute(pool), **options)
    np.testing.assert_array_equal(first.values(), again.values())
    for name, part in (
        ("modes", Each()),
        ("refine", Refinement(TARGETS, 3)),
        ("spread", Spread(2, KEY)),
    ):
        with pytest.raises(ValueError, match=rf"is of another preview: .*{name}"):
            bm.preview(TWO, WEIGHTS, identity, normal(0.0), **{name: part}, **options)


def test_obstacles_say_why():
    assert Obstacle("there is none").reason == "there is none"


def test_only_weightings_that_may_lack_a_mode_are_merged_beforehand(monkeypatch):
    merged = []
    monkeypatch.setattr(
        merges,
        "combined",
        lambda q, alpha, prior: merged.append(alpha.tolist()) or normal(0.0),
    )
    weights = jnp.array([[0.5, 0.5], [0.0, 1.0], [0.7, 0.7], [1.1, -0.1], [0.0, 0.0]])
    Merges(TWO, weights[:2]).require_modes()
    assert not merged
    Merges(TWO, weights, normal(0.0)).require_modes()
    np.testing.assert_allclose(merged, weights[2:])
    merged.clear()
    improper = TWO | {"b": normal(1.0) / normal(0.0, 2.0)}
    Merges(improper, weights[:2]).require_modes()
    np.testing.assert_allclose(merged, weights[:2])
