"""Sweeps by a basis, along lines, and refined, against one factorisation for each weighting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

import bayesmerge as bm
from bayesmerge.previews import Basis, Each, Fastest, Line, Refinement
from bayesmerge.previews.modes import merges
from bayesmerge.previews.modes.reduced_basis import modes_in_basis

SIZE = 120


def correlated(num_tasks, size=SIZE, prior_precision=0.5):
    """Posteriors as of `num_tasks` regressions with fewer examples than parameters."""
    rng = np.random.default_rng(num_tasks)
    prior = bm.IsotropicGaussian.from_mean_precision(
        {"w": jnp.zeros((size - 1,)), "b": jnp.zeros(())}, prior_precision
    )
    posteriors = {}
    for t in range(num_tasks):
        x = rng.normal(size=(size // 2, size)) * np.geomspace(3, 0.1, size)
        precision = x.T @ x + prior_precision * np.eye(size)
        mean = scipy.linalg.solve(precision, x.T @ rng.normal(size=size // 2) * 3)
        mean = {"w": jnp.asarray(mean[1:]), "b": jnp.asarray(mean[0])}
        posteriors[f"task {t}"] = bm.FullGaussian.from_mean_precision(mean, jnp.asarray(precision))
    return posteriors, prior


def entries(theta):
    return {"b": theta["b"], **{f"w{i}": theta["w"][i] for i in range(SIZE - 1)}}


def modes(posteriors, weights, prior=None, **options):
    seen = bm.preview(posteriors, weights, entries, prior, progress=False, **options)
    return np.stack([seen.metrics[name] for name in seen.metrics], axis=1), seen.details


@pytest.mark.parametrize("total", [1.0, 0.7])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_a_basis_finds_every_mode_within_its_bound(total, tolerance):
    posteriors, prior = correlated(3)
    weights = total * bm.simplex_grid(3, 0.1)
    exact, _ = modes(posteriors, weights, prior, modes=Each())
    found, details = modes(posteriors, weights, prior, modes=Basis(tolerance))
    error = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert (error <= details["mode error"]).all()
    assert details["mode error"].max() <= tolerance


def test_the_basis_is_small_where_modes_are_alike():
    posteriors, prior = correlated(2, size=400, prior_precision=5.0)
    exponents = np.column_stack([np.zeros(201), bm.simplex_grid(2, 1 / 200)])
    found = modes_in_basis([prior, *posteriors.values()], exponents, 1e-3)
    assert found.vectors.shape[1] < 100
    np.testing.assert_allclose(
        found.vectors.T @ found.vectors, np.eye(found.vectors.shape[1]), atol=1e-12
    )


def test_lines_are_exact():
    posteriors, prior = correlated(2)
    for weights, p0 in (
        (bm.simplex_grid(2, 0.05), None),
        (bm.simplex_grid(2, 0.05), prior),
        (np.outer(np.linspace(0.1, 0.9, 9), [0.5, 0.5]), prior),
    ):
        exact, _ = modes(posteriors, weights, p0, modes=Each())
        found, _ = modes(posteriors, weights, p0, modes=Line())
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12)


def test_bases_and_lines_say_where_they_do_not_apply():
    posteriors, prior = correlated(2)
    diagonal = {"a": bm.DiagonalGaussian.from_mean_precision(jnp.zeros(2), jnp.ones(2))}
    with pytest.raises(ValueError, match=r"modes=Basis\(.* posterior is a Dia.*FullGaussian"):
        bm.preview(diagonal, [[1.0]], lambda x: x[0], modes=Basis(), progress=False)
    with pytest.raises(ValueError, match="some exponents are negative"):
        modes(posteriors, [[1.5, -0.1]], prior, modes=Basis())
    with pytest.raises(ValueError, match="span 3 dimensions"):
        modes(posteriors, [[0.5, 0.2], [0.2, 0.5], [0.1, 0.1]], prior, modes=Line())


def test_mixtures_have_no_basis():
    one = bm.FullGaussian.from_mean_precision(jnp.zeros(2), jnp.eye(2))
    q = bm.Mixture([0.5, 0.5], [one, one])
    with pytest.raises(ValueError, match=r"the merged posterior is a Pro.*FullGaussian"):
        bm.preview({"a": q, "b": q}, [[0.5, 0.5]], lambda x: x[0], modes=Basis())


def test_fewer_parameters_than_columns():
    rng = np.random.default_rng(0)
    q = {
        t: bm.FullGaussian.from_mean_precision(jnp.asarray(rng.normal(size=3)), c * jnp.eye(3))
        for t, c in (("a", 1.0), ("b", 5.0))
    }
    weights = bm.simplex_grid(2, 0.25)
    exact, _ = _three(q, weights, Each())
    found, details = _three(q, weights, Basis())
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    assert details["mode error"].max() <= 1e-3


def _three(q, weights, modes):
    seen = bm.preview(
        q, weights, lambda x: dict(zip("abc", x, strict=True)), modes=modes, progress=False
    )
    return np.stack([*seen.metrics.values()], axis=1), seen.details


def test_float32_lines_and_bases():
    with jax.enable_x64(False):
        posteriors, prior = correlated(2)
        for weights in (2 * bm.simplex_grid(2, 0.05), 1.3 * bm.simplex_grid(2, 0.05)):
            exact, _ = modes(posteriors, weights, None, modes=Each())
            found, _ = modes(posteriors, weights, None, modes=Line())
            np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-4)
        with pytest.warns(UserWarning, match="where tolerance=1e-09 was asked: rounding"):
            modes(posteriors, bm.simplex_grid(2, 0.1), prior, modes=Basis(1e-9))


def test_the_fastest_is_what_each_would_find(monkeypatch):
    monkeypatch.setattr(merges, "LARGE", 1e7)
    fastest = Fastest((Line(), Basis(), Each()))
    posteriors, prior = correlated(3)
    weights = bm.simplex_grid(3, 0.125)
    exact, _ = modes(posteriors, weights, prior, modes=Each())
    found, details = modes(posteriors, weights, prior, modes=fastest)
    assert set(details) == {"mode error"}
    assert details["mode error"].max() <= 1e-3
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-3 * np.abs(exact).max())
    taken = 0.01 * weights - [0.001, 0.0, 0.0]
    exact, _ = modes(posteriors, taken, prior, modes=Each())
    found, details = modes(posteriors, taken, prior, modes=fastest)
    assert not details
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def linear_model(w, x):
    return x @ w


@functools.cache
def digits(num_tasks=3):
    x, y = load_digits(return_X_y=True)
    x = x[:600].reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4) / 16
    y = y[:600]
    x = jnp.asarray(np.column_stack([x, np.ones(len(x))]))
    classes = np.array_split(np.arange(10), num_tasks)
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros((5, 10)), 1.0)
    rows = {f"{c[0]}–{c[-1]}": np.flatnonzero(np.isin(y, c))[:150] for c in classes}
    return {
        name: bm.Target.supervised(linear_model, "categorical", (x[r], jnp.asarray(y[r])))
        for name, r in rows.items()
    }, prior


@functools.cache
def posteriors_of_digits(structure="full"):
    targets, prior = digits()
    return {t: bm.laplace(x, prior, structure=structure) for t, x in targets.items()}


@functools.cache
def jointly_trained_digits():
    targets, prior = digits()
    return bm.joint_training(targets, WEIGHTS, entry, prior, progress=False)


WEIGHTS = bm.simplex_grid(3, 0.25)[[2, 5, 7, 10]]


def entry(w):
    return {f"{i},{j}": w[i, j] for i in range(5) for j in range(10)}


def distance(seen, joint):
    return np.sqrt(np.mean([(seen.metrics[k] - joint.metrics[k]) ** 2 for k in joint.metrics], 0))


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_refined_modes_approach_joint_training(structure):
    targets, prior = digits()
    posteriors = posteriors_of_digits(structure)
    joint = jointly_trained_digits()
    away = [
        distance(
            bm.preview(
                posteriors,
                WEIGHTS,
                entry,
                prior,
                refine=Refinement(targets, k) if k else None,
                progress=False,
            ),
            joint,
        ).max()
        for k in (0, 2, 8, 30)
    ]
    assert (np.diff(away) < 0).all()
    assert away[-1] < 1e-3 * away[0]


def test_a_basis_refines_as_each_factorisation_does():
    targets, prior = digits()
    posteriors = posteriors_of_digits()
    options = {"refine": Refinement(targets, 50), "progress": False}
    joint = jointly_trained_digits()
    seen = bm.preview(posteriors, WEIGHTS, entry, prior, modes=Basis(), **options)
    assert distance(seen, joint).max() < 1e-2
    assert set(seen.details) == {"mode error", "gradients", "mismatch", "last mismatch"}


def test_mixtures_are_refined():
    targets, prior = digits()
    posteriors = {
        t: bm.Mixture(
            [0.5, 0.5],
            jax.tree.map(lambda *x: jnp.stack(x), q, bm.laplace(target, prior**2.0)),
        )
        for (t, target), q in zip(targets.items(), posteriors_of_digits().values(), strict=True)
    }
    joint = jointly_trained_digits()
    seen = bm.preview(
        posteriors, WEIGHTS, entry, prior, refine=Refinement(targets, 50), progress=False
    )
    assert distance(seen, joint).max() < 1e-3


def test_the_mismatch_is_the_gradient_in_standard_deviations():
    targets, prior = digits()
    posteriors = posteriors_of_digits()
    seen = bm.preview(
        posteriors, WEIGHTS, entry, prior, refine=Refinement(targets, 1), progress=False
    )
    for alpha, mismatch in zip(WEIGHTS, seen.details["mismatch"], strict=True):
        merged = bm.merge(posteriors, alpha, prior)
        _, slope = bm.JointTarget(targets, alpha).value_and_gradient(merged.mode())
        slope = np.ravel(slope + prior.multiply(merged.mode()))
        length = np.sqrt(slope @ np.linalg.solve(merged.precision.value, slope) / slope.size)
        np.testing.assert_allclose(mismatch, length, rtol=1e-9)
    assert (seen.details["gradients"] == 1).all()


def test_gradients_are_spent_where_they_are_needed():
    targets, prior = digits()
    posteriors = posteriors_of_digits()
    weights = np.array([[1.0, 0.0, 0.0], [0.4, 0.3, 0.3]])
    refine = Refinement(targets, 50, until=1e-3)
    seen = bm.preview(posteriors, weights, entry, prior, refine=refine, progress=False)
    assert seen.details["gradients"][0] == 1
    assert 3 < seen.details["gradients"][1] < 30
    assert seen.details["mismatch"][0] < 1e-6 < 1e-3 < seen.details["mismatch"][1]
    assert (seen.details["last mismatch"] <= 1e-3).all()


def test_refinement_says_what_it_needs():
    posteriors, _ = correlated(2)
    losses = dict.fromkeys(posteriors, bm.Target(lambda p, y: y * p["b"], jnp.ones(3)))
    with pytest.raises(ValueError, match="pass `prior`"):
        modes(posteriors, [[0.5, 0.5]], refine=Refinement(losses))
    beta = {"a": bm.Beta.from_concentrations(2.0, 3.0)}
    target = bm.Target(lambda p, y: -y * jnp.log(p), jnp.ones(3))
    options = {"refine": Refinement({"a": target}), "progress": False}
    with pytest.raises(TypeError, match="a Beta, and refinement"):
        bm.preview(beta, [[1.0]], lambda p: p, beta["a"], **options)
