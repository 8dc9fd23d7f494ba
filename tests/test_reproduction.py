"""The reproduction of FP Figs. 8 and 9 in a reduced setting: real digits, 4×4 pixels."""

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_digits

import bayesmerge as bm

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        study, data = (importlib.import_module(name) for name in ("fast_previews", "mnist"))
    finally:
        sys.path.remove(str(BENCHMARKS))
    x, y = load_digits(return_X_y=True)
    x = data._pooled(x.reshape(-1, 8, 8) / 16, 2)
    groups = [np.flatnonzero(np.isin(y[:1200], c))[:340] for c in data.CLASSES["balanced"]]
    train = np.concatenate(groups)
    images = data.Images((x[train], y[train]), (x[1200:], y[1200:]))
    options = argparse.Namespace(
        posteriors=["averaging", "full Gaussian", "mixture", "towards prior"],
        spacing=0.2,
        components=2,
        spread=1.0,
        mixture_step_size=0.02,
        batch_size=None,
        refine=0,
        folder=tmp_path_factory.mktemp("fast previews"),
    )
    with warnings.catch_warnings():  # so few steps do not converge, and say so
        warnings.simplefilter("ignore", bm.ConvergenceWarning)
        seen = dict(study.surfaces("balanced", data.tasks("balanced", images), options))
    return study, seen, options


@pytest.mark.slow
def test_previews_are_of_joint_training(reproduced):
    _, seen, _ = reproduced
    joint = seen["joint training"]
    for name, preview in seen.items():
        against = preview.compare(joint)
        assert against.mse < 0.1, name
        assert against.regret < 0.1, name


@pytest.mark.slow
def test_the_table_has_the_papers_numbers(reproduced):
    study, seen, _ = reproduced
    table = study.table("balanced", seen)
    for name, printed in study.PAPER["balanced"].items():
        row = next(line for line in table.splitlines() if line.startswith(name))
        mse = seen[name].compare(seen["joint training"]).mse
        assert f"{mse:.4f}" in row
        assert f"{printed.mse:.4f}" in row
    assert f"{100 * seen['joint training'].best().value:.1f} %" in table


@pytest.mark.slow
def test_its_surfaces_are_kept_and_drawn(reproduced):
    _, seen, options = reproduced
    for name, preview in seen.items():
        kept = bm.Preview.load(options.folder / f"balanced, {name}.nc")
        np.testing.assert_array_equal(kept.values(), preview.values())
    axes = bm.plots.ternaries(seen, reference="joint training")
    assert [ax.get_title() for ax in axes] == list(seen)
    plt.close("all")
