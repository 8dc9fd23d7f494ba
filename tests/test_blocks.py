"""Block precisions reach everything that other structures reach."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_iris

import bayesmerge as bm
from bayesmerge.checkpoints import load, save
from bayesmerge.families.precision import as_structure, join
from bayesmerge.fit import moment_matched

SIZES = (3, 12)
"""Of the leaves b and w."""


def logits(theta, x):
    return x @ theta["w"] + theta["b"][None]


def zero():
    return {"b": jnp.zeros(3), "w": jnp.zeros((4, 3))}


@pytest.fixture(scope="module")
def tasks():
    with jax.enable_x64(True):
        x, y = load_iris(return_X_y=True)
        x = jnp.asarray((x - x.mean(0)) / x.std(0))
        parts = {"even": slice(0, None, 2), "odd": slice(1, None, 2)}
        targets = {
            t: bm.Target.supervised(logits, "categorical", (x[rows], jnp.asarray(y[rows])))
            for t, rows in parts.items()
        }
        return targets, bm.IsotropicGaussian.from_mean_precision(zero(), 1.0)


@pytest.fixture(scope="module")
def fitted(tasks):
    with jax.enable_x64(True):
        targets, prior = tasks
        return {t: bm.laplace(x, prior, structure=bm.Blocks()) for t, x in targets.items()}


def blocks_of(matrix):
    ends = np.cumsum([0, *SIZES])
    return [np.asarray(matrix)[a:b, a:b] for a, b in itertools.pairwise(ends)]


def close(found, expected, tolerance=1e-9):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "squared_gradients"])
def test_curvatures_are_blocks_of_the_matrix(tasks, kind):
    target = tasks[0]["even"]
    theta = {"b": jnp.array([0.3, -0.2, 0.1]), "w": jnp.linspace(-1, 1, 12).reshape(4, 3)}
    whole = bm.curvature(target, theta, kind)
    close(bm.curvature(target, theta, kind, bm.Blocks()), blocks_of(whole))
    together = bm.curvature(target, theta, kind, bm.Blocks([["w", "b"]]))
    close(together, [whole])


def test_laplace_is_the_full_posterior_without_what_is_between_blocks(tasks, fitted):
    targets, prior = tasks
    full = bm.laplace(targets["even"], prior)
    q = fitted["even"]
    assert isinstance(q, bm.BlockGaussian)
    close(q.mode(), full.mode(), 1e-6)
    close(q.precision.value, blocks_of(full.precision.value), 1e-5)
    variances = [np.diag(np.linalg.inv(M)) for M in q.precision.value]
    close(jax.tree.map(jnp.ravel, q.variance()), dict(zip("bw", variances, strict=True)), 1e-9)
    np.testing.assert_allclose(q.covariance()[:3, 3:], 0)
    assert "BlockGaussian over" in repr(q)
    assert repr(q.precision).startswith(
        'BlockPrecision over {"b": (3,), "w": (4, 3)}:\n  0 (3, 3): [['
    )


def test_a_merge_is_that_of_the_matrices(tasks, fitted):
    _, prior = tasks
    alpha = {"even": 0.7, "odd": 0.9}
    merged = bm.merge(fitted, alpha, prior)
    dense = bm.merge({t: q.structured("full") for t, q in fitted.items()}, alpha, prior)
    assert isinstance(merged, bm.BlockGaussian)
    assert isinstance(dense, bm.FullGaussian)
    close(merged.mode(), dense.mode())
    np.testing.assert_allclose(merged.precision.dense(), dense.precision.value, rtol=1e-9)
    np.testing.assert_allclose(merged.log_partition(), dense.log_partition(), rtol=1e-9)
    np.testing.assert_allclose(
        merged.kl_divergence(fitted["odd"]), dense.kl_divergence(fitted["odd"]), rtol=1e-8
    )
    left = bm.remove(merged, fitted["odd"] / prior, 0.9)
    close(left.mode(), (prior**0.3 * fitted["even"] ** 0.7).mode())
    batch = bm.merge(fitted, np.array([[0.5, 0.5], [0.7, 0.9]]), prior)
    close(jax.tree.map(lambda x: x[1], batch.mode()), merged.mode())


def test_sums_take_the_smallest_structure_that_holds_both(fitted):
    q = fitted["even"]
    theta = zero()
    ones = jax.tree.map(jnp.ones_like, theta)
    for other, family in (
        (bm.IsotropicGaussian.from_mean_precision(theta, 2.0), bm.BlockGaussian),
        (
            bm.DiagonalGaussian.from_mean_precision(theta, ones),
            bm.BlockGaussian,
        ),
        (bm.FullGaussian.from_mean_precision(theta, jnp.eye(15)), bm.FullGaussian),
        (q.structured(bm.Blocks([["b", "w"]])), bm.BlockGaussian),
    ):
        for product in (q * other, other * q):
            assert type(product) is family
            expected = q.precision.dense() + other.precision.dense()
            np.testing.assert_allclose(product.precision.dense(), expected, rtol=1e-12)
    names = ("isotropic", "diagonal", "full")
    structures = [*map(as_structure, names), bm.Blocks(((0, 1), (2,))), bm.Blocks(((0,), (1, 2)))]
    for a in structures:
        for b in structures:
            assert join(a, b) == join(b, a)
            assert join(a, join(a, b)) == join(a, b)
    assert join(*structures[3:]) == bm.Blocks(((0, 1, 2),))


def test_variational_fits(tasks):
    targets, prior = tasks
    options = {"key": jax.random.key(0), "num_samples": 256, "resample": False, "progress": False}
    q = bm.von(targets["even"], prior, structure=bm.Blocks(), num_steps=60, **options)
    assert isinstance(q, bm.BlockGaussian)
    full = bm.von(targets["even"], prior, num_steps=60, **options)
    narrow = bm.von(targets["even"], prior, structure="diagonal", num_steps=60, **options)
    bounds = [
        bm.fit.elbo(targets["even"], p, prior, key=jax.random.key(1), num_samples=2000)
        for p in (narrow, q, full)
    ]
    assert bounds[0] < bounds[1] < bounds[2]
    few = {"num_components": 2, "num_steps": 3, "key": jax.random.key(0), "progress": False}
    with pytest.warns(bm.ConvergenceWarning):
        mixture = bm.mixture_von(targets["even"], prior, structure=bm.Blocks(), **few)
    assert isinstance(mixture.components, bm.BlockGaussian)
    one = mixture.collapse()
    close(one.mean(), mixture.mean())
    close(one.variance(), mixture.variance())
    product = bm.merge([mixture, q], [1.0, 1.0], prior)
    at = product.laplace()
    H = -jax.hessian(lambda v: product.log_density(q.layout.unravel(v)))(
        q.layout.ravel(product.mode())
    )
    close(at.precision.value, blocks_of(H), 1e-6)


def test_files_draws_and_numpyro(tasks, fitted, tmp_path):
    _, prior = tasks
    grouped = {t: q * fitted["odd"].structured(bm.Blocks([["w", "b"]])) for t, q in fitted.items()}
    for posteriors in (fitted, grouped):
        save(tmp_path / "q.safetensors", posteriors, prior)
        found = load(tmp_path / "q.safetensors").posteriors
        for t, q in posteriors.items():
            assert found[t].precision.structure == q.precision.structure
            close(found[t], q, 0)
    q = fitted["even"]
    draws = q.sample(jax.random.key(0), (4000,))
    matched = moment_matched(draws, structure=bm.Blocks())
    close(matched.precision.diagonal(), q.precision.diagonal(), 0.1)  # √(2/4000) = 0.022 each
    stock = bm.numpyro.to_numpyro(q)
    mean = q.mode()
    by_site = sum(float(stock[n].log_prob(mean[n])) for n in mean)
    np.testing.assert_allclose(by_site, q.log_prob(mean), rtol=1e-9)


def test_what_subtracts_too_much_is_improper(fitted):
    q = fitted["even"]
    with pytest.raises(ValueError, match=r"BlockGaussian is improper.*smallest eigenvalue is -"):
        (q / q**2.0).mode()


def test_groups_are_named_by_patterns():
    theta = {"layer": [{"w": jnp.zeros((2, 2))}, {"w": jnp.zeros(3)}], "out": jnp.zeros(2)}
    structure = bm.Blocks([["layer.*"]])
    q = bm.IsotropicGaussian.from_mean_precision(theta, 2.0).structured(structure)
    assert [len(M) for M in q.precision.value] == [7, 2]
    for groups, message in (
        ([["layers.*"]], r"no leaf of θ has that name.*layer\.0\.w"),
        ([["layer.*"], ["*.w"]], r"groups 0 and 1 both hold the leaf 'layer\.0\.w'"),
    ):
        with pytest.raises(ValueError, match=message):
            q.structured(bm.Blocks(groups))
    with pytest.raises(TypeError, match="a sequence of groups"):
        bm.Blocks(["layer.*"])
    with pytest.raises(ValueError, match=r"sequence of 3 matrices.*sizes"):
        bm.BlockGaussian.from_mean_precision(theta, [jnp.eye(4)])
    with pytest.raises(ValueError, match=r"precision\[1\] has shape"):
        bm.BlockGaussian.from_mean_precision(theta, [jnp.eye(4), jnp.eye(2), jnp.eye(2)])
    with pytest.raises(TypeError, match="precision is blocks, and it must be full"):
        bm.FullGaussian._from_mean_precision(theta, q.precision, bm.FullGaussian.structure)
