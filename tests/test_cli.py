"""`bayesmerge preview`, as it is typed."""

import csv
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import bayesmerge as bm
from bayesmerge.cli import app, commands

METRICS = """
import jax.numpy as jnp
import numpy as np

EXAMPLES = 3

def near(params):
    return -jnp.sum((params["w"] - jnp.array([0.25, 0.0])) ** 2)

def loss(params):
    return {"first": (params["w"][0] - 0.5) ** 2, "[red]": params["w"][0]}

def plain(params):
    return float(np.sum(np.asarray(params["w"])))

def fails(params):
    return params["weights"]

def vector(params):
    return params["w"]

def nan(params):
    return jnp.nan * params["w"][0]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with posteriors of three tasks and a module of metrics."""
    corners = {"a": [0.0, 0.0], "b [red]": [1.0, 0.0], "ü": [0.0, 1.0]}
    posteriors = {
        name: bm.DiagonalGaussian.from_mean_precision(
            {"w": jnp.array(x, jnp.float32)}, {"w": jnp.ones(2, jnp.float32)}
        )
        for name, x in corners.items()
    }
    bm.checkpoints.save(tmp_path / "q.safetensors", posteriors)
    (tmp_path / "mymetric.py").write_text(METRICS)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with jax.enable_x64(False):
        yield tmp_path


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch):
    for module in ("mymetric", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def run(*arguments):
    result = CliRunner().invoke(app, ["preview", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.replace("│", " ").split()), result.exception


def test_the_table(folder):
    code, output, _ = run("q.safetensors", "mymetric:near", "--spacing", "0.25")
    assert code == 0
    assert "Best of 15 weightings (higher is better)" in output
    assert "weight of a 0.75" in output
    assert "weight of b [red] 0.25" in output
    assert "weight of ü 0" in output
    assert "near" in output


def test_every_output(folder):
    names = ["p.nc", "p.csv", "p.svg", "p.png", "p.pdf", "p.html"]
    options = [part for name in reversed(names) for part in ("--output", name)]
    code, output, _ = run(
        "q.safetensors", "mymetric:loss", "--spacing", "0.25", "--lower-is-better", *options
    )
    assert code == 0
    assert "(lower is better)" in output
    assert "mean" in output
    assert all(f"Written: {name}" in output for name in names)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith((".", "p."))) == sorted(
        names
    )
    with open("p.csv", encoding="utf-8", newline="") as file:
        table = [*csv.DictReader(file)]
    assert [*table[0]][:3] == ["weight of a", "weight of b [red]", "weight of ü"]
    weights = np.array([[float(x) for x in [*row.values()][:3]] for row in table])
    assert np.array_equal(weights, bm.simplex_grid(3, 0.25))
    first = np.array([float(row["first"]) for row in table])
    np.testing.assert_allclose(first, (weights[:, 1] - 0.5) ** 2, atol=1e-6)
    stored = bm.Preview.load("p.nc")
    assert stored.tasks == ("a", "b [red]", "ü")
    assert not stored.higher_is_better
    np.testing.assert_array_equal(stored.metrics["first"], first)
    assert "<html" in (folder / "p.html").read_text(encoding="utf-8")


def test_metrics_of_numpy(folder):
    code, output, _ = run("q.safetensors", "mymetric:plain", "--spacing", "0.5")
    assert code == 2
    assert "--uncompiled" in output
    assert "mymetric.py, line 14" in output
    code, output, _ = run("q.safetensors", "mymetric:plain", "--spacing", "0.5", "--uncompiled")
    assert code == 0, output


def test_a_metric_that_is_never_a_number(folder):
    arguments = "q.safetensors", "mymetric:nan", "--spacing", "0.5"
    code, output, _ = run(*arguments, "--output", "p.png", "--output", "p.csv")
    assert code == 1
    assert "Warning: metric 'nan' is NaN at 6 of 6 weightings" in output
    assert "Written: p.csv" in output
    assert "Not written: p.png: the metric is NaN" in output
    assert not any(p.name.endswith((".part", ".png")) for p in folder.iterdir())


def test_options_reach_the_preview(folder, monkeypatch):
    seen = {}

    def recorded(posteriors, weights, metric, prior=None, **options):
        seen.update(options, tasks=[*posteriors], count=len(weights))
        raise ValueError("that is enough")

    monkeypatch.setattr(commands, "sweep", recorded)
    arguments = "q.safetensors", "mymetric:near", "--modes", "each", "--weightings-at-once", 7
    arguments = *arguments, "--save", "kept.nc"
    code, output, _ = run(*arguments)
    assert code == 2
    assert "that is enough" in output
    assert seen == {
        "higher_is_better": True,
        "modes": bm.previews.Each(),
        "compute": bm.previews.Compute(weightings_at_once=7),
        "save": Path("kept.nc"),
        "tasks": ["a", "b [red]", "ü"],
        "count": 66,
    }


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["none.safetensors", "mymetric:near"], ["POSTERIORS", "there is no such file"]),
        (["mymetric.py", "mymetric:near"], ["POSTERIORS", "is no file of posteriors"]),
        (["q.safetensors", "near"], ["METRIC", "must be module:function"]),
        (["q.safetensors", "none:near"], ["METRIC", "No module named 'none'", "looked for in"]),
        (["q.safetensors", "mymetric.py:near"], ["METRIC", "the module is mymetric"]),
        (["q.safetensors", "broken:near"], ["METRIC", "no_such_package", "broken.py, line 1"]),
        (["q.safetensors", "mymetric:far"], ["METRIC", "there is no function 'far'"]),
        (["q.safetensors", "mymetric:EXAMPLES"], ["METRIC", "there is no function 'EXAMPLES'"]),
        (
            ["q.safetensors", "mymetric:fails"],
            ["METRIC", "mymetric:fails failed: KeyError: 'weights'", "['w'] (2,)"],
        ),
        (["q.safetensors", "mymetric:vector"], ["'vector' has shape (2,)", "must be a scalar"]),
        (["q.safetensors", "mymetric:near", "--spacing", "0.3"], ["--spacing", "must divide 1"]),
        (["q.safetensors", "mymetric:near", "--spacing", "1e-5"], ["--spacing", "weightings of 3"]),
        (["q.safetensors", "mymetric:near", "--modes", "line"], ["modes=Line()", "FullGaussian"]),
        (["q.safetensors", "mymetric:near", "--modes", "best"], ["--modes"]),
        (["q.safetensors", "mymetric:near", "--batch-size", "0"], ["--batch-size"]),
    ],
)
def test_bad_input(folder, arguments, messages):
    code, output, error = run(*arguments)
    assert code == 2, (output, error)
    assert all(message in output for message in messages), output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/p.csv", "there is no folder"),
        ("p.xlsx", "must end in one of"),
        ("folder.csv", "cannot be written"),
        ("p.html", "needs plotly"),
    ],
)
def test_outputs_are_verified_before_the_sweep(folder, monkeypatch, output, message):
    def too_early(*_, **__):
        raise AssertionError("the sweep has started")

    (folder / "folder.csv").mkdir()
    monkeypatch.setattr(commands, "sweep", too_early)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, said, _ = run("q.safetensors", "mymetric:near", "--output", "p.nc", "--output", output)
    assert code == 2
    assert "--output" in said
    assert message in said


def test_float64_posteriors_are_rounded_aloud(folder):
    with jax.enable_x64(True):
        q = bm.IsotropicGaussian.from_mean_precision({"w": jnp.zeros(2)}, 1.0)
        bm.checkpoints.save("wide.safetensors", {"a": q})
    code, output, _ = run("wide.safetensors", "mymetric:near", "--spacing", "1")
    assert code == 0
    assert "Warning: 'wide.safetensors' holds float64" in output
    assert "JAX_ENABLE_X64=1" in output
