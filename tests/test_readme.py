"""The README's code runs as it stands, from top to bottom."""

import re
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"

pytest.importorskip("sklearn")
pytest.importorskip("numpyro")


def test_the_readme_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, names)
    np.testing.assert_allclose(names["forgotten"].mode(), names["q"]["even"].mode(), atol=1e-4)
    assert names["w"].shape == (30,)
    assert (tmp_path / "preview.png").exists()
    assert names["draws"]["beta"].shape == (1000, 10)
    plt.close("all")


def test_the_readme_points_at_files_that_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link
