"""What objects show of themselves, marginal quantiles, digits at large counts, users' names."""

import importlib.resources
import warnings

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import mpmath
import numpy as np
import pytest
import scipy.stats
from cases import FAMILIES
from matplotlib.text import Text

import bayesmerge as bm
from bayesmerge.families import DensePrecision
from bayesmerge.families.layout import Layout
from bayesmerge.families.special import excess, log_ratio, sum_of_others
from bayesmerge.previews.pictures.text import artist_label, wrapped

# Counts beyond the whole numbers of float32 are warned of; here it is their digits that matter.
# Counts up to 1e30 are what is tested here, and each of them is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.* are up to .*, where float32 has only every")

F32 = jnp.float32
COUNTS = [
    [600.0, 3.0, 5.0],
    [1e8, 1.0, 5.0],
    [1e12, 1e12, 3.0],
    [1e30, 1.0, 7.0],
    [0.01, 0.02, 0.03],
    [20.0, 30.0, 40.0],
]


def exact(x):
    return [mpmath.mpf(float(v)) for v in np.asarray(x)]


def dirichlet(counts):
    """In float32, and its concentrations as they are stored."""
    q = bm.Dirichlet.from_concentrations(jnp.array(counts, F32))
    return q, exact(np.asarray(q.counts, float) + 1)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_dirichlets_keep_their_digits_in_float32(counts):
    q, a = dirichlet(counts)
    with mpmath.workdps(60):
        total = sum(a)
        variance = [x * (total - x) / total**2 / (total + 1) for x in a]
        log_beta = sum(map(mpmath.loggamma, a)) - mpmath.loggamma(total)
        psi = [mpmath.digamma(x) for x in a]
        entropy = log_beta + (total - 3) * mpmath.digamma(total)
        entropy -= sum((x - 1) * p for x, p in zip(a, psi, strict=True))
        expected = [float(p - mpmath.digamma(total)) for p in psi]
        std = [float(mpmath.sqrt(v)) for v in variance]
    np.testing.assert_allclose(q.std(), std, rtol=1e-5)
    np.testing.assert_allclose(q.variance(), np.array(variance, float), rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(q.log_partition(), float(log_beta), rtol=1e-5)
    np.testing.assert_allclose(q.entropy(), float(entropy), rtol=1e-5)
    np.testing.assert_allclose(q.expected_statistics(), expected, rtol=1e-4, atol=1e-6)


def exact_divergence(a, b):
    def bregman(x, y):
        return mpmath.loggamma(y) - mpmath.loggamma(x) - (y - x) * mpmath.digamma(x)

    with mpmath.workdps(80):
        parts = sum(bregman(x, y) for x, y in zip(a, b, strict=True))
        return float(parts - bregman(sum(a), sum(b)))


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_divergences_from_flat_priors_and_neighbours_in_float32(counts):
    p, a = dirichlet(counts)
    near = np.array(counts) * 1.001 + np.sqrt(counts)
    for other in ([1.0, 1.0, 1.0], [600.0, 3.0, 5.0], [1.0, 1e8, 3.0], near):
        q, b = dirichlet(other)
        got = p.kl_divergence(q), q.kl_divergence(p)
        expected = exact_divergence(a, b), exact_divergence(b, a)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [((1e8, 1e8), (2.0, 1e-3)), ((3.0, 1e10), (3.0, 1.0)), ((1e20, 1e-10), (1e20, 2e-10))],
)
def test_gammas_keep_their_digits_in_float32(one, other):
    p, q = (bm.Gamma.from_shape_rate(F32(a), F32(b)) for a, b in (one, other))
    with mpmath.workdps(60):
        (a, b), (c, d) = (
            (mpmath.mpf(float(x.events)) + 1, mpmath.mpf(float(x.rate))) for x in (p, q)
        )
        divergence = (a - c) * mpmath.digamma(a) - mpmath.loggamma(a) + mpmath.loggamma(c)
        divergence += c * mpmath.log(b / d) + a * (d - b) / b
        log_partition, std = mpmath.loggamma(a) - a * mpmath.log(b), mpmath.sqrt(a) / b
    np.testing.assert_allclose(p.kl_divergence(q), float(divergence), rtol=1e-5)
    np.testing.assert_allclose(p.log_partition(), float(log_partition), rtol=1e-5)
    np.testing.assert_allclose(p.std(), float(std), rtol=1e-6)
    assert np.isfinite(jax.tree.leaves(p.expected_statistics())).all()


