"""Bad input, each a readable error that names argument, value, cause and remedy."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesmerge as bm
from bayesmerge.priors import as_prior

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
        curvature_module.require_known("curvature", "kfac", curvature_module.Kind)
    supervised = bm.Target.supervised(lambda w, x: x * w, "gaussian", (jnp.ones(3), jnp.ones(3)))
    with pytest.raises(ValueError, match="needs a `key`"):
        bm.curvature(supervised, jnp.array(0.0), "fisher", num_samples=3)
    bare = bm.Target.supervised(
        lambda w, x: x * w, lambda f, y: 0.5 * (f - y) ** 2, (jnp.ones(3), jnp.ones(3))
    )
    with pytest.raises(TypeError, match="known for canonical likelihoods"):
        bm.curvature(bare, jnp.array(0.0), "fisher")
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="cannot draw them"):
        bm.curvature(bare, jnp.array(0.0), "fisher", num_samples=1, key=key)
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


def stack(*members):
    return jax.tree.map(lambda *x: jnp.stack(x), *members)


def test_batches_name_the_member_that_fails():
    batch = stack(diagonal(), diagonal() ** -1.0)
    with pytest.raises(ValueError, match=r"member 1 of the batch: .*smallest entry is -2"):
        batch.mode()
    with pytest.raises(ValueError, match=r"shapes are \(2,\) and \(3,\)"):
        batch * stack(*[diagonal()] * 3)
    with pytest.raises(ValueError, match=r"shapes are \(2,\) and \(3,\)"):
        batch.kl_divergence(stack(*[diagonal()] * 3))
    with pytest.raises(ValueError, match="preview one member of each"):
        bm.preview([batch, batch], bm.simplex_grid(2, 0.5), jnp.sum, progress=False)


def test_half_precision_is_refused():
    for dtype in (jnp.bfloat16, jnp.float16):
        with pytest.raises(TypeError, match="Hold posteriors in float32"):
            bm.IsotropicGaussian.from_mean_precision(jnp.ones(2, dtype), 1.0)


def test_natural_parameters_that_overflow():
    with pytest.raises(ValueError, match="mean times precision must be finite"):
        bm.IsotropicGaussian.from_mean_precision(jnp.array([1e200]), 1e200)


def test_concentrations_that_drown():
    for make in (bm.Beta.from_concentrations, bm.Gamma.from_shape_rate):
        with pytest.raises(ValueError, match="in which smaller ones drown"):
            make(1e-12, 1.0)


def test_negative_fishers():
    theta = [jnp.array([1.0]), jnp.array([0.0])]
    with pytest.raises(ValueError, match=r"fishers\['0'\] must not be negative.*-1"):
        bm.schemes.fisher_average(theta, [jnp.array([-1.0]), jnp.array([3.0])], [0.5, 0.5])


def test_things_that_are_not_posteriors_or_targets():
    target = bm.Target(squared, jnp.ones(3))
    with pytest.raises(TypeError, match="prior is a float"):
        as_prior(1.0)
    with pytest.raises(TypeError, match=r"To merge bare parameters use `schemes\.average`"):
        bm.merge([jnp.ones(2)], [1.0])
    optimise = importlib.import_module("bayesmerge.fit.optimise")
    with pytest.raises(TypeError, match="target is a function"):
        optimise.require_target.__wrapped__(squared)
    with pytest.raises(TypeError, match="prior is a Beta"):
        optimise.as_fitted_prior.__wrapped__(target, bm.Beta.from_concentrations(2.0, 2.0))


@pytest.mark.parametrize(
    ("likelihood", "labels", "message"),
    [
        ("categorical", [1, 2, 3], "from 0 to one less than the outputs.*values from 1 to 3"),
        ("categorical", [-1, 0, 1], "values from -1 to 1"),
        ("categorical", [0.0, 1.0, 2.0], "integers of shape.*dtype float"),
        ("categorical", [[0], [1], [2]], r"shape \(3, 1\)"),
        ("bernoulli", [-1, 1, 1], "must be 0 or 1"),
        ("poisson", [-1, 1, 1], "counts ≥ 0"),
    ],
)
def test_labels_that_do_not_suit_the_likelihood(likelihood, labels, message):
    outputs = 3 if likelihood == "categorical" else None

    def model(w, x):
        return x @ w

    w = jnp.zeros((2, outputs)) if outputs else jnp.zeros(2)
    x, y = np.eye(3, 2), np.array(labels)
    for data in ((x, y), [(x, y)]):
        target = bm.Target.supervised(model, likelihood, data)
        with pytest.raises(ValueError, match=message):
            bm.find_mode(target, start=w)


def test_traced_labels_out_of_range_are_not_silent():
    def loss(labels):
        target = bm.Target.supervised(lambda w, x: x @ w, "categorical", (jnp.eye(3), labels))
        return target.total(jnp.zeros((3, 3)))

    assert np.isnan(jax.jit(loss)(jnp.array([0, 1, 3])))
    assert np.isnan(jax.jit(loss)(jnp.array([0, 1, -1])))


def test_data_of_a_supervised_target():
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", {"x": jnp.ones((2, 1))})
    with pytest.raises(TypeError, match=r"a tuple \(inputs, labels\), and a batch is a dict"):
        bm.find_mode(target, start=jnp.zeros(1))
    with pytest.raises(TypeError, match=r"data\[1\] must be numbers"):
        bm.Target(squared, (jnp.ones(2), np.array(["a", "b"])))
    listed = bm.Target(lambda w, batch: w * batch[0] - batch[1], (jnp.ones(2), [1.0, 2.0]))
    assert listed.total(jnp.array(1.0)) == -1
    column = bm.Target(lambda w, x: (w - x)[:, None], jnp.ones(3))
    with pytest.raises(ValueError, match="take the last axis away"):
        bm.find_mode(column, start=jnp.array(0.0))


def test_metrics():
    weights = bm.simplex_grid(2, 0.5)
    two = [diagonal()] * 2
    for metric in (lambda x: float(np.mean(np.asarray(x))), lambda x: 1.0 if x[0] > 0 else 0.0):
        with pytest.raises(TypeError, match=r"wrap it: `bm\.previews\.Uncompiled"):
            bm.preview(two, weights, metric, progress=False)
        seen = bm.preview(two, weights, bm.previews.Uncompiled(metric), progress=False)
        np.testing.assert_allclose(seen.values(), metric(np.array([0.0, 1.0])))
    with pytest.raises(TypeError, match="a number, or a mapping"):
        bm.preview(two, weights, lambda x: None, progress=False)
    for names in ({}, {"weights": 1.0}):
        with pytest.raises(ValueError, match="are reserved names"):
            bm.preview(two, weights, lambda x, names=names: names, progress=False)


def test_previews_that_do_not_measure_the_same():
    weights = bm.simplex_grid(2, 0.5)
    values = {"m": np.array([0.0, 1.0, 2.0])}
    seen = bm.Preview(values, weights, ("a", "b"))
    with pytest.raises(ValueError, match="give them in the same order"):
        seen.compare(bm.Preview(values, weights, ("b", "a")))
    with pytest.raises(ValueError, match="counts higher as better"):
        seen.compare(bm.Preview(values, weights, ("a", "b"), higher_is_better=False))


def two_rows():
    x, y = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, 2.0])
    return bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, y))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([5], "rows holds 5, and there are 2 rows"),
        ([-3], "rows holds -3"),
        ([0, 0], "rows holds 0 twice"),
        ([], "names no row"),
        ([[0, 1], [1]], "different sizes"),
        ([0.5], "must be indices"),
        (np.ones(3, bool), r"a mask of 2 rows has shape \(2,\)"),
        (np.zeros(2, bool), "names no row"),
        ([0], "leave the parameters undetermined"),
    ],
)
def test_rows_that_cannot_be_left_out(rows, message):
    with pytest.raises(ValueError, match=message):
        bm.leave_out(two_rows(), rows, params=jnp.array([1.0, 2.0]))


def test_leaving_out_what_determines_a_parameter_is_an_error_either_way():
    """Leverage 1: the classical formulas divide by zero."""
    for options in ({}, {"curvature": "hessian"}):
        with pytest.raises(ValueError, match="undetermined"):
            bm.leave_out(two_rows(), params=jnp.array([1.0, 2.0]), **options)
    with pytest.raises(ValueError, match="undetermined"):
        bm.influence(two_rows(), params=jnp.array([1.0, 2.0]))


def test_leave_out_needs_rows_and_a_mode():
    batches = bm.Target(squared, [(jnp.ones(2),)])
    with pytest.raises(TypeError, match=r"remove\(posterior, expand"):
        bm.leave_out(batches, [0], params=jnp.array(1.0))
    with pytest.raises(ValueError, match="pass `params`"):
        bm.leave_out(two_rows(), [0])
    with pytest.raises(ValueError, match="params must be finite"):
        bm.leave_out(two_rows(), [0], params=jnp.array([1.0, np.nan]))


def test_influence_says_what_it_lacks():
    x = jnp.array([[1.0], [2.0]])
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, jnp.array([1.0, 2.0])))
    with pytest.raises(ValueError, match="no degree of freedom"):
        bm.influence(target, params=jnp.array([1.0]))
    with pytest.raises(ValueError, match="squared_gradients"):
        bm.influence(target, params=jnp.array([1.0]), curvature="hessian")


def test_conjugate_gradients_that_stop_short_warn():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(50, 20))), jnp.asarray(rng.normal(size=50))
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, y))
    mode = jnp.linalg.lstsq(x, y)[0]
    with pytest.warns(bm.ConvergenceWarning, match="short of the parameters without the rows"):
        bm.leave_out(target, [0], params=mode, solver="cg", max_steps=3)


def test_values_that_make_no_sense_for_removal():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)))
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, x @ jnp.ones(2)))
    with pytest.raises(ValueError, match="one number for all rows"):
        bm.leave_out(target, [0], params=jnp.ones(2), weight=jnp.ones(2))
    with pytest.raises(ValueError, match="weight must be finite"):
        bm.leave_out(target, [0], params=jnp.ones(2), weight=float("nan"))
    for dispersion in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="variance is positive"):
            bm.influence(target, params=jnp.ones(2), dispersion=dispersion)
    with pytest.raises(TypeError, match="must be a likelihood factor"):
        bm.remove(bm.laplace(target, params=jnp.ones(2)), target)
    with pytest.raises(TypeError, match="must be a `Target`"):
        bm.expand.__wrapped__(3, jnp.ones(2))


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_removal_away_from_the_mode_says_how_far(solver):
    """The formula takes ∇ℓ + ∇R = 0 for granted; elsewhere it is wrong without a sign of it."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, x @ jnp.ones(3)))
    with pytest.warns(bm.ConvergenceWarning, match="standard deviations"):
        bm.leave_out(target, [0], params=jnp.zeros(3), solver=solver)


