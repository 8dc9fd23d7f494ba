"""What users of NumPyro bring on the first day, against NumPyro's and ArviZ's own numbers."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro import handlers
from numpyro.infer import autoguide
from numpyro.infer.util import log_likelihood, potential_energy
from scipy import stats
from stan_ports import PORTS

import bayesmerge as bm
from bayesmerge.fit import fit_shards
from bayesmerge.numpyro import Model, replace_prior


@pytest.fixture(autouse=True)
def as_numpyro_is_written():
    """NumPyro's own code promotes ranks; that data are constants is said once for a model."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*are constants of its compiled programs")
        yield


def bound(name):
    args, kwargs = PORTS[name].make()
    return Model(PORTS[name].model, *args, **kwargs)


def somewhere(model, seed=0):
    """θ within the reach of the prior."""
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(0.5 * rng.normal(size=s)) for n, s in sorted(model.sites.latent.items())}


def theirs(name, theta):
    args, kwargs = PORTS[name].make()
    return -potential_energy(handlers.seed(PORTS[name].model, 0), args, kwargs, theta)


def test_ports_have_numpyros_density():
    """All in one program."""
    models = {name: bound(name) for name in PORTS}
    thetas = {name: [somewhere(m, seed) for seed in (0, 1)] for name, m in models.items()}

    @jax.jit
    def densities(thetas):
        ours = {
            n: [m.log_prior(t) + m.log_likelihood(t) for t in thetas[n]] for n, m in models.items()
        }
        return ours, {n: [theirs(n, t) for t in thetas[n]] for n in models}

    ours, numpyros = densities(thetas)
    assert len(PORTS) >= 15
    for name in PORTS:
        np.testing.assert_allclose(ours[name], numpyros[name], rtol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["negative binomial", "strings"])
def test_ports_have_laplace_posteriors(name):
    args, kwargs = PORTS[name].make()
    target = bm.numpyro.target(PORTS[name].model, *args, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bm.ConvergenceWarning)
        q = bm.laplace(target, bm.numpyro.prior(target))
    drawn = target.model.draws(q, jax.random.key(0), 20)
    assert set(target.model.site_names) <= set(drawn)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in drawn.values())


def counts(data):
    """Conjugate: rate ~ Gamma(a, 1), Σ y ~ Poisson(n rate)."""
    rate = numpyro.sample("rate", dist.Gamma(float(data["a"]), 1.0))
    y = np.asarray(data["y"])
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


@functools.cache
def shards():
    data = {"north": [3, 5], "south": [4]}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        targets = {n: bm.numpyro.target(counts, {"a": 2, "y": y}) for n, y in data.items()}
    return targets, [w for w in told if "constants" in str(w.message)]


def test_constants_are_said_once_for_all_shards():
    _, told = shards()
    (warning,) = told
    assert warning.filename == __file__
    assert "data['y'] of the model 'counts' are constants" in str(warning.message)
    assert "jnp.asarray" in str(warning.message)


def test_shards_of_dictionaries_merge():
    """Σy + a successes over n + 1: mode of log rate log((a + Σy)/(n + 1)), curvature a + Σy."""
    targets, _ = shards()
    prior = bm.numpyro.prior(targets)
    posteriors = fit_shards(targets, prior)
    ones = np.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = bm.merge(posteriors, ones, prior)
        refined = bm.refine(targets, merged, ones, prior, steps=6)
    for name, total, count in (("north", 8, 2), ("south", 4, 1)):
        q = posteriors[name]
        np.testing.assert_allclose(q.mode()["rate"], np.log((2 + total) / (1 + count)), rtol=1e-9)
        np.testing.assert_allclose(q.precision.value, [[2.0 + total]], rtol=1e-9)
    np.testing.assert_allclose(refined.mode()["rate"], np.log(14 / 4), rtol=1e-9)
    joint = bm.JointTarget(targets, ones)
    theta = {"rate": jnp.array(0.3)}
    y = np.array([3, 5, 4])
    np.testing.assert_allclose(joint.total(theta), -stats.poisson.logpmf(y, np.exp(0.3)).sum())