def test_gaussians_whose_precisions_differ_by_many_orders_have_a_finite_divergence():
    def gaussian(precision):
        return bm.DiagonalGaussian.from_mean_precision(jnp.zeros(2, F32), jnp.array(precision, F32))

    got = gaussian([1.0, 1e10]).kl_divergence(gaussian([1e-10, 1.0]))
    np.testing.assert_allclose(got, 1e-10 - 1 + 10 * np.log(10), rtol=1e-6)


def test_logarithms_and_sums_of_others_keep_all_digits():
    x = np.array([1e-30, 0.5, 1 - 2**-24, 1 + 2**-23, 1.05, 3.0, 1e30], np.float32)
    y = np.ones_like(x)
    exactly = [mpmath.mpf(float(v)) for v in x]
    with mpmath.workdps(60):
        logs = [float(mpmath.log(v)) for v in exactly]
        excesses = [float(v - 1 - mpmath.log(v)) for v in exactly]
    np.testing.assert_allclose(log_ratio(jnp.array(x), jnp.array(y)), logs, rtol=3e-7)
    np.testing.assert_allclose(excess(jnp.array(x), jnp.array(y)), excesses, rtol=3e-6)
    for array in (np.array([1e8, 1.0, 5.0]), jnp.array([1e8, 1.0, 5.0], F32)):
        exactly = np.array([6, 1e8 + 5, 1e8 + 1], array.dtype)
        np.testing.assert_array_equal(sum_of_others(array), exactly)


def test_the_curvature_of_logistic_losses_is_that_of_both_classes_in_float32():
    root = bm.Target.supervised(lambda w, x: x @ w, "bernoulli", (jnp.eye(1), jnp.ones(1))).loss
    roots = [root.likelihood.root(F32(logit), F32(1))[0, 0] for logit in (-20.0, 20.0)]
    np.testing.assert_allclose(roots, [np.exp(-10)] * 2, rtol=1e-6)


def test_a_mixture_of_equal_components_far_from_zero_has_their_spread():
    far = bm.IsotropicGaussian.from_mean_precision(F32(1e8), 1.0)
    mixture = bm.Mixture(jnp.ones(3), [far] * 3)
    np.testing.assert_allclose(mixture.std(), 1, rtol=1e-6)
    np.testing.assert_allclose(mixture.variance(), 1, rtol=1e-6)
    wide = bm.Mixture(
        [0.5, 0.5], [bm.IsotropicGaussian.from_mean_precision(F32(m), 1.0) for m in (-1e25, 1e25)]
    )
    np.testing.assert_allclose(wide.std(), 1e25, rtol=1e-6)


@pytest.mark.parametrize("case", FAMILIES, ids=repr)
def test_std_is_the_root_of_the_variance(case):
    q = case.make(np.random.default_rng(0))
    for std, variance in zip(*map(jax.tree.leaves, (q.std(), q.variance())), strict=True):
        np.testing.assert_allclose(std**2, variance, rtol=1e-12)


