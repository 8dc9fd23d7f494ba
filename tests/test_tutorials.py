"""Tutorials run, end to end with their assertions, and their notebooks are what the scripts say."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
SCRIPTS = sorted(FOLDER.glob("*.py"))

RUN_FOR_LONG = ("05", "08")  # mixtures and MCMC: worth all of XLA's optimisations

pytestmark = pytest.mark.slow
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def test_there_are_nine():
    assert [path.stem[:2] for path in SCRIPTS] == [f"{number:02}" for number in range(1, 10)]


@each
def test_it_runs_and_its_claims_hold(script):
    source = script.read_text()
    assert source.count("\nassert ") >= 3, "a tutorial asserts what it claims"
    env = {**os.environ, "MPLBACKEND": "agg"}
    if script.stem[:2] in RUN_FOR_LONG:
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=FOLDER,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


@each
def test_its_notebook_is_the_script_executed(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(script)), "run `make tutorials`"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