def test_everything_downstream_takes_constants():
    targets, _ = shards()
    target = targets["north"]
    model, q = target.model, bm.laplace(target, bm.numpyro.prior(target))
    data = model.to_arviz(q, jax.random.PRNGKey(0), 40)
    assert data["posterior"]["rate"].shape == (4, 10)
    np.testing.assert_allclose(data["observed_data"]["y"], [3, 5])
    rates = data["posterior"]["rate"].values[..., None]
    np.testing.assert_allclose(data["log_likelihood"]["y"], stats.poisson.logpmf([3, 5], rates))
    new = model.predictive(q, jax.random.key(0), 10)(jax.random.key(1), {"a": 2, "y": [0, 0, 0]})
    assert new["y"].shape == (10, 3)
    assert np.isfinite(bm.fit.elbo(target, q, key=jax.random.key(0)))
    again = Model(replace_prior(counts, q), *model.args)
    np.testing.assert_allclose(again.log_prior(q.mode()), q.log_prob(q.mode()), rtol=1e-9)
    with pytest.raises(ValueError, match="leave out `batch_size`"):
        bm.von(target, key=jax.random.key(0), batch_size=1, progress=False)


def nested(data, *, scale):
    b = numpyro.sample("b", dist.Normal(0, scale).expand([len(data["x"])]))
    x = jnp.stack([data["x"][name] for name in data["x"]], axis=1)
    with numpyro.plate("rows", len(data["y"])):
        numpyro.sample("y", dist.Normal(x @ b, 1.0), obs=data["y"])


def test_arrays_stay_arguments_and_dictionaries_keep_their_order():
    rng = np.random.default_rng(0)
    z, a, y = rng.normal(size=(3, 4))
    one = Model(nested, {"x": {"z": z, "a": a}, "y": y}, scale=2)
    other = Model(nested, {"x": {"z": a, "a": z}, "y": 2 * y}, scale=2)
    swapped = Model(nested, {"x": {"a": a, "z": z}, "y": y}, scale=2)
    assert len(one.arguments.arrays) == 3
    assert one.arguments.constants == other.arguments.constants
    assert hash(one.arguments.constants) == hash(other.arguments.constants)
    assert one.arguments.constants != swapped.arguments.constants
    b = jnp.array([1.0, -0.5])
    expected = stats.norm.logpdf(y, z - 0.5 * a).sum()
    np.testing.assert_allclose(one.log_likelihood({"b": b}), expected)
    np.testing.assert_allclose(swapped.log_likelihood({"b": b[::-1]}), expected)


def groups(data, big):
    effects = numpyro.sample("effects", dist.Normal(0, 1).expand([int(np.max(data["g"])) + 1]))
    loc = effects[jnp.asarray(data["g"])] + jnp.sum(big["x"], axis=1)
    numpyro.sample("y", dist.Normal(loc, 1.0), obs=big["y"])


def test_only_what_the_model_looks_at_is_constant():
    rng = np.random.default_rng(1)
    big = {"x": rng.normal(size=(3, 5)), "y": rng.normal(size=3)}
    g = np.array([0, 1, 1])
    model = Model(groups, {"g": g}, big)
    shapes = [x.shape for x in model.arguments.arrays]
    assert shapes == [(3, 5), (3,)]
    g[:] = 0
    np.testing.assert_array_equal(model.args[0]["g"], [0, 1, 1])


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), ("a", "b"), ([1, 2], [2, 1]), ([1], (1,))]
)
def test_unequal_constants_are_other_programs(one, other):
    def model(y, option):
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0, 1)), 1.0), obs=y)

    y = jnp.zeros(2)
    first, again, second = (Model(model, y, x).arguments for x in (one, one, other))
    assert first.constants == again.constants
    assert first.constants != second.constants
    np.testing.assert_array_equal(first.digest, again.digest)
    assert not np.array_equal(first.digest, second.digest)