P = np.array([0.0, 1e-9, 0.025, 0.5, 0.975, 1 - 1e-9, 1.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_quantiles_are_scipys(dtype):
    rtol = 10 * float(jnp.finfo(dtype).eps)

    def check(q, scipy_of, atol=1e-37):
        assert q.quantile(P).dtype == dtype
        np.testing.assert_allclose(q.quantile(P), scipy_of, rtol=rtol, atol=atol)

    for a, b in [(1e-2, 1e-2), (1e-2, 5.0), (1e8, 1e8), (2.0, 3.0), (1e8, 2.0)]:
        a, b = dtype(a), dtype(b)
        beta, gamma = bm.Beta.from_concentrations(a, b), bm.Gamma.from_shape_rate(a, b)
        a, b = float(beta.successes) + 1, float(beta.failures) + 1
        check(beta, scipy.stats.beta(a, b).ppf(P))
        check(gamma, scipy.stats.gamma(float(gamma.events) + 1, scale=1 / float(gamma.rate)).ppf(P))
    normal = bm.IsotropicGaussian.from_mean_precision(dtype(3.0), 4.0)
    check(normal, scipy.stats.norm(3, 0.5).ppf(P), atol=rtol)
    counts = bm.Dirichlet.from_concentrations(jnp.array([1e8, 1.0, 5.0], dtype))
    expected = [scipy.stats.beta(a, b).ppf(P) for a, b in [(1e8, 6), (1, 1e8 + 5), (5, 1e8 + 1)]]
    np.testing.assert_allclose(counts.quantile(P), np.transpose(expected), rtol=rtol, atol=1e-37)


def test_a_quantile_of_a_beta_in_thirty_digits():
    x = bm.Beta.from_concentrations(0.5, 3.0).quantile(0.01)
    with mpmath.workdps(30):
        below = mpmath.betainc(0.5, 3, 0, mpmath.mpf(float(x)), regularized=True)
    np.testing.assert_allclose(float(below), 0.01, rtol=1e-13)


def test_quantiles_have_the_axes_of_batch_p_and_leaf():
    full = bm.FullGaussian.from_mean_precision(
        {"w": jnp.zeros((2, 1))}, jnp.array([[2.0, 1], [1, 2]])
    )
    beta = bm.Beta.from_concentrations({"w": jnp.ones((2, 1))}, {"w": 2 * jnp.ones((2, 1))})
    for q in (full, beta):
        batch = bm.merge([q, q], jnp.array([[1.0, 1.0], [0.5, 0.5], [1.0, 0.5]]))
        got = batch.quantile([[0.1, 0.5, 0.7, 0.9]])["w"]
        assert got.shape == (3, 1, 4, 2, 1)
        second = jax.tree.map(lambda x: x[1], batch)
        np.testing.assert_allclose(got[1, 0, 3], second.quantile(0.9)["w"], rtol=1e-12)
    np.testing.assert_allclose(full.quantile(0.975)["w"], 1.959964 * np.sqrt(2 / 3), rtol=1e-6)


@pytest.mark.parametrize("p", [1.5, -1e-9, np.nan, [0.5, 95.0]])
def test_what_is_no_probability_is_refused(p):
    for q in (bm.Beta.from_concentrations(2.0, 3.0), FAMILIES[2].make(np.random.default_rng(0))):
        with pytest.raises(ValueError, match=r"p holds probabilities.*0\.95"):
            q.quantile(p)


def test_quantiles_within_jit():
    q = bm.DiagonalGaussian.from_mean_precision(jnp.zeros(2), jnp.array([1.0, 4.0]))
    got = jax.jit(lambda q, p: q.quantile(p))(q, jnp.array([0.25, 0.975]))
    np.testing.assert_allclose(got, q.quantile([0.25, 0.975]), rtol=1e-12)
    with pytest.raises(ValueError, match=r"outside of `jax.jit`"):
        jax.jit(lambda q: q.quantile(0.5))(bm.Gamma.from_shape_rate(2.0, 3.0))


@pytest.fixture(scope="module")
def mixture():
    with jax.enable_x64(True):
        parts = [(-2.0, 1.0), (3.0, 25.0), (100.0, 1.0)]
        return bm.Mixture(
            [0.3, 0.7, 0.0],
            [
                bm.DiagonalGaussian.from_mean_precision(jnp.array([m, -m]), jnp.full(2, tau))
                for m, tau in parts
            ],
        )


def test_quantiles_of_mixtures_invert_their_distribution(mixture):
    p = np.array([1e-6, 0.1, 0.3, 0.31, 0.9, 1 - 1e-6])
    x = np.asarray(mixture.quantile(p))
    for column, sign in ((0, 1), (1, -1)):
        a, b = scipy.stats.norm(-2 * sign, 1), scipy.stats.norm(3 * sign, 0.2)
        np.testing.assert_allclose(
            0.3 * a.cdf(x[:, column]) + 0.7 * b.cdf(x[:, column]), p, rtol=1e-9
        )
    np.testing.assert_array_equal(mixture.quantile([0.0, 1.0])[:, 0], [-np.inf, np.inf])
    np.testing.assert_allclose((mixture * mixture).quantile(0.5)[0], 3, atol=0.1)
    with pytest.raises(ValueError, match="only whole numbers can be multiplied out"):
        (mixture**0.5).std()


def test_posteriors_show_their_numbers(mixture):
    coin = bm.Beta.from_concentrations(16.0, 6.0)
    assert repr(coin) == str(coin) == "Beta(16, 6)"
    assert repr(coin / coin**2) == "Beta(-14, -4), improper"
    assert repr(bm.Gamma.from_shape_rate(4.0, 0.5)) == "Gamma(shape=4, rate=0.5)"
    assert repr(bm.Dirichlet.from_concentrations(jnp.array([2.0, 2, 4]))) == "Dirichlet(2, 2, 4)"
    one = bm.IsotropicGaussian.from_mean_precision(jnp.array(1.5), 4.0)
    assert repr(one) == "IsotropicGaussian(mean=1.5, sd=0.5)"
    w = bm.FullGaussian.from_mean_precision({"w": jnp.arange(30.0)}, 4 * jnp.eye(30))
    start = 'FullGaussian over {"w": (30,)}'
    assert repr(w) == f"{start}: mean 0, 1, 2, 3, …, sd 0.5, 0.5, 0.5, 0.5, …"
    assert repr(w / w**2).startswith(f"{start}, improper: linear 0, -4, -8, -12, …, precision -4")
    batch = bm.merge([w, w], jnp.array([[1.0, 1.0], [0.5, 0.5]]))
    assert repr(batch).startswith(f"{start}, a batch of (2,), the first of which is: mean 0, 1")
    assert repr(mixture).splitlines()[:2] == [
        "Mixture of 3 DiagonalGaussian over (2,): weights 0.3, 0.7, 0",
        "  weight 0.3     mean -2, 2, sd 1, 1",
    ]
    assert "exponent 2: Mixture of 3 DiagonalGaussian" in repr(mixture**2.0)


def test_larger_trees_are_tables_and_long_ones_are_cut():
    rng = np.random.default_rng(0)
    lines = repr(FAMILIES[1].make(rng)).splitlines()
    assert lines[0] == 'DiagonalGaussian over {"b": (), "w": (2, 2)}:'
    assert [line.split()[0] for line in lines[1:]] == ["b", "w"]
    assert len({line.index("sd") for line in lines[1:]}) == 1
    many = {f"layer{i}": jnp.ones(3) for i in range(100)}
    shown = repr(bm.DiagonalGaussian.from_mean_precision(many, many))
    assert len(shown.splitlines()) < 20
    assert "96 more" in shown


def test_nothing_is_factorised_to_print_a_large_matrix(monkeypatch):
    size = 1001
    layout = Layout.of(jnp.ones(size))
    q = bm.FullGaussian(jnp.ones(size), DensePrecision(jnp.eye(size), layout))
    monkeypatch.setattr(np.linalg, "cholesky", lambda _: pytest.fail("factorised"))
    assert "mean and sd are not printed of more than 1000 parameters: linear 1, 1" in repr(q)


@pytest.mark.parametrize("case", FAMILIES, ids=repr)
def test_printing_never_fails(case):
    q = case.make(np.random.default_rng(0))
    name = type(q).__name__
    shown = []
    jax.jit(lambda q: [shown.append(repr(q)), q.is_proper()][1])(q)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), q)
    jax.vmap(lambda q: [shown.append(repr(q)), q.is_proper()][1])(stacked)
    assert all(s.startswith(name) and s.endswith("traced") for s in shown)
    for strange in (None, 0, True, "leaf", jax.ShapeDtypeStruct((2,), "float32"), np.float64(1)):
        assert name in repr(jax.tree.map(lambda _, x=strange: x, q))
    nan = jax.tree.map(lambda x: x * jnp.nan, q)
    assert repr(nan).startswith(name)


