"""What users give in other containers than arrays of floats: taken for what it is, or refused by
name with a remedy. The right values are NumPy's, in float64."""

import array
import collections
import datetime
import decimal
import fractions
import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from jax.experimental import sparse

import bayesmerge as bm
from bayesmerge.arrays import as_array, as_rows
from bayesmerge.fit import fit_shards, moment_matched, subsampled
from bayesmerge.fit.likelihood import LIKELIHOODS, SupervisedLoss
from bayesmerge.tasks import as_weights, matched, named


@pytest.fixture(autouse=True)
def types_as_users_give_them(monkeypatch):
    """Annotations are not checked outside of tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


X = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
Y = np.array([1.0, 2.0, 3.0, 4.0])
W = np.array([0.5, -1.0])
TOTAL = 0.5 * np.sum((X @ W - Y) ** 2)
Pair = collections.namedtuple("Pair", "x y")


def model(w, x):
    return x @ w


def total(data):
    target = bm.Target.supervised(model, "gaussian", data)
    target.check(jnp.asarray(W))
    return float(target.total(jnp.asarray(W)))


def gaussian(mean, precision=1.0):
    return bm.IsotropicGaussian.from_mean_precision(jnp.array(mean), precision)


class Tensor:
    """The part of torch's protocol that is used; bfloat16 has no NumPy array there."""

    def __init__(self, values, dtype="torch.float32"):
        self.values, self.dtype = np.asarray(values), dtype
        self.shape, self.ndim = self.values.shape, self.values.ndim

    def detach(self):
        return Tensor(self.values, self.dtype)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values)

    def __array__(self, dtype=None, copy=None):
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


Tensor.__module__ = "torch"


class Loader:
    """As torch's: batches are lists of tensors, and it can be read again."""

    def __iter__(self):
        yield [Tensor(X[:2]), Tensor(Y[:2])]
        yield [Tensor(X[2:]), Tensor(Y[2:])]


class Dataset:
    """As torch's: single examples by number."""

    def __len__(self):
        return len(Y)

    def __getitem__(self, i):
        if i >= len(Y):
            raise IndexError
        return Tensor(X[i]), Tensor(Y[i])