def test_influence_away_from_the_mode_says_how_far():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, x @ jnp.ones(3)))
    with pytest.warns(bm.ConvergenceWarning, match="standard deviations"):
        bm.influence(target, params=jnp.zeros(3))


def test_collinear_columns_have_no_influence_measures():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20, 3))
    x = np.column_stack([x, x[:, :2] @ rng.normal(size=2)])
    y = rng.normal(size=20)
    mode = jnp.asarray(np.linalg.lstsq(x, y, rcond=None)[0])
    target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (jnp.asarray(x), jnp.asarray(y)))
    for measure in (bm.influence, bm.leave_out):
        with pytest.raises(ValueError, match="undetermined"):
            measure(target, params=mode)


def test_conjugate_gradients_refuse_negative_curvature():
    target = bm.Target(double_well, jnp.linspace(0.9, 1.1, 5))
    saddle = jnp.array(0.0)
    with pytest.raises(ValueError, match="undetermined"):
        bm.leave_out(target, [0], params=saddle + 0.1, solver="cg")


def test_a_loss_that_is_not_finite_where_it_is_expanded():
    target = bm.Target(lambda w, b: -jnp.log(b * w[0]), jnp.ones(4))
    with pytest.raises(ValueError, match="gradient and curvature of the loss at params"):
        bm.expand(target, jnp.zeros(1))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
def test_labels_must_match_the_outputs(likelihood):
    data = (jnp.ones((5, 3)), jnp.ones(5))
    target = bm.Target.supervised(lambda w, x: x @ w, likelihood, data)
    with pytest.raises(ValueError, match="one for each output"):
        bm.find_mode(target, start=jnp.ones((3, 2)))


def test_products_need_a_vector_shaped_as_theta():
    with pytest.raises(ValueError, match="params and vector must have the same parameters"):
        curvature_module.curvature_product(two_rows(), jnp.ones(2), jnp.ones(3), "ggn")


def test_a_mismatch_is_of_single_posteriors():
    target = bm.Target(squared, jnp.array([1.0, 2.0]))
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), prior)
    with pytest.raises(ValueError, match="is a batch of shape"):
        bm.mismatch({"a": target}, {"a": batch}, [1.0], prior, solution=jnp.array(0.0))
