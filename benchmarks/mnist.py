"""The three tasks of MNIST of FP's Figs. 8 and 9: softmax regression without a class in common."""

import gzip
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import bayesmerge as bm

CLASSES = {
    "imbalanced": ((0, 1), (2, 3, 4), (5, 6, 7, 8, 9)),
    "balanced": ((0, 1, 2), (3, 4, 5, 6), (7, 8, 9)),
}
FOLDER = Path(os.environ.get("MNIST", Path(__file__).parents[2] / "shared" / "data" / "mnist"))


class Tasks(NamedTuple):
    """Targets by name, their prior, and test images with labels."""

    targets: dict[str, bm.Target]
    prior: bm.IsotropicGaussian
    test: tuple[Array, Array]

    def accuracy(self, params: PyTree) -> Float[Array, ""]:
        x, y = self.test
        return jnp.mean(jnp.argmax(softmax_regression(params, x), axis=1) == y)


def softmax_regression(params: PyTree, x: Float[Array, "N D"]) -> Float[Array, "N 10"]:
    return x @ params["W"] + params["b"][None, :]


class Images(NamedTuple):
    """Rows of pixels in [0, 1] and labels, to train and to test with."""

    train: tuple[Float[np.ndarray, "N D"], np.ndarray]
    test: tuple[Float[np.ndarray, "M D"], np.ndarray]


def mnist(folder: Path | None = FOLDER, *, pool: int = 1, count: int = 60_000) -> Images:
    """Images averaged over `pool` × `pool` pixels, the first `count` of those to train with; from
    IDX files in a folder, or without one from OpenML by scikit-learn."""
    if folder is None:
        from sklearn.datasets import fetch_openml

        pixels, labels = fetch_openml("mnist_784", return_X_y=True, as_frame=False)
        pixels, labels = pixels.reshape(-1, 28, 28), labels.astype(int)
        pixels, labels = (pixels[:60_000], pixels[60_000:]), (labels[:60_000], labels[60_000:])
    else:
        names = "train", "t10k"
        pixels = tuple(_read(folder / f"{name}-images-idx3-ubyte.gz") for name in names)
        labels = tuple(_read(folder / f"{name}-labels-idx1-ubyte.gz") for name in names)
    train, test = (_pooled(x / 255, pool) for x in (pixels[0][:count], pixels[1]))
    return Images((train, labels[0][:count]), (test, labels[1]))


def tasks(setting: str, images: Images, *, prior_precision: float = 1.0) -> Tasks:
    """One task for each group of classes."""
    train, labels = images.train
    zero = {"W": jnp.zeros((train.shape[1], 10)), "b": jnp.zeros(10)}
    prior = bm.IsotropicGaussian.from_mean_precision(zero, prior_precision)
    targets = {}
    for classes in CLASSES[setting]:
        mine = np.isin(labels, classes)
        data = jnp.asarray(train[mine], float), jnp.asarray(labels[mine], int)
        name = ",".join(map(str, classes))
        targets[name] = bm.Target.supervised(softmax_regression, "categorical", data)
    test, answers = images.test
    return Tasks(targets, prior, (jnp.asarray(test, float), jnp.asarray(answers, int)))


def _pooled(pixels: Float[np.ndarray, "N H W"], pool: int) -> Float[np.ndarray, "N D"]:
    count, height, width = pixels.shape
    blocks = pixels.reshape(count, height // pool, pool, width // pool, pool)
    return blocks.mean((2, 4)).reshape(count, -1)


def _read(path: Path) -> Any:
    """An IDX file, or where there is none one without .gz: two zeros, the type (8: uint8), the
    number of axes, their lengths, the data."""
    raw = gzip.decompress(path.read_bytes()) if path.exists() else path.with_suffix("").read_bytes()
    axes = raw[3]
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)
