"""The main job on real data, in a reduced setting, and through the command line."""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from bayesmerge import demo
from bayesmerge.cli import app

pytest.importorskip("sklearn")
pytest.importorskip("plotly")


class Run(NamedTuple):
    columns: list[demo.Column]
    output: str
    folder: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`bayesmerge demo`, once."""
    folder, found = tmp_path_factory.mktemp("demo"), []
    own = demo.demo

    def recorded(spacing):
        found.extend(own(spacing))
        return found

    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(False):
        patch.setattr(demo, "demo", recorded)
        options = ["demo", "--spacing", "0.25", "--output", str(folder / "figure.png")]
        result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    return Run(found, result.output, folder)


@pytest.fixture
def columns(run):
    return run.columns


def test_previews_of_digits(columns):
    assert [c.name for c in columns] == [*demo.STRUCTURES, demo.TOWARDS, demo.JOINT]
    joint = columns[-1].surface
    assert joint.best(demo.OVERALL).value > 0.95
    mse = {c.name: c.surface.compare(joint, demo.OVERALL).mse for c in columns}
    assert mse["isotropic"] > mse["diagonal"]
    assert mse["isotropic"] > mse["full"] > 5 * mse[demo.TOWARDS]
    assert mse["joint training"] == 0


def test_corners_are_the_tasks_own_models(columns):
    """At a corner the merged and the joint model are both the task's own."""
    joint = columns[-1].surface
    for column in columns[:-1]:
        for corner in np.eye(3):
            (row,) = np.flatnonzero((joint.weights == corner).all(1))
            for metric, values in column.surface.metrics.items():
                assert abs(values[row] - joint.metrics[metric][row]) < 0.01


def test_the_accuracies_of_tasks_make_that_of_all_digits(columns):
    labels = np.asarray(demo.load_digits().test[1])
    shares = {f"digits {t}": np.isin(labels, c).mean() for t, c in demo.TASKS.items()}
    for column in columns:
        overall = column.surface.values(demo.OVERALL)
        np.testing.assert_allclose(column.surface.values(shares), overall, atol=1e-6)


def test_the_figure(columns, tmp_path):
    demo.draw(columns, tmp_path / "figure.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "figure.png").shape
    assert width > 3 * height


def test_the_command(run):
    assert {p.name for p in run.folder.iterdir()} == {"figure.png", "figure.html"}
    for expected in ("isotropic", "diagonal", "full", "MSE to joint", "regret", "figure.html"):
        assert expected in run.output


def test_the_page(run):
    page = (run.folder / "figure.html").read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    data = json.loads(data)
    assert [s["name"] for s in data["surfaces"]] == [c.name for c in run.columns]
    assert data["metrics"] == [demo.OVERALL, "digits 0–3", "digits 4–6", "digits 7–9"]
    assert data["first"] == 0
    assert data["reference"] == 4


def test_the_command_without_plotly(columns, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "demo", lambda spacing: columns)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "figure.png")])
    assert result.exit_code == 0, result.output
    assert "No explorer" in result.output.splitlines()[-1]
    assert "pip install 'bayesmerge[explorer]'" in result.output.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spacing", "0.3"], "must divide 1"),
        (["--output", "nowhere/figure.png"], "there is no folder"),
        (["--output", "figure.txt"], "must end in one of"),
    ],
)
def test_the_command_refuses_before_it_starts(options, message):
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_an_interrupted_figure_leaves_nothing_behind(columns, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.draw(columns, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