def test_results_are_tables():
    weights = bm.simplex_grid(2, 0.5)
    seen = bm.Preview(
        {"accuracy": np.array([0.5, 0.9, np.nan])[:2].repeat([1, 2])}, weights, ("a", "b")
    )
    assert repr(seen).splitlines()[0] == "Preview of 3 weightings of a, b (higher is better)"
    assert repr(seen).splitlines()[2].split() == ["accuracy", "0.9", "0.5", "0.5", "0.5"]

    def loss(theta, y):
        return 0.5 * (y - theta) ** 2

    prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    tasks = {n: bm.Target(loss, jnp.array([y])) for n, y in (("a", 1.0), ("b", 2.0))}
    assert repr(tasks["a"]) == "Target of 1 example: loss"
    found = bm.diagnose(
        tasks, {n: bm.laplace(t, prior) for n, t in tasks.items()}, [1.0, 1.0], prior
    )
    assert repr(found).splitlines()[1].split()[:3] == ["theta", "1", "0.5774"]
    assert repr(found.overlap).startswith("Overlap of 2 tasks: log-normaliser")
    assert "theta" in repr(found.refined)


NAMES = [
    "$100-$200",
    r"$\nosuch$",
    "a_b^c",
    "_hidden",
    "line\nbreak",
    "50% \\ {x} #&",
    "",
    "x" * 300,
]


