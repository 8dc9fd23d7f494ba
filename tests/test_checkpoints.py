"""Posteriors on disk: what is loaded is what was saved, and what cannot be is refused."""

import ast
import collections
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import bayesmerge as bm
from bayesmerge.checkpoints import load, save
from bayesmerge.families import Layout, ScalarPrecision


def same(p, q):
    """Equal in class, layout, structure, dtypes and every bit."""
    assert type(p) is type(q)
    assert p.layout == q.layout
    assert jax.tree.structure(p) == jax.tree.structure(q)
    for x, y in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True)
    return True


def isotropic(theta, precision=2.0):
    return bm.IsotropicGaussian.from_mean_precision(theta, precision)


def there_and_back(folder, posteriors, prior=None):
    save(folder / "q.safetensors", posteriors, prior)
    return load(folder / "q.safetensors")


@pytest.fixture
def file(tmp_path):
    save(tmp_path / "q.safetensors", {"a": isotropic({"w": jnp.array([1.0, 2.0])})})
    return tmp_path / "q.safetensors"


def rewritten(path, change):
    """The file with other metadata."""
    with safe_open(path, framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        structure = json.loads(file.metadata()["bayesmerge.posteriors"])
    change(structure)
    save_file(arrays, path, {"bayesmerge.posteriors": json.dumps(structure)})


@pytest.mark.parametrize("case", FAMILIES, ids=repr)
def test_every_family(case, tmp_path):
    rng = np.random.default_rng(0)
    q, other, prior = (case.make(rng) for _ in range(3))
    batch = jax.tree.map(lambda *x: np.stack(x), q, other)
    saved = there_and_back(tmp_path, {"one": q, "improper": q / other**3, "batch": batch}, prior)
    assert list(saved.posteriors) == ["one", "improper", "batch"]
    assert same(saved.posteriors["one"], q)
    assert same(saved.posteriors["improper"], q / other**3)
    assert same(saved.posteriors["batch"], jax.tree.map(jnp.asarray, batch))
    assert same(saved.prior, prior)


@pytest.mark.parametrize("case", [FAMILIES[1], FAMILIES[3]], ids=repr)
def test_mixtures(case, tmp_path):
    rng = np.random.default_rng(1)
    mixture = bm.Mixture([0.3, 0.7], [case.make(rng) for _ in range(2)])
    assert same(there_and_back(tmp_path, {"both": mixture}).posteriors["both"], mixture)


leaves = st.sampled_from(["float32", "float64"]).flatmap(
    lambda dtype: st.sampled_from([(), (1,), (2, 3), (0,)]).map(
        lambda shape: np.full(shape, 0.1, dtype)
    )
)
keys = st.text(max_size=3) | st.just("']/[\"")
nested = st.recursive(
    leaves | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=20)
@given(
    theta=nested.filter(lambda tree: sum(x.size for x in jax.tree.leaves(tree)) > 0),
    names=st.lists(st.text(max_size=4), min_size=1, max_size=3, unique=True),
)
def test_any_parameters_and_any_names(theta, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    precision = np.asarray(2.0, jnp.result_type(*jax.tree.leaves(theta)))
    layout = Layout.of(theta)
    posterior = bm.IsotropicGaussian(
        jax.tree.map(jnp.asarray, theta), ScalarPrecision(jnp.asarray(precision), layout)
    )
    saved = there_and_back(folder, dict.fromkeys(names, posterior), posterior)
    assert list(saved.posteriors) == names
    assert all(same(q, posterior) for q in (*saved.posteriors.values(), saved.prior))
    assert jax.tree.structure(saved.prior.linear) == jax.tree.structure(theta)


def test_loaded_posteriors_combine_with_fresh_ones(tmp_path):
    rng = np.random.default_rng(2)
    p, q = FAMILIES[2].make(rng), FAMILIES[1].make(rng)
    saved = there_and_back(tmp_path, {"a": p}).posteriors["a"]
    same(saved * q, p * q)
    same(bm.merge([saved, q], [0.5, 0.5]), bm.merge([p, q], [0.5, 0.5]))


def test_keys_are_read_as_python(file):
    with safe_open(file, framework="numpy") as opened:
        assert set(opened.keys()) == {
            'posteriors["a"].linear["w"]',
            'posteriors["a"].precision.value',
        }


def test_others_may_read_the_file(file, tmp_path):
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_float64_is_rounded_aloud_where_jax_has_float32(file):
    with jax.enable_x64(False):
        with pytest.warns(UserWarning, match="jax_enable_x64"):
            saved = load(file).posteriors["a"]
        fresh = isotropic({"w": jnp.array([1.0, 2.0])})
        assert same(saved, fresh)
        assert (saved * fresh).mode()["w"].dtype == jnp.float32


def test_float32_stays_float32_where_jax_has_float64(tmp_path):
    with jax.enable_x64(False):
        mixture = bm.Mixture([0.1, 0.9], [isotropic(jnp.array(x)) for x in (0.0, 1.0)])
        save(tmp_path / "q.safetensors", {"a": mixture})
    assert same(load(tmp_path / "q.safetensors").posteriors["a"], mixture)


class Params(NamedTuple):
    w: jax.Array


@pytest.mark.parametrize(
    ("theta", "container"),
    [
        ({"layer": Params(jnp.ones(2))}, "Params"),
        ([collections.OrderedDict(w=jnp.ones(2))], "OrderedDict"),
        ({True: jnp.ones(2)}, "dict"),
    ],
)
def test_other_containers_need_something_like_them(theta, container, tmp_path):
    q = isotropic(theta)
    save(tmp_path / "q.safetensors", {"a": q})
    with pytest.raises(
        ValueError,
        match=rf"parameters in a [\w.]+\.{container}, and a file holds no classes.*like=model",
    ):
        load(tmp_path / "q.safetensors")
    for like in (theta, q, jax.eval_shape(lambda: theta)):
        assert same(load(tmp_path / "q.safetensors", like).posteriors["a"], q)


def test_what_cannot_be_saved_is_refused(tmp_path):
    q = isotropic(jnp.array(1.0))
    path = tmp_path / "q.safetensors"
    mixture = bm.Mixture([1.0], [q])
    with pytest.raises(TypeError, match=r'posteriors\["a"\] is a Product.*factors'):
        save(path, {"a": mixture * mixture})
    with pytest.raises(TypeError, match=r"prior is a dict"):
        save(path, {"a": q}, {"w": 1.0})
    with pytest.raises(TypeError, match=r"dtype bfloat16"):
        save(path, {"a": jax.tree.map(lambda x: x.astype(jnp.bfloat16), q)})
    with pytest.raises(ValueError, match="one name as text"):
        save(path, {1: q, "1": q})
    with pytest.raises(ValueError, match="not valid Unicode"):
        save(path, {"\ud800": q})
    with pytest.raises(ValueError, match="empty"):
        save(path, {})
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save(tmp_path / "q.npz", {"a": q})
    with pytest.raises(ValueError, match="there is no folder"):
        save(tmp_path / "nowhere" / "q.safetensors", {"a": q})
    assert not any(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_file(file, monkeypatch):
    def interrupted(arrays, path, metadata):
        path.write_text("half")
        raise KeyboardInterrupt

    before = file.read_bytes()
    monkeypatch.setattr("safetensors.numpy.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(file, {"b": isotropic(jnp.array(1.0))})
    assert [*file.parent.iterdir()] == [file]
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not safetensors", b"\xff" * 64])
def test_files_of_another_kind(content, tmp_path):
    path = tmp_path / "q.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no file of posteriors, or a damaged one"):
        load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load(tmp_path / "q.safetensors")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(kept, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="damaged"):
        load(file)


def test_bare_parameters_are_told_apart(tmp_path):
    save_file({"w": np.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"not written by `bayesmerge\.checkpoints\.save`"):
        load(tmp_path / "model.safetensors")


def test_a_newer_version(file):
    rewritten(file, lambda structure: structure.update(version=3))
    with pytest.raises(ValueError, match=r"version 3 .* needs a newer bayesmerge"):
        load(file)


def in_theta(content):
    return lambda structure: structure["tasks"][0]["posterior"].update(theta=content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["tasks"][0]["posterior"].update(family="os.system"), "family 'os.system'"),
        (lambda s: s["tasks"][0]["posterior"].update(family="FullGaussian"), "precision"),
        (lambda s: s["tasks"][0].update(name="b"), "b"),
        (lambda s: s.pop("tasks"), "tasks"),
        (lambda s: s.update(version="one"), "not supported"),
        (in_theta({"dict": [["w", {"shape": [3], "dtype": "float64"}]]}), "has shapes"),
        (in_theta({"dict": [["w", {"shape": [2], "dtype": "int32"}]]}), "floating point"),
        (in_theta({"dict": [["w", {"shape": [2], "dtype": "object"}]]}), "object"),
        (in_theta({"eval": []}), "eval"),
        (in_theta(None), "no leaves"),
        (in_theta([]), "list"),
    ],
)
def test_structures_that_do_not_fit(change, message, file):
    rewritten(file, change)
    with pytest.raises(ValueError, match=f"(?s)damaged one.*{message}"):
        load(file)


def test_safetensors_is_imported_where_it_is_used():
    for path in Path(bm.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "safetensors" not in ast.unparse(node)