def column(y):
    mean = numpyro.sample("mean", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    "container",
    [
        list,
        pd.Series,
        lambda y: pytest.importorskip("polars").Series(y),
        lambda y: np.asarray(y, dtype=">f8"),
        lambda y: np.asarray(y, dtype=object),
    ],
    ids=["list", "pandas", "polars", "big-endian", "object"],
)
def test_containers_that_numpyro_leaves_to_jax_become_arrays(container):
    model = Model(column, container([0.5, 1.0, 2.5]))
    expected = stats.norm.logpdf([0.5, 1.0, 2.5], 0.25).sum()
    np.testing.assert_allclose(model.log_likelihood({"mean": jnp.array(0.25)}), expected, rtol=1e-6)


def masked(y):
    mean = numpyro.sample("mean", dist.Normal(0, 1))
    with handlers.mask(mask=jnp.isfinite(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def regression(x, y):
    b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def test_missing_values_are_named_unless_the_model_masks_them():
    y = np.array([1.0, np.nan, 3.0])
    with pytest.raises(ValueError, match=r"y\[1\] is nan \(1 such entries\).*site 'y'"):
        bm.numpyro.target(column, y)
    with pytest.raises(ValueError, match=r"y\[1\] is nan"):
        bm.numpyro.target(column, pd.Series(y))
    np.testing.assert_allclose(
        bm.find_mode(bm.numpyro.target(masked, y), bm.numpyro.prior(masked, y)).params["mean"],
        4 / 3,
    )


def test_data_that_do_not_fit_are_named():
    x = np.arange(3.0)
    with pytest.raises(
        ValueError, match=r"site 'y' is observed with .* \(4,\).*x \(float64\[3\]\)"
    ):
        Model(regression, x, np.arange(4.0))
    with pytest.raises(ValueError, match=r"KeyError: 'y'.*data\['a'\]"):
        Model(counts, {"a": 2})
    with pytest.raises(ValueError, match="masked arrays are not supported"):
        Model(column, np.ma.masked_array(x, [0, 1, 0]))
    with jax.enable_x64(False):
        for large in (np.array([1, 5_000_000_000]), [1, 5_000_000_000]):
            with pytest.raises(ValueError, match=r"y holds 5000000000.*astype\(float\)"):
                Model(column, large)
        with pytest.warns(UserWarning, match="y is around 1.6e"):
            Model(column, 1.6e9 + np.arange(3.0))
    assert len(Model(column, np.array([1, 5_000_000_000])).arguments.arrays) == 1


def test_columns_that_broadcast_to_a_matrix_are_told():
    x = np.arange(3.0)
    with pytest.warns(UserWarning, match=r"'y' has observations of shape \(3, 1\).* 9 log-prob"):
        Model(regression, x, x[:, None])
    Model(column, x[:, None])
    Model(column, jnp.array(1.0))


def graded(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("rows", len(y)), handlers.mask(mask=True):
        numpyro.sample("y", dist.Categorical(p), obs=y)


def test_impossible_observations_are_told():
    """As NumPyro tells of them where data are not traced: classes counted from 1."""
    says = (
        r"site 'y' has 2 observations outside of the support of its Categorical.*first 3 at .*\(1,"
    )
    with pytest.warns(UserWarning, match=says):
        bm.numpyro.target(graded, jnp.array([1, 3, 2, 3]))
    assert bm.numpyro.target(graded, jnp.array([0, 2, 1, 2])).num_examples == 4


def test_what_can_be_read_once_is_refused():
    with pytest.raises(TypeError, match=r"data\['y'\] is a generator.*`list\(data\['y'\]\)`"):
        Model(counts, {"a": 2, "y": (i for i in range(3))})


def test_refusals_are_the_same_for_dictionaries():
    def discrete(data):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=np.asarray(data["y"]))

    def learned(data):
        numpyro.sample("y", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=np.asarray(data["y"]))

    def improper(data):
        m = numpyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(m, 1.0), obs=np.asarray(data["y"]))

    def branching(data):
        m = numpyro.sample("m", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(m if m > 0 else -m, 1.0), obs=np.asarray(data["y"]))

    for model, says in (
        (discrete, "site 'z' is a discrete latent variable"),
        (learned, "site 'm' is a `numpyro.param`"),
        (improper, "site 'm' has an improper prior"),
        (branching, "looks at values of its latent sites"),
    ):
        for y in ([1.0, 2.0], np.array([1.0, 2.0])):
            with pytest.raises(ValueError, match=says):
                Model(model, {"y": y})


def shuffled(y):
    """Sites of several shapes, out of alphabetical order."""
    spread = numpyro.sample("spread", dist.LogNormal(0, 1))
    mean = numpyro.sample("mean", dist.Normal(0, 10).expand([2]).to_event(1))
    a = numpyro.sample("a", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("y", dist.Normal(mean[0] - mean[1] + a[0], spread), obs=y)


FLAT = {
    "AutoDiagonalNormal": lambda loc, root: {"auto_loc": loc, "auto_scale": np.diag(root)},
    "AutoMultivariateNormal": lambda loc, root: {"auto_loc": loc, "auto_scale_tril": root},
    "AutoLowRankMultivariateNormal": lambda loc, root: {
        "auto_loc": loc,
        "auto_cov_factor": root[:, :2],
        "auto_scale": np.diag(root),
    },
}


@pytest.mark.parametrize("name", FLAT)
def test_flat_guides_are_read_in_their_own_order(name):
    """Medians and log-densities of draws, by NumPyro."""
    y = jnp.array([0.5, 1.0])
    model, guide = Model(shuffled, y), getattr(autoguide, name)(shuffled)
    rng = np.random.default_rng(0)
    root = np.tril(0.1 * rng.normal(size=(5, 5)), -1) + np.diag([0.1, 0.2, 0.3, 0.4, 0.5])
    params = FLAT[name](rng.normal(size=5), root)
    q = model.from_guide(guide, params)
    for site, median in guide.median(params).items():
        np.testing.assert_allclose(model.constrain(q.mode())[site], median, rtol=1e-9)
    flat = jnp.asarray(rng.normal(size=5))
    density = jnp.sum(guide.get_posterior(params).log_prob(flat))
    np.testing.assert_allclose(q.log_prob(guide._unpack_latent(flat)), density, rtol=1e-9)


def by_row(y):
    with numpyro.plate("rows", 2):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        bias = numpyro.sample("bias", dist.HalfNormal(1))
        numpyro.sample("y", dist.Normal(slope, bias), obs=y)


def test_batched_guides_are_blocks():
    guide = autoguide.AutoBatchedMultivariateNormal(by_row, batch_ndim=1)
    rng = np.random.default_rng(0)
    roots = np.stack([np.array([[0.5, 0.0], [s, 0.3]]) for s in (0.2, -0.4)])
    params = {"auto_loc": rng.normal(size=(2, 2)), "auto_scale_tril": roots}
    q = Model(by_row, jnp.zeros(2)).from_guide(guide, params)
    flat = jnp.asarray(rng.normal(size=4))
    theirs = handlers.substitute(guide._get_posterior, data=params)()
    np.testing.assert_allclose(q.log_prob(guide._unpack_latent(flat)), theirs.log_prob(flat))


def test_guides_of_parts_and_flows_say_what_to_do():
    y = jnp.array([0.5, 1.0])
    model = Model(shuffled, y)
    parts = autoguide.AutoGuideList(shuffled)
    parts.append(autoguide.AutoDiagonalNormal(handlers.block(shuffled, hide=["a"])))
    flow = autoguide.AutoIAFNormal(shuffled)
    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        flow(y)
    params = {n: s["value"] for n, s in trace.items() if s["type"] == "param"}
    for guide in (parts, flow):
        with pytest.raises(TypeError, match="moment_matched"):
            model.from_guide(guide, params)


def test_a_guide_under_a_scale_is_the_distribution_it_draws_from():
    def guide(y):
        with handlers.scale(scale=0.1):
            numpyro.sample("mean", dist.Normal(0.4, 0.5))

    q = Model(handlers.scale(column, scale=3.0), jnp.zeros(2)).from_guide(guide, {})
    np.testing.assert_allclose(q.mode()["mean"], 0.4)
    np.testing.assert_allclose(q.variance()["mean"], 0.25)


def test_a_posterior_in_any_order_becomes_a_prior():
    def model(y):
        b = numpyro.sample("b", dist.Normal(0, 1))
        a = numpyro.sample("a", dist.Normal(0, 1).expand([2]))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    root = np.random.default_rng(0).normal(size=(3, 5))
    mean = {"b": jnp.array(0.1), "a": jnp.array([1.0, 2.0])}
    q = bm.FullGaussian.from_mean_precision(mean, jnp.asarray(root @ root.T))
    again = Model(replace_prior(model, q), jnp.zeros(2))
    theta = {"b": jnp.array(0.7), "a": jnp.array([0.2, -0.1])}
    np.testing.assert_allclose(again.log_prior(theta), q.log_prob(theta), rtol=1e-9)


Y = np.random.default_rng(0).normal(size=(7, 2))


def several(Y, z, total):
    """Multivariate, scaled, masked, subsampled and scalar observations; a factor."""
    b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("obs", 7):
        numpyro.deterministic("both", jnp.stack([b * jnp.ones(7), jnp.zeros(7)], axis=1))
        numpyro.sample("Y", dist.MultivariateNormal(jnp.array([b, 0.0]), jnp.eye(2)), obs=Y)
        with handlers.scale(scale=0.25), handlers.mask(mask=jnp.arange(7) < 5):
            numpyro.sample("z", dist.Normal(b, 1.0).expand([7, 3]).to_event(1), obs=z)
    with numpyro.plate("some", 7, subsample_size=3) as rows:
        numpyro.sample("w", dist.Normal(b, 2.0), obs=z[rows, 0])
    numpyro.sample("total", dist.Normal(b, 1.0), obs=total)
    numpyro.factor("soft", -(b**2))


@functools.cache
def observed():
    z = np.random.default_rng(1).normal(size=(7, 3))
    model = Model(handlers.scale(several, scale=0.5), Y, z, 1.5)
    q = bm.DiagonalGaussian.from_mean_precision({"b": jnp.array(0.3)}, {"b": jnp.array(4.0)})
    return model, q, z


def test_log_likelihoods_are_numpyros():
    model, q, z = observed()
    names = {"dims": {"Y": ["what"], "z": ["obs", "when"]}, "coords": {"what": ["u", "v"]}}
    data = model.to_arviz(q, jax.random.key(0), 8, **names)
    drawn = {"b": jnp.asarray(data["posterior"]["b"].values.reshape(8))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = handlers.substitute(several, data={"some": jnp.arange(7)})
        numpyros = log_likelihood(whole, drawn, Y, z, 1.5, parallel=True)
    shown = data["log_likelihood"]
    assert set(shown) == {"Y", "z", "w", "total"}
    for site in shown:
        ours = shown[site].values.reshape(8, *shown[site].shape[2:])
        np.testing.assert_allclose(ours, numpyros[site], rtol=1e-9, err_msg=site)
    theta = {"b": jnp.array(0.3)}
    log_p = model.log_likelihoods(theta)
    z_weight, others = 0.5 * 0.25, 0.5 * (sum(log_p[n].sum() for n in ("Y", "w", "total")) - 0.09)
    expected = z_weight * log_p["z"].sum() + others
    np.testing.assert_allclose(model.log_likelihood(theta), expected)


def test_axes_of_events_are_not_those_of_log_likelihoods():
    model, q, _ = observed()
    names = {"dims": {"Y": ["what"], "z": ["obs", "when"]}, "coords": {"what": ["u", "v"]}}
    data = model.to_arviz(q, jax.random.key(0), 10, **names)
    lead = ("chain", "draw")
    dims = {group: {n: x.dims for n, x in data[group].items()} for group in data.groups() if group}
    dims = {group.strip("/"): names for group, names in dims.items()}
    assert dims["observed_data"] == {
        "Y": ("obs", "what"), "z": ("obs", "when"), "w": ("some",), "total": ()
    }  # fmt: skip
    assert dims["log_likelihood"] == {
        "Y": (*lead, "obs"), "z": (*lead, "obs"), "w": (*lead, "some"), "total": lead
    }  # fmt: skip
    assert dims["posterior_predictive"]["z"] == (*lead, "obs", "when")
    assert dims["posterior"]["both"] == (*lead, "both_dim_0", "both_dim_1")
    assert data["posterior"]["b"].shape == (2, 5)
    for wrong, says in (
        ({"dims": {"Y": ["draw", "what"]}}, "differ from each other, from 'chain' and 'draw'"),
        ({"dims": {"z": ["obs", "obs"]}}, r"Give others by `dims=\{'z': …\}`"),
        ({"dims": {"Y": ["what"], "z": ["obs", "what"]}}, "axis 'what' has 3 entries at site 'z'"),
        ({"dims": {"total": ["x"]}}, r"dims\['total'\] are \['x'\], and the site has shape \(\)"),
    ):
        with pytest.raises(ValueError, match=says):
            model.to_arviz(q, jax.random.key(0), 10, **wrong)


@pytest.mark.parametrize(("count", "shape"), [(1000, 4), (15, 3), (6, 1), (7, 1), (10, 2), (1, 1)])
def test_draws_are_put_into_chains(count, shape):
    from bayesmerge.numpyro.outputs import chains

    assert chains(count) == shape


def test_convergence_statistics_exist():
    az = pytest.importorskip("arviz")
    model, q, _ = observed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = az.summary(model.to_arviz(q, jax.random.key(0), 400), var_names=["b"])
    assert 0.99 < table["r_hat"].iloc[0] < 1.05


def test_summaries_are_in_the_sites_own_units():
    targets, _ = shards()
    model = targets["north"].model
    q = bm.DiagonalGaussian.from_mean_precision({"rate": jnp.array(1.0)}, {"rate": jnp.array(25.0)})
    found = model.summary(q, jax.random.key(0), 20_000)
    exact = stats.lognorm(0.2, scale=np.e)
    np.testing.assert_allclose(found.mean["rate"], exact.mean(), rtol=0.01)
    np.testing.assert_allclose(found.sd["rate"], exact.std(), rtol=0.03)
    np.testing.assert_allclose(found.low["rate"], exact.ppf(0.05), rtol=0.02)
    np.testing.assert_allclose(found.high["rate"], exact.ppf(0.95), rtol=0.02)
    header, row = repr(found).splitlines()
    assert header.split() == ["mean", "sd", "5", "%", "95", "%"]
    assert row.startswith("rate  2.7")


def test_a_checkpoint_of_other_constants_is_refused(tmp_path):
    targets, _ = shards()
    method = bm.fit.VON(prior=None, curvature="hessian", step_size=0.5, num_samples=2)
    start = bm.FullGaussian.from_mean_precision({"rate": jnp.array(1.0)}, jnp.eye(1))
    fit = functools.partial(
        bm.fit.run, method, start=start, key=jax.random.key(0), progress=False,
        checkpoint=tmp_path / "fit.npz",
    )  # fmt: skip
    fit(targets["north"], num_steps=1)
    with pytest.raises(ValueError, match="is of another fit"):
        fit(targets["south"], num_steps=2)


def logarithmic(theta, y):
    return 0.5 * (theta - jnp.log(y)) ** 2


def test_the_shard_that_fails_is_named():
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    parts = {"a": [1.0, 2.0], "b": [3.0, -1.0], "c": [1.0, 1.5]}
    for chosen in (["a", "b", "c"], ["b"]):
        targets = {n: bm.Target(logarithmic, jnp.array(parts[n])) for n in chosen}
        with pytest.raises(ValueError, match="shard 'b': the loss is not finite"):
            fit_shards(targets, prior)
