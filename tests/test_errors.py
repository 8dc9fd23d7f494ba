"""Bad input, each a readable error that names argument, value, cause and remedy."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesmerge as bm

curvature_module = importlib.import_module("bayesmerge.fit.curvature")


def diagonal(mean=(0.0, 1.0), precision=(1.0, 2.0)):
    return bm.DiagonalGaussian.from_mean_precision(jnp.array(mean), jnp.array(precision))


def squared(theta, y):
    return 0.5 * (y - theta) ** 2


def named(**leaves):
    return bm.IsotropicGaussian.from_mean_precision(
        {name: jnp.zeros(shape) for name, shape in leaves.items()}, 1.0
    )


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (lambda: named(w=(2, 3)), lambda: named(w=(3, 2)), r"\['w'\]' has shape \(2, 3\) and"),
        (lambda: named(w=2, b=1), lambda: named(w=2), r"\['b'\]' is only in the first"),
        (lambda: named(w=2), lambda: named(w=2, c=1), r"\['c'\]' is only in the second"),
        (
            lambda: diagonal(),
            lambda: bm.DiagonalGaussian.from_mean_precision(
                jnp.zeros(2, jnp.float32), jnp.ones(2, jnp.float32)
            ),
            "has dtype float64 and float32",
        ),
    ],
    ids=["shape", "missing", "extra", "dtype"],
)
def test_posteriors_of_different_models_name_the_leaf(p, q, message):
    with pytest.raises(ValueError, match=message):
        p() * q()
    with pytest.raises(ValueError, match=message):
        bm.merge([p(), q()], [0.5, 0.5])
    with pytest.raises(ValueError, match=message):
        p().kl_divergence(q())


def test_families_that_do_not_multiply():
    theta = jnp.array(0.5)
    gaussian = bm.IsotropicGaussian.from_mean_precision(theta, 1.0)
    with pytest.raises(TypeError, match="not members of one exponential family"):
        gaussian * bm.Beta.from_concentrations(theta, 1.0)
    with pytest.raises(TypeError, match="unsupported operand"):
        gaussian * 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], r"shape \(1,\), and for 2 tasks \('0', '1'\) they must have shape \(2,\)"),
        (0.5, r"shape \(\)"),
        (np.ones((2, 3)), r"shape \(2, 3\)"),
        ([0.5, np.nan], r"index \(1,\): nan"),
        ([0.5, np.inf], r"index \(1,\): inf"),
        ({"a": 1.0, "b": 2.0}, r"must name the same tasks"),
    ],
)
def test_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        bm.merge([diagonal(), diagonal()], weights)


def test_nothing_to_merge():
    with pytest.raises(ValueError, match="posteriors is empty"):
        bm.merge([], [])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite(bad):
    with pytest.raises(ValueError, match=r"mean must be finite.*index \(1,\)"):
        diagonal(mean=(0.0, bad))
    with pytest.raises(ValueError, match="precision must be finite"):
        diagonal(precision=(1.0, bad))
    with pytest.raises(ValueError, match="exponent must be finite"):
        diagonal() ** bad
    with pytest.raises(ValueError, match="params must be finite"):
        bm.laplace(bm.Target(squared, jnp.ones(3)), named_scalar(), params=jnp.array(bad))


def named_scalar(precision=1.0):
    return bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), precision)


def test_precisions_that_are_not_of_a_proper_posterior():
    mean = jnp.zeros(2)
    with pytest.raises(ValueError, match=r"positive in every entry.*smallest entry is -1.0"):
        diagonal(precision=(1.0, -1.0))
    with pytest.raises(ValueError, match=r"positive in every entry.*smallest entry is 0.0"):
        bm.IsotropicGaussian.from_mean_precision(mean, 0.0)
    with pytest.raises(ValueError, match=r"positive definite.*smallest eigenvalue is -1.0"):
        bm.FullGaussian.from_mean_precision(mean, jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match=r"symmetric.*mirrored entries is 0.5"):
        bm.FullGaussian.from_mean_precision(mean, jnp.array([[2.0, 0.5], [0.0, 2.0]]))
    with pytest.raises(ValueError, match=r"shape \(3, 3\), and a full precision over 2"):
        bm.FullGaussian.from_mean_precision(mean, jnp.eye(3))
    with pytest.raises(ValueError, match="mean and precision must have the same"):
        bm.DiagonalGaussian.from_mean_precision(mean, jnp.ones(3))
    with pytest.raises(ValueError, match="an isotropic one is a scalar"):
        bm.IsotropicGaussian.from_mean_precision(mean, jnp.ones(2))


@pytest.mark.parametrize("a", [0.0, -1.0, np.nan])
def test_concentrations(a):
    with pytest.raises(ValueError, match="concentrations"):
        bm.Beta.from_concentrations(a, 2.0)
    with pytest.raises(ValueError, match="shape and rate"):
        bm.Gamma.from_shape_rate(2.0, a)
    with pytest.raises(ValueError, match="concentrations"):
        bm.Dirichlet.from_concentrations(jnp.array([1.0, a]))


def test_a_dirichlet_needs_categories():
    with pytest.raises(ValueError, match="at least two categories"):
        bm.Dirichlet.from_concentrations(jnp.array([2.0]))


def test_modes_on_the_boundary():
    with pytest.raises(ValueError, match="boundary"):
        bm.Beta.from_concentrations(0.5, 2.0).mode()
    with pytest.raises(ValueError, match="flat"):
        bm.Beta.from_concentrations(1.0, 1.0).mode()
    with pytest.raises(ValueError, match="boundary"):
        bm.Gamma.from_shape_rate(0.5, 1.0).mode()
    with pytest.raises(ValueError, match="boundary"):
        bm.Dirichlet.from_concentrations(jnp.array([0.5, 2.0])).mode()
    half = bm.Beta.from_concentrations(0.5, 2.0)
    np.testing.assert_allclose(half.mode("logit"), np.log(0.25))
    np.testing.assert_allclose(half.mean(), 0.2)


@pytest.mark.parametrize("ask", ["mode", "mean", "variance", "log_partition", "entropy"])
def test_improper_quotients_say_so_when_asked(ask):
    full = bm.FullGaussian.from_mean_precision(jnp.zeros(2), jnp.eye(2))
    beta = bm.Beta.from_concentrations(1.5, 1.5)
    for improper in (diagonal() / diagonal() ** 2, full / full**2, beta / beta**4):
        assert not bool(improper.is_proper())
        with pytest.raises(ValueError, match=r"improper|no mode"):
            getattr(improper, ask)()
    back = diagonal() / diagonal() ** 2 * diagonal() ** 3
    np.testing.assert_allclose(back.mode(), diagonal().mode())
    with pytest.raises(ValueError, match="sample"):
        (full / full**2).sample(jax.random.key(0))


def test_improper_quotients_say_so_under_jit():
    @eqx.filter_jit
    def mode(p, q):
        return (p / q).mode()

    with pytest.raises(RuntimeError, match="improper and has no mode"):
        jax.block_until_ready(mode(diagonal(), diagonal()))


def test_weights_that_take_away_too_much():
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"smallest entry of its precision is -3.*less than 0.25"):
        bm.merge([diagonal((0.0, 0.0), (2.0, 3.0)), prior], [-2.0, 1.0], prior)
    with pytest.raises(ValueError, match="Without a prior no scaling"):
        bm.merge([diagonal(), diagonal()], [1.0, -2.0])
    with pytest.raises(ValueError, match=r"weights \[1.0, -2.0\] \(row 1\)"):
        bm.merge([diagonal(), diagonal()], [[0.5, 0.5], [1.0, -2.0]])
    with pytest.raises(ValueError, match=r"weights \[1.0, -2.0\]"):
        bm.preview([diagonal()] * 2, [[0.5, 0.5], [1.0, -2.0]], jnp.sum, progress=False)
    with pytest.raises(ValueError, match="natural parameter"):
        bm.merge([bm.Beta.from_concentrations(2.0, 2.0)], [-2.0])


def test_an_exponent_for_every_weighting_belongs_in_merge():
    with pytest.raises(ValueError, match="use `merge` with weights"):
        diagonal() ** jnp.array([1.0, 2.0])


def test_integer_parameters():
    with pytest.raises(TypeError, match=r"mean\['steps'\] has dtype int"):
        bm.IsotropicGaussian.from_mean_precision({"steps": jnp.arange(2)}, 1.0)
    with pytest.raises(TypeError, match="start has dtype int"):
        bm.find_mode(bm.Target(squared, jnp.ones(3)), start=jnp.array(0))
    with pytest.raises(TypeError, match=r"mean\['f'\] is .*Function.*equinox.partition"):
        bm.IsotropicGaussian.from_mean_precision({"f": jnp.sin, "w": jnp.ones(2)}, 1.0)
    with pytest.raises(ValueError, match="no leaves"):
        bm.IsotropicGaussian.from_mean_precision({}, 1.0)


def test_theta_of_another_shape():
    with pytest.raises(ValueError, match=r"use jax.vmap for many θ.*\(2,\) and \(3, 2\)"):
        diagonal().log_prob(jnp.zeros((3, 2)))


def test_a_loss_that_is_not_per_example():
    target = bm.Target(lambda theta, y: jnp.mean((y - theta) ** 2), jnp.ones(3))
    for fit in (bm.find_mode, bm.laplace):
        with pytest.raises(ValueError, match=r"returned shape \(\).*one value per example"):
            fit(target, named_scalar())
    with pytest.raises(ValueError, match="one value per example"):
        bm.laplace(target, named_scalar(), params=jnp.array(0.0))
    with pytest.raises(ValueError, match="one value per example"):
        bm.find_mode(bm.JointTarget([target], [1.0]), named_scalar())


def test_data():
    with pytest.raises(ValueError, match="empty dataset"):
        bm.Target(squared, jnp.ones(0))
    with pytest.raises(ValueError, match=r"data must be finite.*index \(1,\): nan"):
        bm.Target(squared, jnp.array([0.0, jnp.nan]))
    with pytest.raises(ValueError, match=r"one row per example.*\[0\].*3.*\[1\].*2"):
        bm.Target(squared, (jnp.ones(3), jnp.ones(2)))
    with pytest.raises(TypeError, match="list of arrays"):
        bm.Target(squared, [jnp.ones(3), jnp.ones(3)])
    with pytest.raises(ValueError, match="read only once"):
        bm.Target(squared, (batch for batch in [jnp.ones(3)]))
    with pytest.raises(ValueError, match="empty dataset"):
        bm.find_mode(bm.Target(squared, []), named_scalar())
    with pytest.raises(ValueError, match="data must be finite"):
        bm.find_mode(bm.Target(squared, [(jnp.array([jnp.nan]),)]), named_scalar())


def test_a_start_is_needed_without_a_prior():
    with pytest.raises(ValueError, match="pass `start`, or a prior"):
        bm.find_mode(bm.Target(squared, jnp.ones(3)))


def test_a_loss_that_is_not_finite():
    target = bm.Target(lambda theta, y: jnp.log(y - theta), jnp.ones(3))
    with pytest.raises(ValueError, match="loss is not finite"):
        bm.find_mode(target, start=jnp.array(2.0))


def double_well(theta, y):
    return y * (theta**4 / 4 - theta**2)


def test_an_indefinite_hessian_offers_ggn_and_never_zeros():
    target = bm.Target(double_well, jnp.ones(5))
    message = (
        r"hessian plus prior, is not positive definite.*ggn.*smallest eigenvalue or entry is -9"
    )
    for structure in ("full", "diagonal", "isotropic"):
        with pytest.raises(ValueError, match=message):
            bm.laplace(target, named_scalar(), structure=structure, params=jnp.array(0.0))
    with pytest.raises(RuntimeError, match="not positive definite"):
        eqx.filter_jit(lambda t: bm.laplace(t, named_scalar(), params=jnp.array(0.0)))(target)
    at_minimum = bm.laplace(target, named_scalar(), start=jnp.array(1.0))
    assert at_minimum.variance() > 0


def test_curvature_that_the_target_does_not_know():
    target = bm.Target(squared, jnp.ones(3))
    for kind in ("ggn", "fisher"):
        with pytest.raises(TypeError, match=r"Target\.supervised"):
            bm.curvature(target, jnp.array(0.0), kind)
    with pytest.raises(ValueError, match="curvature is 'kfac', and it must be one of"):
        curvature_module._require_known("curvature", "kfac", curvature_module.Kind)
    supervised = bm.Target.supervised(lambda w, x: x * w, "gaussian", (jnp.ones(3), jnp.ones(3)))
    with pytest.raises(ValueError, match="needs a `key`"):
        bm.curvature(supervised, jnp.array(0.0), "fisher", num_samples=3)
    bare = bm.Target.supervised(
        lambda w, x: x * w, lambda f, y: 0.5 * (f - y) ** 2, (jnp.ones(3), jnp.ones(3))
    )
    with pytest.raises(TypeError, match="cannot draw them"):
        bm.curvature(bare, jnp.array(0.0), "fisher")
    with pytest.raises(ValueError, match="likelihood is 'cauchy'"):
        bm.Target.supervised(lambda w, x: x * w, "cauchy", (jnp.ones(3), jnp.ones(3)))


def test_previews():
    weights = bm.simplex_grid(2, 0.5)
    with pytest.raises(ValueError, match=r"has shape \(2,\), and it must be a scalar"):
        bm.preview([diagonal()] * 2, weights, lambda x: x, progress=False)
    with pytest.raises(ValueError, match="must divide 1"):
        bm.simplex_grid(3, 0.3)
    with pytest.raises(ValueError, match="must divide 1"):
        bm.simplex_grid(3, -0.5)
    with pytest.raises(ValueError, match="at least one task"):
        bm.simplex_grid(0, 0.5)
    seen = bm.preview([diagonal()] * 2, weights, jnp.sum, progress=False)
    with pytest.raises(ValueError, match=r"metric is 'f1', and there are \('metric',\)"):
        seen.best("f1")
    with pytest.raises(ValueError, match="one value for each of the 3 weightings"):
        seen.compare(np.zeros(4))
    other = bm.preview([diagonal()] * 2, bm.simplex_grid(2, 0.25), jnp.sum, progress=False)
    with pytest.raises(ValueError, match="they must be the 3 of this preview"):
        seen.compare(other)