def preview_of(name, tasks):
    weights = bm.simplex_grid(tasks, 0.5)
    rest = [f"t{i}" for i in range(tasks - 1)]
    return bm.Preview({name: weights[:, 0], "m": weights[:, 1]}, weights, (name, *rest))


def texts_of(axes):
    figure = np.ravel(np.asarray(axes, object))[0].figure
    figure.canvas.draw()
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes)]
    inside = [t.get_text() for legend in legends if legend for t in legend.get_texts()]
    return figure.findobj(Text), inside


PICTURES = {
    "curve": lambda n: preview_of(n, 2).plot(n),
    "ternary": lambda n: preview_of(n, 3).plot(n),
    "profiles": lambda n: preview_of(n, 4).plot(n),
    "fronts": lambda n: bm.plots.fronts({n: preview_of(n, 3)}, (n, "m")),
    "histogram": lambda n: bm.plots.histogram({n: preview_of(n, 3)}, n),
    "pairs": lambda n: bm.plots.pairs({"o": preview_of(n, 3), n: preview_of(n, 3)}, n, reference=n),
    "ternaries": lambda n: bm.plots.ternaries(
        {"o": preview_of(n, 3), n: preview_of(n, 3)}, n, reference=n
    ),
    "parallel": lambda n: bm.plots.parallel_coordinates(preview_of(n, 4), n),
    "slices": lambda n: bm.plots.slices(preview_of(n, 4), n),
    "densities": lambda n: bm.plots.densities(
        {n: bm.Beta.from_concentrations({n: 2.0}, {n: 3.0}), "o": FLAT(n)}
    ),
}
WITH_LEGEND = {"profiles", "fronts", "histogram", "pairs", "ternaries", "densities"}


def FLAT(name):
    return bm.Beta.from_concentrations({name: 2.0}, {name: 2.0})


