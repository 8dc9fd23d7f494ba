"""Files and executors: many writers, full disks, odd names, other kinds, changed functions."""

import collections
import concurrent.futures
import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from typer.testing import CliRunner

import bayesmerge as bm
from bayesmerge import files
from bayesmerge.checkpoints import load, save
from bayesmerge.cli import app
from bayesmerge.fingerprint import CODE, PYTHON, STATE, differences, fingerprint, settled
from bayesmerge.fit import VON, Tilted, run
from bayesmerge.previews import Compute, Uncompiled, record
from bayesmerge.previews.executors import usable
from bayesmerge.previews.explorer import explore

ROOT = Path(bm.__file__).parents[1]
WEIGHTS = bm.simplex_grid(2, 0.25)
QUIET = {"progress": False}


def gaussian(mean):
    return bm.IsotropicGaussian.from_mean_precision(mean, 2.0)


@pytest.fixture(scope="module")
def two():
    with jax.enable_x64(True):
        return {"a": gaussian(jnp.zeros(2)), "b": gaussian(jnp.ones(2))}


def seen(metrics=("loss",), tasks=("a", "b")):
    return bm.Preview({m: np.arange(5.0) for m in metrics}, WEIGHTS, tasks)


# Files


WRITER = """
import sys
from bayesmerge.files import whole
for i in range(60):
    with whole(sys.argv[1]) as unfinished:
        unfinished.write_bytes(sys.argv[2].encode() * 100_000)
"""


@pytest.fixture(scope="module")
def written_by_many(tmp_path_factory):
    """A file that two processes and two threads write at once, and what was read meanwhile."""
    path = tmp_path_factory.mktemp("many") / "page.html"
    path.write_bytes(b"0" * 100_000)
    command = [sys.executable, "-c", WRITER, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([*command, c], env=environment) for c in "ab"]
    reads, errors = [], []

    def write(content):
        try:
            for _ in range(60):
                with files.whole(path) as unfinished:
                    unfinished.write_bytes(content * 100_000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(c,)) for c in (b"c", b"d")]
    for thread in threads:
        thread.start()
    while any(p.poll() is None for p in processes) or any(t.is_alive() for t in threads):
        reads.append(path.read_bytes())
        time.sleep(0.01)
    return path, reads, errors, [p.returncode for p in processes]


def test_many_writers_of_one_file(written_by_many):
    path, reads, errors, codes = written_by_many
    assert errors == []
    assert codes == [0, 0]
    assert all(x == x[:1] * 100_000 for x in reads)
    assert len({x[0] for x in reads}) > 2
    assert [*path.parent.iterdir()] == [path]