class Exporting:
    """An array that only DLPack can read."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


COLUMNS = {"a": X[:, 0].astype(int), "b": X[:, 1]}
ACCEPTED = {
    "big-endian": lambda: (X.astype(">f8"), Y.astype(">i4")),
    "strides": lambda: (X[::-1], Y[::-1]),
    "fortran": lambda: (np.asfortranarray(X), Y),
    "objects": lambda: (X.astype(object), Y.astype(int).astype(object)),
    "decimals": lambda: (X, np.array([decimal.Decimal(int(y)) for y in Y])),
    "fractions": lambda: (X, [fractions.Fraction(int(y)) for y in Y]),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "array.array": lambda: (X, array.array("d", Y)),
    "memoryview": lambda: (memoryview(X), memoryview(Y)),
    "small integers": lambda: (X.astype(np.uint8), Y.astype(np.uint64)),
    "bfloat16": lambda: (X.astype(ml_dtypes.bfloat16), Y.astype(np.float16)),
    "column": lambda: (X, Y[:, None]),
    "unmasked": lambda: (np.ma.array(X), Y),
    "named tuple": lambda: Pair(X, Y),
    "pandas": lambda: (pd.DataFrame(COLUMNS), pd.Series(Y)),
    "pandas nullable": lambda: (
        pd.DataFrame(COLUMNS).convert_dtypes(),
        pd.Series(Y).astype("Int64"),
    ),
    "pandas objects": lambda: (pd.DataFrame(COLUMNS, dtype=object), pd.Index(Y)),
    "pandas categories": lambda: (X, pd.Series(Y).astype("category")),
    "index of one": lambda: (pd.DataFrame(X, index=list("abcd")), pd.Series(Y)),
    "xarray": lambda: (xr.DataArray(X, dims=("n", "p")), xr.DataArray(Y, dims="n")),
    "tensors": lambda: (Tensor(X, "torch.bfloat16"), [Tensor(y) for y in Y]),
    "dlpack": lambda: (Exporting(X), Exporting(Y)),
    "loader": Loader,
    "function": lambda: lambda: ((X[i : i + 2], Y[i : i + 2]) for i in (0, 2)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_containers_have_the_values_of_numpy(name):
    np.testing.assert_allclose(total(ACCEPTED[name]()), TOTAL, rtol=1e-6)


def test_polars_and_pyarrow():
    pl = pytest.importorskip("polars", reason="polars is not installed")
    assert total((pl.DataFrame(COLUMNS), pl.Series(Y.astype(int)))) == pytest.approx(TOTAL)
    for bad, message in (
        ((pl.DataFrame({"a": [1, None, 2, 0], "b": Y}), Y), r"\['a'\] .* 1 of 4 .*row 1"),
        ((X, pl.Series(list("abcd"))), "np.unique"),
        ((X, pl.Series([datetime.date(2020, 1, 1)] * 4)), "holds dates.*encode"),
        ((pl.DataFrame(COLUMNS).lazy(), Y), "collect"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            total(bad)
    weights = pl.DataFrame({"b": [0.2], "a": [0.8]})
    np.testing.assert_allclose(as_weights(weights, ("a", "b")), [[0.8, 0.2]])
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    assert total((pa.table(COLUMNS), pa.chunked_array([Y[:2], Y[2:]]))) == pytest.approx(TOTAL)
    with pytest.raises(ValueError, match=r"data\[1\] .* 1 of 4 entries are missing"):
        total((X, pa.array([1, None, 2, 3])))


def test_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, y = torch.tensor(X, requires_grad=True), torch.tensor(Y, dtype=torch.bfloat16)
    assert total((x, y)) == pytest.approx(TOTAL)
    dataset = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    assert total(torch.utils.data.DataLoader(dataset, batch_size=2)) == pytest.approx(TOTAL)
    assert bm.schemes.average([{"w": x}, {"w": x}], [0.5, 0.5]).mode()["w"].shape == X.shape


DATES = pd.date_range("2020", periods=4)
REFUSED = {
    "sparse matrix": (lambda: (scipy.sparse.csr_matrix(X), Y), r"data\[0\] is a sparse.*toarray"),
    "sparse array": (lambda: (scipy.sparse.coo_array(X), Y), r"sparse coo_array.*toarray"),
    "BCOO": (lambda: (sparse.BCOO.fromdense(jnp.asarray(X)), Y), "sparse BCOO.*todense"),
    "dates": (lambda: (X, DATES), r"data\[1\].*holds dates.*encode"),
    "dates with zone": (lambda: (X, pd.Series(DATES.tz_localize("UTC"))), "Timestamp.*dates"),
    "date column": (lambda: (pd.DataFrame({"when": DATES}), Y), r"data\[0\]\['when'\].*dates"),
    "durations": (lambda: (X, np.arange(4).astype("m8[D]")), "time differences.*encode"),
    "strings": (lambda: (X, list("abca")), r"strings, first 'a'.*np\.unique"),
    "categories": (lambda: (X, pd.Categorical(list("abca"))), r"row 0 .*'a'.*np\.unique"),
    "one string": (lambda: (X, np.array([1, "a", 2, 3], object)), r"row 1 it holds 'a'"),
    "masked": (lambda: (np.ma.masked_less(X, 1), Y), r"1 of 8 entries are\s+masked.*\(3, 0\)"),
    "None": (lambda: (X, [1, None, 2, 3]), r"data\[1\].* 1 of 4 .*row 1"),
    "NA": (lambda: (pd.DataFrame({"a": pd.array([1, None, 2, 3])}), Y), r"\['a'\].* 1 of 4"),
    "NaN column": (lambda: (pd.DataFrame({"a": [1, np.nan, 2, 3]}), Y), r"\['a'\].*row 1"),
    "NaN": (lambda: (X, np.array([1, np.nan, 2, 3])), r"'\[1\]', index \(1,\): nan \(1 such"),
    "inf later": (lambda: [(X, Y), (np.where(X == 3, np.inf, X), Y)], "must be finite"),
    "shuffled rows": (lambda: (pd.DataFrame(X), pd.Series(Y)[::-1]), "another order.*loc"),
    "shuffled DataArray": (
        lambda: (
            xr.DataArray(X, dims=("n", "p"), coords={"n": [0, 1, 2, 3]}),
            xr.DataArray(Y, dims="n", coords={"n": [3, 2, 1, 0]}),
        ),
        "same labels in another order",
    ),
    "other rows": (
        lambda: (pd.DataFrame(X, index=list("abcd")), pd.Series(Y, index=list("abce"))),
        "label their rows differently",
    ),
    "dataset of xarray": (lambda: (xr.Dataset({"a": ("n", Y)}), Y), "pick variables"),
    "generator": (lambda: ((X, Y) for _ in range(1)), "a generator, .* read only once.*function"),
    "zip": (lambda: zip([X], [Y], strict=True), "a zip, .* read only once"),
    "set": (lambda: (X, {1.0, 2.0, 3.0, 4.0}), r"data\[1\] is a set"),
    "empty": (lambda: (), "empty dataset"),
    "a number": (lambda: 5, "data is a int"),
    "a text": (lambda: "abc", "data is a str"),
    "ragged": (lambda: ([[1.0, 2.0], [3.0]], Y[:2]), r"data\[0\].*different lengths"),
    "records": (lambda: (np.zeros(4, [("a", float), ("b", float)]), Y), r"fields \('a', 'b'\)"),
    "complex": (lambda: (X + 0j, Y), "complex128.*real and imaginary"),
    "long double": (lambda: (X.astype(np.longdouble), Y), r"JAX has none.*float64"),
    "huge integers": (lambda: (X, [2**70, 1, 2, 3]), "more than 64 bits"),
    "examples": (Dataset, "single examples.*loader"),
    "lengths": (lambda: (X, Y[:3]), "one row per example.*4.*3"),
    "outputs": (lambda: (X, X), r"shape \(4, 2\), where outputs have shape \(4,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_array_of_numbers_is_named(name):
    if name == "long double" and np.finfo(np.longdouble).bits == 64:
        pytest.skip("long doubles are doubles here")
    make, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        total(make())


def test_labels_of_another_shape_do_not_broadcast():
    target = bm.Target(lambda w, b: (b[0] @ w - b[1]) ** 2, (X, Y[:, None]))
    message = r"data\[1\] of shape \(4, 1\).*y\[:, 0\]"
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=message):
        target.check(jnp.asarray(W))
    outputs, labels = np.ones((4, 3)), np.arange(12.0).reshape(4, 3)
    for name in ("gaussian", "poisson"):
        losses = [jax.vmap(LIKELIHOODS[name].loss)(outputs, y) for y in (labels, labels[..., None])]
        np.testing.assert_array_equal(*losses)
    loss = SupervisedLoss(lambda w, x: jnp.ones((4, 2, 3)), LIKELIHOODS["gaussian"])
    with pytest.raises(ValueError, match="give labels the shape"):
        loss.check(W, (X, jnp.ones((4, 3, 2))))
    with pytest.raises(ValueError, match="argmax"):
        LIKELIHOODS["categorical"].check_labels(jnp.eye(3), (3, 3))


def test_labels_of_every_minibatch_are_checked():
    target = bm.Target.supervised(model, "bernoulli", [(X, Y > 2), (X, Y)])
    with pytest.raises(ValueError, match="must be 0 or 1"):
        target.total(jnp.asarray(W))


def test_integers_beyond_32_bits():
    wide = np.array([5_000_000_000, 5_100_000_000, 4_900_000_000, 5_000_000_000])
    assert as_array(wide, "x").dtype == np.int64
    with jax.enable_x64(False):
        for values in (wide, wide.tolist(), wide.astype(np.uint64), pd.Series(wide), -wide):
            with pytest.raises(ValueError, match=r"data\[1\] holds -?5100000000.*int32"):
                bm.Target(lambda w, batch: w * batch[1], (X, values))
        streamed = bm.Target(lambda w, batch: w * batch[1], [(X, wide)])
        with pytest.raises(ValueError, match="does not fit into int32"):
            streamed.total(jnp.array(1.0))
        with pytest.raises(ValueError, match="does not fit into int32"):
            bm.IsotropicGaussian.from_mean_precision({"w": wide}, 1.0)
        with pytest.raises(ValueError, match="infinite in float32"):
            bm.IsotropicGaussian.from_mean_precision({"w": X * 1e200}, 1.0)
        np.testing.assert_allclose(as_weights(wide[:2], ("a", "b")), wide[:2], rtol=1e-7)
        for data in ((np.ones(4), wide), [(np.ones(4), wide)]):
            counts = bm.Target.supervised(lambda w, x: x * w, "poisson", data)
            found = float(counts.total(jnp.array(20.0)))
            right = np.sum(np.exp(20.0) - wide * 20.0)
            np.testing.assert_allclose(found, right, rtol=1e-6)
    target = bm.Target(lambda w, y: (w - y) ** 2, np.ones(4))
    with pytest.raises(ValueError, match="rows holds 18446744073709551615"):
        bm.leave_out(target, np.array([2**64 - 1], np.uint64), params=jnp.array(1.0))


def test_rounding_that_is_coarse_against_the_spread():
    z = np.random.default_rng(0).normal(size=(100, 2))
    year, seconds = 2000 + np.arange(100.0), 1_700_000_000 + np.arange(100)

    def warnings_of(values):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            as_rows(values, "data")
        return [str(w.message) for w in caught]

    with jax.enable_x64(False):
        for silent in (
            z,
            1e4 + z,
            year,
            year.astype(int),
            np.full(9, 0.1),
            1e9 + 1e6 * z,
            z * 1e20,
        ):
            assert not warnings_of(silent)
        (said,) = warnings_of((1e9 + z, seconds))
        assert "data[0], column 0, is around 1e+09" in said
        assert "every 64 there" in said
        assert "for 3 columns" in said
        frame = pd.DataFrame({"age": z[:, 0], "time": seconds})
        (said,) = warnings_of(frame)
        assert "column 'time', is around 1.7e+09 and varies by 99" in said
        (said,) = warnings_of(np.arange(9) * 1e-42)
        assert "varies by 8e-42" in said
        target = bm.Target(lambda w, x: x @ w, [(1e9 + z,), (1e9 + z,)])
        with pytest.warns(UserWarning, match="every 64 there") as caught:
            list(target.data), list(target.data)
        assert len(caught) == 1
        with pytest.warns(UserWarning, match=r"draws, column 0, is around"):
            moment_matched(1e9 + 1000 * z, structure="diagonal")
    assert not warnings_of(1e9 + z)


LABELLED = {
    "mapping": {"b": 0.2, "a": 0.8},
    "Series": pd.Series({"b": 0.2, "a": 0.8}),
    "DataFrame": pd.DataFrame({"b": [0.2], "a": [0.8]}),
    "DataArray": xr.DataArray([0.2, 0.8], dims="task", coords={"task": ["b", "a"]}),
    "tasks first": xr.DataArray([[0.2], [0.8]], dims=("t", "row"), coords={"t": ["b", "a"]}),
    "named tuple": collections.namedtuple("Weights", "b a")(0.2, 0.8),
    "records": np.array([(0.2, 0.8)], [("b", float), ("a", float)]),
    "rows of mappings": [{"b": 0.2, "a": 0.8}, {"a": 0.8, "b": 0.2}],
    "by position": pd.Series([0.8, 0.2]),
    "table by position": pd.DataFrame([[0.8, 0.2]]),
    "array by position": xr.DataArray([0.8, 0.2]),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_labelled_weights_are_matched_by_name(kind):
    alpha = np.atleast_2d(as_weights(LABELLED[kind], ("a", "b")))
    np.testing.assert_allclose(alpha, np.tile([0.8, 0.2], (len(alpha), 1)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (pd.Series({"a": 0.2, "c": 0.8}), r"without \['b'\], besides \['c'\]"),
        (pd.Series([0.2, 0.8], index=[1, 0]), "must name the same tasks"),
        (pd.Series([0.2, 0.8], index=["a", "a"]), "one name as text"),
        (pd.DataFrame({"a": [0.2], "b": [0.8], "loss": [1.0]}), r"besides \['loss'\]"),
        (xr.DataArray([0.2, 0.8], dims="t", coords={"t": ["b", "c"]}), "coordinate 't'"),
        ({0.2, 0.8}, "is a set"),
        (np.ma.masked_less([0.2, 0.8], 0.5), "masked"),
        (["0.2", "0.8"], "strings"),
    ],
)
def test_weights_of_other_tasks_are_refused(weights, message):
    with pytest.raises((TypeError, ValueError), match=message):
        as_weights(weights, ("a", "b"))


def test_names_are_one_as_text_everywhere():
    twins = {1: gaussian(0.0), "1": gaussian(1.0)}
    with pytest.raises(ValueError, match=r"posteriors has the names \[1, '1'\]"):
        bm.merge(twins, [0.5, 0.5])
    with pytest.raises(ValueError, match="one name as text"):
        bm.preview(
            [gaussian(0.0)] * 2,
            [[0.5, 0.5]],
            lambda x: {1: x, "1": x},
            progress=False,
        )
    series = pd.Series([gaussian(0.0), gaussian(10.0)], index=["a", "b"])
    assert bm.merge(series, {"b": 0.2, "a": 0.8}).mode() == pytest.approx(2.0)
    assert matched({2: "y", 1: "x"}, ("1", "2"), "members") == ["x", "y"]
    assert named(pd.DataFrame({"b": [1.0], "a": [2.0]}), "params")[0] == ("b", "a")
    thetas = {"a": jnp.zeros(1), "b": jnp.ones(1)}
    fishers = {"b": jnp.array([3.0]), "a": jnp.array([1.0])}
    assert bm.schemes.fisher_average(thetas, fishers, {"b": 0.5, "a": 0.5}).mode()[0] == 0.75


def test_labels_of_previews():
    alpha = pd.DataFrame({"b": [1.0, 0.5, 0.0], "a": [0.0, 0.5, 1.0]})
    by_value = pd.Series([1.0, 2.0, 3.0], index=[2, 0, 1])
    seen = bm.Preview({"loss": by_value}, alpha, ("a", "b"), False)
    assert seen.best().weights == {"a": 1.0, "b": 0.0}
    np.testing.assert_array_equal(seen.metrics["loss"], [2.0, 3.0, 1.0])
    assert seen.compare(by_value).mse == 0
    with pytest.raises(ValueError, match="num_tasks is 'ab'"):
        bm.simplex_grid("ab", 0.5)


def test_empty_leaves():
    theta = {"w": jnp.array([1.0, 2.0]), "none": None, "b": jnp.zeros((2, 0))}
    one = jax.tree.map(jnp.ones_like, theta)
    q = bm.DiagonalGaussian.from_mean_precision(theta, one)
    merged = bm.merge([q, q], [1.5, -0.5], prior=q)
    np.testing.assert_allclose(merged.mode()["w"], theta["w"])
    assert merged.smallest_precision() == 1
    with pytest.raises(ValueError, match=r"smallest entry is -1"):
        (q / q**2).mode()
    with pytest.raises(ValueError, match="has no entries"):
        bm.DiagonalGaussian.from_mean_precision(jnp.zeros(0), jnp.zeros(0))
    assert bm.schemes.fisher_average([theta, theta], [one, one], [0.5, 0.5]).mode()["b"].shape == (
        2,
        0,
    )
    gamma = bm.Gamma.from_shape_rate(*[{"a": x, "b": jnp.zeros(0)} for x in (2.0, 1.0)])
    with pytest.raises(ValueError, match="smallest natural parameter is -"):
        (gamma**-3.0).log_partition()


@pytest.mark.parametrize("structure", ["full", "diagonal", "isotropic"])
def test_draws_of_any_scale(structure):
    z = np.random.default_rng(1).normal(size=(300, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    expected = np.asarray(moment_matched(z, structure=structure).precision.value)
    for scale in (1e-100, 1e-20, 1e22):
        found = moment_matched(z * scale, structure=structure).precision.value
        np.testing.assert_allclose(np.asarray(found) * scale**2, expected, rtol=1e-9)
    with jax.enable_x64(False):
        found = moment_matched(z * 1e-18, structure=structure).precision.value
        np.testing.assert_allclose(np.asarray(found, float) * 1e-36, expected, rtol=1e-4)
        for scale in (1e-20, 1e22):
            with pytest.raises(ValueError, match=r"float32 cannot hold.*other units"):
                moment_matched(z * scale, structure=structure)


def test_draws_in_other_containers():
    z = np.random.default_rng(2).normal(size=(2, 100, 3))
    flat = moment_matched(z.reshape(200, 3), structure="diagonal").mode()
    posterior = xr.Dataset({"w": (("chain", "draw", "i"), z), "m": (("chain", "draw"), z[..., 0])})
    tree = xr.DataTree.from_dict({"posterior": posterior})
    stacked = posterior.stack(sample=("chain", "draw"))
    for draws in (posterior, tree, stacked):
        found = moment_matched(draws, structure="diagonal").mode()
        np.testing.assert_allclose(found["w"], flat)
        np.testing.assert_allclose(found["m"], flat[0])
    frame = pd.DataFrame(z.reshape(200, 3), columns=["c", "a", "b"])
    np.testing.assert_allclose(moment_matched(frame, structure="diagonal").mode()["c"], flat[0])
    listed = moment_matched([z[0, :, 0], z[0]], structure="diagonal").mode()
    assert [x.shape for x in listed] == [(), (3,)]
    with pytest.raises(ValueError, match=r"np\.stack"):
        moment_matched([{"a": 1.0}, {"a": 2.0}])
    with pytest.raises(TypeError, match=r"builtins\.object"):
        moment_matched(object())


KEY_USERS = {
    "sample": lambda key: gaussian(0.0).sample(key),
    "laplace": lambda key: bm.laplace(
        bm.Target.supervised(model, "gaussian", (X, Y)),
        params=jnp.asarray(W),
        curvature="fisher",
        num_samples=2,
        key=key,
    ),
    "subsampled": lambda key: subsampled(
        bm.Target.supervised(model, "gaussian", (X, Y)), 2, jnp.asarray(W), key=key
    ),
    "von": lambda key: bm.von(
        bm.Target(lambda w, y: (w - y) ** 2, Y), key=key, start=gaussian(0.0), progress=False
    ),
    "preview": lambda key: bm.preview(
        [gaussian(0.0)] * 2,
        [[0.5, 0.5]],
        lambda x: x,
        spread=bm.previews.Spread(2, key),
        progress=False,
    ),
}


@pytest.mark.parametrize("name", KEY_USERS)
@pytest.mark.parametrize("key", [0, np.random.default_rng(0), jnp.arange(3)])
def test_keys_that_are_none(name, key):
    with pytest.raises(TypeError, match=r"jax\.random\.key\(0\)"):
        KEY_USERS[name](key)


def test_keys_of_the_old_kind():
    new, old = jax.random.key(3), jax.random.PRNGKey(3)
    draws = [gaussian(0.0).sample(key, (2,)) for key in (new, old, np.asarray(old))]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])
    with pytest.raises(TypeError, match=r"batch of keys of shape \(2,\)"):
        gaussian(0.0).sample(jax.random.split(new))


def test_params_of_another_shape():
    supervised = bm.Target.supervised(model, "gaussian", (X, Y))
    plain = bm.Target(lambda w, batch: batch[0] @ w["w"] - batch[1], (X, Y))
    for target, params in ((supervised, jnp.zeros(3)), (plain, {"v": jnp.zeros(2)})):
        for fit in (
            lambda t, p: subsampled(t, 2, p, key=jax.random.key(0)),
            lambda t, p: bm.find_mode(t, start=p),
            lambda t, p: bm.laplace(t, params=p),
            lambda t, p: bm.expand(t, p),
        ):
            with pytest.raises(ValueError, match=r"cannot be computed of params with shape"):
                fit(target, params)


def test_counts_beyond_the_whole_numbers_of_float32():
    with jax.enable_x64(False):
        with pytest.warns(UserWarning, match="up to 16777216, .* only every 2"):
            bm.Gamma.from_shape_rate(2.0**24, 1.0)
        with pytest.warns(UserWarning, match="concentrations are up to 5000000000"):
            bm.Beta.from_concentrations(np.int64(5_000_000_000), 2)
        jax.jit(lambda a: bm.Gamma.from_shape_rate(a, 1.0).events)(2.0**25)
        bm.Dirichlet.from_concentrations(np.array([2.0**23, 2.0]))
    bm.Gamma.from_shape_rate(2.0**24, 1.0)


def test_strict_promotion_of_dtypes():
    """Each step of merging, where dtypes may not be mixed."""
    x = X.astype(np.float32)
    prior = bm.FullGaussian.from_mean_precision(jnp.zeros(2, jnp.float32), np.eye(2))
    with jax.enable_x64(False), jax.numpy_dtype_promotion("strict"):
        prior = bm.FullGaussian.from_mean_precision(jnp.zeros(2), np.eye(2))
        targets = {
            name: bm.Target.supervised(model, "bernoulli", (x[rows], Y[rows] > 2))
            for name, rows in (("a", [0, 2]), ("b", [1, 3]))
        }
        posteriors = fit_shards(targets, prior)
        merged = bm.merge(posteriors, [1.0, 1.0], prior=prior)
        bm.preview(
            posteriors,
            bm.simplex_grid(2, 0.5),
            lambda w: jnp.sum(w**2),
            prior,
            refine=bm.previews.Refinement(targets),
            progress=False,
        )
        left = bm.remove(merged, posteriors["b"] / prior).mode()
    np.testing.assert_allclose(left, posteriors["a"].mode(), rtol=1e-4)