@pytest.mark.parametrize("picture", PICTURES)
def test_names_are_drawn_as_they_are_written(picture):
    for name in NAMES:
        texts, in_legends = texts_of(PICTURES[picture](name))
        start = " ".join(name.split())[:10] or "''"
        shown = [t for t in texts if start in t.get_text()]
        assert shown, name
        assert not any(t.get_parse_math() and t._preprocess_math(t.get_text())[1] for t in shown)
        assert all(t._preprocess_math(t.get_text())[0] == t.get_text() for t in shown)
        if picture in WITH_LEGEND:
            assert any(start in text for text in in_legends), (name, in_legends)
        plt.close("all")


def test_legends_that_users_place_show_names_as_they_are_written():
    _, ax = plt.subplots()
    for name in ("_hidden", "$5-$6", r"a\$b", "plain"):
        ax.plot([0], [0], label=artist_label(name))
    texts = [t._preprocess_math(t.get_text())[0] for t in ax.legend().get_texts()]
    plt.close("all")
    shown = [text.removeprefix("\N{ZERO WIDTH SPACE}") for text in texts]
    assert shown == ["_hidden", "$5-$6", r"a\$b", "plain"]


def test_long_names_are_wrapped_and_cut():
    assert wrapped("a short name") == "a short name"
    assert max(map(len, wrapped("x" * 300).splitlines())) <= 24
    assert wrapped("word " * 100).endswith("…")
    assert wrapped("\x00\t\n") == "\N{REPLACEMENT CHARACTER}"


def test_names_that_files_cannot_hold_are_refused(tmp_path):
    seen = preview_of("tail\0", 2)
    with pytest.raises(ValueError, match="cannot be kept in a file"):
        seen.save(tmp_path / "seen.nc")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="names that the dataset uses itself"):
        preview_of("weights", 2).to_dataset()


def test_densities_are_those_of_the_marginals(mixture):
    (ax,) = bm.plots.densities({"mixture": mixture}, names=["theta[1]"])
    x, y = ax.lines[0].get_data()
    expected = 0.3 * scipy.stats.norm(2, 1).pdf(x) + 0.7 * scipy.stats.norm(-3, 0.2).pdf(x)
    np.testing.assert_allclose(y, expected, rtol=1e-9)
    assert ax.get_xlabel() == "theta[1]"
    w = bm.IsotropicGaussian.from_mean_precision({"w": jnp.zeros((4, 5))}, 1.0)
    axes = bm.plots.densities({"a": w, "_b": w})
    assert len(axes) == 12
    assert "first 12 of 20 entries" in axes[0].figure.get_supxlabel()
    assert [ax.get_xlabel() for ax in bm.plots.densities(w, names=["w[3,4]"])] == ["w[3,4]"]
    plt.close("all")
    for wrong, message in (
        ({"names": ["w[4,0]"]}, "name entries"),
        ({"names": []}, "0 entries"),
        ({"axes": axes[:2]}, "2 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            bm.plots.densities(w, **wrong)
    with pytest.raises(ValueError, match="is a batch"):
        bm.plots.densities(jax.tree.map(lambda x: jnp.stack([x, x]), w))


def test_densities_in_units_of_sites():
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)

    target = bm.numpyro.target(model, jnp.array([1.0, 2.0, -1.0]))
    q = bm.DiagonalGaussian.from_mean_precision(
        {"scale": jnp.array(0.0)}, {"scale": jnp.array(4.0)}
    )
    (ax,) = bm.plots.densities(q, model=target.model)
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, scipy.stats.lognorm(0.5).pdf(x), atol=0.06)
    plt.close("all")


def test_the_style_of_the_tutorials_is_in_the_package():
    assert importlib.resources.files("bayesmerge").joinpath("style.mplstyle").is_file()
    with warnings.catch_warnings(), plt.style.context("bayesmerge.style"):
        warnings.simplefilter("error")
        assert mpl.rcParams["figure.constrained_layout.use"]