def test_every_saver_at_once(tmp_path, two):
    def all_kinds(i):
        for _ in range(3):
            save(tmp_path / "q.safetensors", two)
            seen().save(tmp_path / "p.nc")
            explore({"a": seen()}, tmp_path / "p.html")
            bm.Preview.load(tmp_path / "p.nc")
            with jax.enable_x64(True):
                load(tmp_path / "q.safetensors")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(all_kinds, range(4)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.html", "p.nc", "q.safetensors"]


@pytest.mark.parametrize("characters", [250, 251])
def test_the_longest_names(characters, tmp_path, two, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x" * (characters - 8) + ".nc", "ü" * (characters // 2 - 1) + ".nc"):
        seen().save(name)
        assert bm.Preview.load(name).tasks == ("a", "b")
    name = "x" * (255 - len(".safetensors")) + ".safetensors"
    save(name, two)
    assert [*load(name).posteriors] == ["a", "b"]
    with pytest.raises(OSError, match=r"too long.*x\.nc"):
        seen().save("x" * 253 + ".nc")


def test_permissions_and_links_stay(tmp_path):
    path, link = tmp_path / "p.nc", tmp_path / "link.nc"
    seen().save(path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    link.symlink_to("p.nc")
    seen(("other",)).save(link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert [*bm.Preview.load(path).metrics] == ["other"]
    dangling = tmp_path / "dangling.nc"
    dangling.symlink_to(tmp_path / "later.nc")
    seen().save(dangling)
    assert (tmp_path / "later.nc").is_file()


def test_paths_that_cannot_be_written_are_named(tmp_path, two, monkeypatch):
    path = tmp_path / "p.nc"
    seen().save(path)
    for bad, kind, message in [
        (tmp_path / "no" / "p.nc", ValueError, "there is no folder"),
        ("~/no/p.nc", ValueError, "expanduser"),
        (path / "p.nc", ValueError, "there is no folder"),
    ]:
        with pytest.raises(kind, match=message):
            seen().save(bad)
    with pytest.raises(TypeError, match="path is a int"):
        files.writable(7, (".nc",))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"write-protected.*p\.nc"):
        seen().save(path)
    with pytest.raises(PermissionError, match=r"no permission to read"):
        bm.Preview.load(path)
    monkeypatch.undo()

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    calls = []
    with pytest.raises(PermissionError, match=r"Permission denied.*new\.nc"):
        bm.preview(two, WEIGHTS, Uncompiled(calls.append), save=tmp_path / "new.nc", **QUIET)
    assert not calls


FULL_DISK = """
import json, resource, sys, warnings
from pathlib import Path
import jax.numpy as jnp, numpy as np, bayesmerge as bm
from bayesmerge.cli.outputs import _draw
from bayesmerge.files import whole
from bayesmerge.fit.run import Checkpoint, State
from bayesmerge.previews.explorer import explore

def save(path):
    q = bm.IsotropicGaussian.from_mean_precision(jnp.ones(10_000), 1.0)
    bm.checkpoints.save(path, {"a": q})

def save_preview(path):
    bm.Preview({"loss": np.arange(10_000.0)}, np.ones((10_000, 1)), ("a",)).save(path)

def save_page(path):
    explore({"a": bm.Preview({"loss": np.arange(3.0)}, bm.simplex_grid(2, 0.5), ("a", "b"))}, path)

def save_figure(path):
    seen = bm.Preview({"loss": np.arange(3.0)}, bm.simplex_grid(2, 0.5), ("a", "b"))
    with whole(path) as unfinished:
        _draw(seen, unfinished, ".png")

def save_fit(path):
    state = State(jnp.array(1), jnp.zeros(2), jnp.ones(10_000))
    Checkpoint(path, {}).save(state, [{"loss": np.zeros(1)}])

savers = {
    "q.safetensors": save,
    "p.nc": save_preview,
    "p.html": save_page,
    "p.png": save_figure,
    "f.npz": save_fit,
}
folder = Path(sys.argv[1])
for name in savers:
    (folder / name).write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, 8_192))
found = {}
for name, write in savers.items():
    try:
        write(folder / name)
    except OSError as error:
        found[name] = error.errno, error.filename, str(error), (folder / name).read_text()
q = {"a": bm.IsotropicGaussian.from_mean_precision(jnp.zeros(2), 1.0)}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", UserWarning)
    values = bm.preview(
        q, np.ones((3_000, 1)), lambda t: t[0], save=folder / "sweep.nc", progress=False
    ).values()
found["sweep"] = [str(w.message) for w in said if w.category is UserWarning], len(values)
print(json.dumps(found))
"""


def test_a_full_disk_is_one_error_and_leaves_the_old_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    (warning,), count = found.pop("sweep")
    assert re.search(r"the preview goes on and is not saved: .*sweep\.nc", warning)
    assert count == 3_000
    assert sorted(found) == ["f.npz", "p.html", "p.nc", "p.png", "q.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(found)
    for name, (number, filename, text, content) in found.items():
        assert number == errno.EFBIG
        assert filename == str(tmp_path / name)
        assert "Nothing was written. Free space" in text
        assert content == "old"


CONTENTS = {
    "is a zip archive": b"PK\x03\x04 torch",
    "is a pickle, which can run any code": pickle.dumps({"w": 1}),
    "numpy.save": b"\x93NUMPY\x01\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 32,
    "gzip": b"\x1f\x8b\x08\x00" + b"\0" * 32,
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\n",
    "web page": b"<!DOCTYPE html>",
    "it is empty": b"",
}


@pytest.mark.parametrize(("message", "content"), CONTENTS.items())
def test_files_of_other_kinds_are_named(message, content, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    for read in (load, bm.Preview.load):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "model.bin")


def test_our_own_files_are_told_apart(tmp_path, two):
    save(tmp_path / "q.safetensors", two)
    seen().save(tmp_path / "p.nc")
    with pytest.raises(ValueError, match=r"netCDF 3; `bayesmerge\.Preview\.load`"):
        load(tmp_path / "p.nc")
    with pytest.raises(ValueError, match=r"safetensors; `bayesmerge\.checkpoints\.load`"):
        bm.Preview.load(tmp_path / "q.safetensors")
    for read in (load, bm.Preview.load):
        with pytest.raises(IsADirectoryError, match="that is a folder"):
            read(tmp_path)
        with pytest.raises(FileNotFoundError, match="there is no such file in"):
            read(tmp_path / "none.nc")


def test_a_preview_of_a_later_version(tmp_path, monkeypatch):
    monkeypatch.setattr("bayesmerge.previews.file.FORMAT", 2)
    seen().save(tmp_path / "p.nc")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"version 2 .* needs a newer bayesmerge"):
        bm.Preview.load(tmp_path / "p.nc")


def test_names_come_back_or_are_refused(tmp_path, two):
    path = tmp_path / "p.nc"
    for tasks in (("a ", ""), ("$x$", "_b\n"), ("a\0b", "ü" * 300)):
        seen(tasks, tasks).save(path)
        again = bm.Preview.load(path)
        assert again.tasks == tuple(again.metrics) == tasks
    for name in ("a\0", "\ud800"):
        with pytest.raises(ValueError, match="cannot be kept in a file"):
            seen(tasks=(name, "b")).save(path)
        with pytest.raises(ValueError, match="cannot be kept in a file"):
            bm.preview(two, WEIGHTS, lambda t, n=name: {n: t[0]}, save=tmp_path / "q.nc", **QUIET)


# Posteriors over any containers


class Net(eqx.Module):
    layers: list
    act: object = eqx.field(static=True, default=jax.nn.relu)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Plain:
    w: object
    b: object


class State(MutableMapping):
    """As `flax.nnx.State`: a mapping, registered with keys."""

    def __init__(self, content):
        self.content = dict(content)

    def __getitem__(self, key):
        return self.content[key]

    def __setitem__(self, key, value):
        self.content[key] = value

    def __delitem__(self, key):
        del self.content[key]

    def __iter__(self):
        return iter(self.content)

    def __len__(self):
        return len(self.content)


jax.tree_util.register_pytree_with_keys(
    State,
    lambda s: ([(jax.tree_util.DictKey(k), s[k]) for k in sorted(s)], tuple(sorted(s))),
    lambda keys, children: State(zip(keys, children, strict=True)),
)


class Bare:
    def __init__(self, *parts):
        self.parts = parts


jax.tree_util.register_pytree_node(Bare, lambda b: (b.parts, None), lambda _, parts: Bare(*parts))
Point = collections.namedtuple("Point", "x y")
W, B = jnp.ones((2, 3)), jnp.zeros(())
THETAS = {
    "module": Net([{"w": W, "b": None}, (B,)]),
    "dataclass": Plain(W, [B, None]),
    "state": State({"layer": State({"kernel": W}), "bias": B}),
    "without keys": Bare(W, Bare(B, B)),
    "named tuple": {"p": Point(W, Point(B, None))},
    "ordered": collections.OrderedDict(z=W, a=B),
    "default dict": collections.defaultdict(list, {"z": W, "a": B}),
    "tuples for keys": {("a", 1): W, ("a", 2): B},
    "dots and slashes": {"a.b": W, "a/b": B, "a": {"b": B}, "ü\n": B},
    "text and numbers": [{"1": W}, {1: B}],
}


@pytest.mark.parametrize("name", THETAS)
def test_any_containers_are_saved_and_restored(name, tmp_path):
    theta, path = THETAS[name], tmp_path / "q.safetensors"
    ones = jax.tree.map(jnp.ones_like, theta)
    q = bm.DiagonalGaussian.from_mean_precision(theta, ones)
    batch = jax.tree.map(lambda *x: jnp.stack(x), q, q)
    save(path, {"a": q, "batch": batch}, gaussian(theta))
    other = jax.tree.map(lambda x: x + 5, theta)
    for like in (other, q, jax.eval_shape(lambda: other)):
        found = load(path, like)
        assert found.posteriors["a"].layout == q.layout
        jax.tree.map(np.testing.assert_array_equal, found.posteriors["a"], q)
        jax.tree.map(np.testing.assert_array_equal, found.posteriors["batch"], batch)
        assert (found.posteriors["a"] * found.prior / q).layout == q.layout
    if name not in ("dots and slashes", "text and numbers"):
        kind = type(theta["p"] if name == "named tuple" else theta).__name__
        with pytest.raises(ValueError, match=rf"in a [\w.]*{kind}, and .*like=model"):
            load(path)
    else:
        assert load(path).posteriors["a"].layout == q.layout


def test_whole_models_serve_as_like(tmp_path):
    shapes = eqx.filter_eval_shape(eqx.nn.MLP, 2, 1, 3, 1, key=jax.random.key(0))
    model = jax.tree.map(lambda x: jnp.ones(x.shape) if hasattr(x, "shape") else x, shapes)
    theta = eqx.filter(model, eqx.is_inexact_array)
    save(tmp_path / "q.safetensors", {"a": gaussian(theta)})
    q = load(tmp_path / "q.safetensors", model).posteriors["a"]
    assert q.layout == bm.families.Layout.of(theta)
    assert isinstance(q.mode(), eqx.nn.MLP)


def test_what_is_not_like_it_is_named(tmp_path):
    path = tmp_path / "q.safetensors"
    save(path, {"a": gaussian(THETAS["module"])})
    for like, message in [
        (
            Net([{"w": W, "b": None}, (jnp.ones(3),)]),
            r"layers\[1\]\[0\]' has shape \(\) in it, and",
        ),
        (
            Net([{"w": W, "b": B}, (B,)]),
            r"like has a leaf '\.layers\[0\]\[\"b\"\]', and it has none",
        ),
        (Plain(W, B), r"it has a leaf '\.layers\[0\]\[\"w\"\]', and like has none"),
        ({"w": W}, "is not as `like`"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(path, like)


def test_leaves_of_one_name_are_refused(tmp_path):
    class Twins(Bare):
        pass

    key = jax.tree_util.GetAttrKey("w")
    jax.tree_util.register_pytree_with_keys(
        Twins, lambda t: ([(key, x) for x in t.parts], None), lambda _, parts: Twins(*parts)
    )
    with pytest.raises(
        ValueError, match=r"two leaves of θ are named posteriors\[\"a\"\]\.linear\.w"
    ):
        save(tmp_path / "q.safetensors", {"a": gaussian(Twins(B, B))})
    assert not any(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_named(tmp_path, two):
    bad = eqx.tree_at(lambda q: q.linear, two["b"], jnp.array([jnp.nan, jnp.inf]))
    path = tmp_path / "q.safetensors"
    with pytest.raises(ValueError, match=r'posteriors\["b"\]\.linear must be finite'):
        save(path, two | {"b": bad})
    assert not path.exists()
    save(path, two)
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        arrays = {n: np.full_like(x, np.nan) if "linear" in n else x for n, x in arrays.items()}
        save_file(arrays, path, metadata=file.metadata())
    with pytest.raises(ValueError, match=r"q\.safetensors.*linear must be finite"):
        load(path)
    mixture = bm.Mixture([0.0, 1.0], [two["a"], two["b"]])
    save(tmp_path / "m.safetensors", {"a": mixture})
    assert load(tmp_path / "m.safetensors").posteriors["a"].log_weights[0] == -jnp.inf


def test_exact_priors_are_refused_with_what_to_save(tmp_path, two):
    prior = bm.ExactPrior(jnp.sum, two["a"].mode())
    tilted = Tilted(two["a"], prior, two["b"])
    with pytest.raises(TypeError, match=r"Tilted.*`factor` and `near`"):
        save(tmp_path / "q.safetensors", {"a": tilted})
    with pytest.raises(TypeError, match=r"prior is a ExactPrior.*pass it to `merge`"):
        save(tmp_path / "q.safetensors", two, prior)


def test_big_endian_arrays_are_kept_in_value(tmp_path):
    q = gaussian(jnp.array([1.0, 2.0]))
    swapped = eqx.tree_at(lambda q: q.linear, q, np.array([2.0, 4.0], ">f8"))
    save(tmp_path / "q.safetensors", {"a": swapped})
    np.testing.assert_array_equal(load(tmp_path / "q.safetensors").posteriors["a"].linear, [2, 4])


# What a resumed sweep notices


def with_bias(x):
    return lambda theta: theta[0] + x


SCALE = 1.0
TABLE = {"x": np.ones(3)}


def scaled(theta):
    return SCALE * theta[0] + helper(theta)


def helper(theta):
    return TABLE["x"][0] * theta[1]


@dataclasses.dataclass
class Accuracy:
    k: int

    def __call__(self, theta):
        return self.k * theta[0]


def changed(before, after):
    return differences(fingerprint(metric=before), fingerprint(metric=after))


def test_changed_functions_are_noticed(monkeypatch):
    inner = "with_bias.<locals>.<lambda>"
    (code,) = changed(lambda t: t[0], lambda t: t[1])
    assert code.startswith(f"{CODE}test_changed_functions")
    assert changed(with_bias(np.ones(2)), with_bias(np.ones(2))) == []
    assert changed(with_bias(np.ones(2)), with_bias(np.zeros(2))) == [f"x in {inner}"]
    assert changed(functools.partial(pow, 2), functools.partial(pow, 3)) == ["metric"]
    assert changed(Accuracy(1), Accuracy(5)) == ["metric"]
    for wrapped in (jax.jit, jax.vmap, eqx.filter_jit, jax.tree_util.Partial):
        assert changed(wrapped(with_bias(1.0)), wrapped(with_bias(1.0))) == []
        assert f"x in {inner}" in changed(wrapped(with_bias(1.0)), wrapped(with_bias(2.0)))
    assert changed(optax.adam(0.1), optax.adam(0.1)) == []
    assert changed(optax.adam(0.1), optax.adam(0.2))
    before = fingerprint(metric=scaled)
    monkeypatch.setitem(TABLE, "x", np.zeros(3))
    assert differences(before, fingerprint(metric=scaled)) == ["TABLE in helper"]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    now = differences(before, fingerprint(metric=scaled))
    assert sorted(now) == ["SCALE in scaled", "TABLE in helper"]


def test_structure_and_pairing_are_noticed():
    x, y = jnp.ones(2), jnp.zeros(2)
    beta, gamma = bm.Beta.from_concentrations(x, x), bm.Gamma.from_shape_rate(x, x)
    assert changed(beta, gamma)
    assert changed(gaussian({"w": x, "b": y}), gaussian({"v": x, "b": y}))
    one, other = with_bias(1.0), with_bias(2.0)
    assert changed([one, other, one], [one, other, other])
    assert changed([one, one], [with_bias(1.0), with_bias(1.0)]) == []
    assert changed({"a": x, "b": y}, {"a": y, "b": x})
    cycle = []
    cycle.append(cycle)
    assert changed(cycle, cycle) == []


def test_what_changes_by_itself_is_not_compared():
    calls = []

    def metric(theta):
        calls.append(1)

    before = fingerprint(metric=metric)
    metric(0)
    first = settled(before, fingerprint(metric=metric))
    assert [name for name, seen in first.items() if seen == STATE] == [
        f"calls in {metric.__qualname__}"
    ]
    metric(0)
    assert differences(first, fingerprint(metric=metric)) == []


def test_code_of_another_python_is_not_compared():
    now = fingerprint(metric=scaled)
    code = [name for name in now if name.startswith((PYTHON, CODE))]
    assert len(code) == 3
    assert differences(now | dict.fromkeys(code, "old"), now) == []
    assert differences(now | dict.fromkeys(code[1:], "old"), now) == code[1:]


def test_a_sweep_is_not_resumed_with_other_data(tmp_path, two):
    options = {"save": tmp_path / "p.nc", **QUIET}
    calls = []

    def metric_on(x):
        def metric(theta):
            calls.append(1)
            return x @ np.asarray(theta)

        return Uncompiled(metric)

    first = bm.preview(two, WEIGHTS, metric_on(np.ones(2)), **options)
    again = bm.preview(two, WEIGHTS, metric_on(np.ones(2)), **options)
    assert len(calls) == len(WEIGHTS)
    np.testing.assert_array_equal(first.values(), again.values())
    with pytest.raises(ValueError, match=r"another preview: .*\(x in .*metric\)"):
        bm.preview(two, WEIGHTS, metric_on(np.zeros(2)), **options)
    with pytest.raises(ValueError, match=r"another preview: .*\(prior\)"):
        bm.preview(two, WEIGHTS, metric_on(np.ones(2)), two["a"], **options)
    with pytest.raises(ValueError, match=r"another preview: .*\(higher_is_better\)"):
        bm.preview(two, WEIGHTS, metric_on(np.ones(2)), higher_is_better=False, **options)
    kept = record.read(tmp_path / "p.nc")
    other = json.loads(kept.fingerprint) | {PYTHON: "another"}
    record.write(kept._replace(fingerprint=json.dumps(other)), tmp_path / "p.nc")
    with pytest.warns(UserWarning, match="another version of Python"):
        bm.preview(two, WEIGHTS, metric_on(np.ones(2)), **options)


def squared(theta, y):
    return 0.5 * jnp.sum((theta[None] - y[:, None]) ** 2, axis=1)


def halved(theta, y):
    return 0.25 * jnp.sum((theta[None] - y[:, None]) ** 2, axis=1)


def test_a_fit_is_not_resumed_with_another_loss(tmp_path, two):
    method = VON(prior=None, curvature="hessian", step_size=0.5, num_samples=2)
    first, second = (bm.FullGaussian.from_mean_precision(q.mode(), np.eye(2)) for q in two.values())
    options = {"num_steps": 1, "key": jax.random.key(0), "progress": False}
    options["checkpoint"] = tmp_path / "fit.npz"
    run(method, bm.Target(squared, jnp.ones(2)), first, **options)
    for target, start, message in [
        (bm.Target(halved, jnp.ones(2)), first, "the code of squared"),
        (bm.Target(squared, jnp.zeros(2)), first, r"\(data\)"),
        (bm.Target(squared, jnp.ones(2)), second, r"\(start\)"),
    ]:
        with pytest.raises(ValueError, match=rf"is of another fit: .*{message}"):
            run(method, target, start, **options)
    run(method, bm.Target(squared, jnp.ones(2)), first, **options)


def test_metrics_whose_names_are_one_as_text_are_refused(two):
    with pytest.raises(ValueError, match="one name as text"):
        bm.preview(two, WEIGHTS, lambda t: {1: t[0], "1": t[1]}, **QUIET)


# Executors


def spawned():
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def first_entry(theta):
    return float(theta[0])


def exits(theta):
    os._exit(3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_pools_are_refused(two):
    context = multiprocessing.get_context("fork")
    targets = dict.fromkeys(two, bm.Target(squared, jnp.ones(2)))
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        for call, models in ((bm.preview, two), (bm.joint_training, targets)):
            with pytest.raises(ValueError, match=r"fork.*deadlock.*get_context\('spawn'\)"):
                call(models, WEIGHTS, Uncompiled(first_entry), compute=Compute(pool), **QUIET)
    assert not multiprocessing.active_children()


PRELOADED = """
import concurrent.futures, multiprocessing, jax.numpy as jnp
from bayesmerge.previews.executors import usable
STARTED = jnp.ones(3) + 1
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        try:
            usable(pool)
        except ValueError as error:
            print(error)
"""


def test_a_fork_server_that_has_started_jax_is_refused(tmp_path):
    (tmp_path / "preloaded.py").write_text(PRELOADED)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, tmp_path / "preloaded.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "where they would deadlock" in done.stdout


def test_what_is_no_executor_is_named(two):
    not_a_pool = pytest.raises(TypeError, match=r"a ThreadPool, .*not a pool of `multiprocess")
    with multiprocessing.pool.ThreadPool(1) as pool, not_a_pool:
        usable(pool)
    with pytest.raises(TypeError, match="a int, and it must be"):
        usable(2)
    client = type("Client", (), {"submit": None, "get_executor": None})()
    with pytest.raises(TypeError, match=r"get_executor\(\)"):
        usable(client)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert usable(pool) is pool
    with pytest.raises(ValueError, match=r"takes no work.*shut down"):
        bm.preview(two, WEIGHTS, Uncompiled(first_entry), compute=Compute(pool), **QUIET)
    interpreters = getattr(concurrent.futures, "InterpreterPoolExecutor", None)
    if interpreters is not None:
        with interpreters(1) as pool, pytest.raises(ValueError, match="main interpreter"):
            usable(pool)


@pytest.mark.slow
def test_spawned_pools_measure_and_say_what_fails(two, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    with spawned() as pool:
        found = bm.preview(two, WEIGHTS, Uncompiled(first_entry), compute=Compute(pool), **QUIET)
        np.testing.assert_allclose(found.values(), WEIGHTS[:, 1])
        with pytest.raises(TypeError, match=r"cannot be sent to another process.*lambda"):
            bm.preview(two, WEIGHTS, Uncompiled(lambda t: 0.0), compute=Compute(pool), **QUIET)
        with pytest.raises(RuntimeError, match="a worker of the executor ended"):
            bm.preview(two, WEIGHTS, Uncompiled(exits), compute=Compute(pool), **QUIET)
        with pytest.raises(RuntimeError, match="a worker of the executor ended"):
            bm.preview(two, WEIGHTS, Uncompiled(first_entry), compute=Compute(pool), **QUIET)


def test_a_failure_loses_no_result_that_is_done(two, tmp_path):
    path = tmp_path / "p.nc"
    rest = threading.Event()

    def metric(theta):
        if theta[0] == 1.0:
            rest.wait(10)
            raise OSError("broken")
        return theta[0]

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        threading.Timer(0.5, rest.set).start()
        with pytest.raises(OSError, match="broken"):
            bm.preview(two, WEIGHTS, Uncompiled(metric), compute=Compute(pool), save=path, **QUIET)
    with pytest.warns(UserWarning, match="with 4 of 5 weightings"):
        bm.Preview.load(path)


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "m:near"], "that is a folder"),
        (["q.safetensors", "m:near", "--save", "no/p.nc"], "there is no folder"),
        (["q.safetensors", "m:near", "--save", "p.csv"], "must end in .nc"),
        (["q.safetensors", "m:near", "--save", "p.nc", "--output", "./p.nc"], "leave one out"),
        (["q.safetensors", "m:near", "--output", "folder.csv"], "that is a folder"),
        (["model.pt", "m:near"], "is a zip archive"),
    ],
)
def test_the_command_line_says_so_before_the_sweep(arguments, message, tmp_path, two, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bayesmerge.cli.commands.sweep", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "m.py").write_text("def near(theta): return theta[0]")
    save("q.safetensors", two)
    result = CliRunner().invoke(app, ["preview", *arguments])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", " ").split())
