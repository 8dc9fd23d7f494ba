"""The main job on real data: preview 231 weightings of three tasks of handwritten digits."""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from bayesmerge.families import IsotropicGaussian
from bayesmerge.files import whole
from bayesmerge.fit import Target, laplace
from bayesmerge.fit.curvature import Structure
from bayesmerge.grid import simplex_grid
from bayesmerge.previews import Preview, explorer, joint_training, preview

T = TypeVar("T")

TASKS = {"0–3": (0, 1, 2, 3), "4–6": (4, 5, 6), "7–9": (7, 8, 9)}
STRUCTURES: tuple[Structure, ...] = ("isotropic", "diagonal", "full")
TOWARDS = "full, towards prior"
PRIOR_PRECISION = 1.0
OVERALL, JOINT = "all digits", "joint training"


class Digits(NamedTuple):
    """scikit-learn's digits: 1,797 real 8×8 images, split into training and test examples."""

    train: tuple[Float[Array, "N 64"], Array]
    test: tuple[Float[Array, "M 64"], Array]


class Column(NamedTuple):
    """One column of the result: a surface over weightings and what it cost."""

    name: str
    surface: Preview
    fit_seconds: float
    sweep_seconds: float


def load_digits(test_fraction: float = 0.2) -> Digits:
    """The images scaled to [0, 1], shuffled with a fixed seed."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "the demo's images come with scikit-learn: pip install 'bayesmerge[demo]'"
        ) from error
    images, labels = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = jnp.asarray(images[order] / 16, float), jnp.asarray(labels[order])
    held_out = round(test_fraction * len(labels))
    return Digits((x[held_out:], y[held_out:]), (x[:held_out], y[:held_out]))


def softmax_regression(params: PyTree, x: Float[Array, "N 64"]) -> Float[Array, "N 10"]:
    """Logits xW + b."""
    return x @ params["W"] + params["b"][None, :]


def demo(spacing: float = 0.05, progress: bool = True) -> list[Column]:
    """Isotropic, diagonal and full Laplace previews, one with the curvature on the way to the
    prior's mode, and joint training, on one grid."""
    digits = load_digits()
    zero = {"W": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    prior = IsotropicGaussian.from_mean_precision(zero, PRIOR_PRECISION)
    targets = {name: _task(digits, classes) for name, classes in TASKS.items()}
    weights = simplex_grid(len(TASKS), spacing)

    def accuracies(params: PyTree) -> dict[str, Float[Array, ""]]:
        x, y = digits.test
        correct = jnp.argmax(softmax_regression(params, x), axis=1) == y
        of_tasks = {f"digits {t}": correct[_among(y, classes)] for t, classes in TASKS.items()}
        return {name: jnp.mean(c) for name, c in ({OVERALL: correct} | of_tasks).items()}

    def fit(structure: Structure, towards: PyTree | None) -> dict[str, Any]:
        options: dict[str, Any] = {"structure": structure, "towards": towards}
        return {t: laplace(target, prior, **options) for t, target in targets.items()}

    kinds: list[tuple[str, Structure, PyTree | None]] = [(str(s), s, None) for s in STRUCTURES]
    columns = []
    for name, structure, towards in [*kinds, (TOWARDS, "full", zero)]:
        posteriors, fit_seconds = _timed(functools.partial(fit, structure, towards))
        bar: str | bool = name if progress else False
        sweep = functools.partial(preview, posteriors, weights, accuracies, prior, progress=bar)
        surface, sweep_seconds = _timed(sweep)
        columns.append(Column(name, surface, fit_seconds, sweep_seconds))
    bar = JOINT if progress else False
    train = functools.partial(joint_training, targets, weights, accuracies, prior, progress=bar)
    joint, seconds = _timed(train)
    return [*columns, Column(JOINT, joint, 0.0, seconds)]


def draw(columns: list[Column], path: Path) -> None:
    """The accuracies on all digits side by side on one colour scale, saved to `path`."""
    import matplotlib.pyplot as plt

    values = np.concatenate([column.surface.values(OVERALL) for column in columns])
    low = math.floor(values.min() * 20) / 20
    high = math.ceil(values.max() * 20) / 20
    figure, axes = plt.subplots(1, len(columns), figsize=(16, 3.5), layout="constrained")
    for ax, column in zip(axes, columns, strict=True):
        scale: Any = {"vmin": low, "vmax": high, "levels": round((high - low) * 20)}
        column.surface.plot(OVERALL, ax=ax, colorbar=False, **scale)
        ax.set_title(column.name, fontsize="large", pad=10)
    ticks = np.arange(np.ceil(low * 10), np.floor(high * 10) + 1) / 10
    figure.colorbar(
        axes[0].collections[0], ax=axes, label="test accuracy", ticks=ticks, aspect=15, pad=0.01
    )
    try:
        with whole(path) as unfinished:
            figure.savefig(unfinished, dpi=150, format=path.suffix.removeprefix("."))
    finally:
        plt.close(figure)


def explore(columns: list[Column], path: Path) -> None:
    """The surfaces on one page, with the accuracies on each task's digits too."""
    surfaces = {column.name: column.surface for column in columns}
    title = "Test accuracy on handwritten digits, over the weights of three tasks"
    explorer.explore(surfaces, path, reference=JOINT, metric=OVERALL, title=title)


def _task(digits: Digits, classes: tuple[int, ...]) -> Target:
    x, y = digits.train
    mine = _among(y, classes)
    return Target.supervised(softmax_regression, "categorical", (x[mine], y[mine]))


def _among(labels: Array, classes: tuple[int, ...]) -> Bool[np.ndarray, " N"]:
    return np.isin(np.asarray(labels), classes)


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - start
