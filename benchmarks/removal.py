"""Leaving rows out: all of them in one call, a few by factorisation, and without any P×P matrix.

Digits. Every row: softmax regression (650 parameters, 1,797 rows, float32); the limit is a Cholesky
factor and two triangular solves of 1,797 × 11 right sides. Matrix-free: a 64-512-256-10 tanh
network, whose Hessian would hold 28 billion entries; the limit is a gradient over all the data.
"""

import argparse
import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array
from sklearn.datasets import load_digits
from timing import race, show

import bayesmerge as bm
from bayesmerge.fit import curvature_product

WIDTHS = (64, 512, 256, 10)
FEW = 50


def load() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return jnp.asarray(np.column_stack([x / 16, np.ones(len(x))]), jnp.float32), jnp.asarray(y)


def linear(w: Array, x: Array) -> Array:
    return x @ w


def network(layers: list[Array], x: Array) -> Array:
    x = x[:, : WIDTHS[0]]
    for w in layers[:-1]:
        x = jnp.tanh(x @ w)
    return x @ layers[-1]


def every_row(data: tuple[Array, Array], repeats: int) -> None:
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros((65, 10), jnp.float32), 1.0)
    target = bm.Target.supervised(linear, "categorical", data)
    params = bm.find_mode(target, prior, method="newton").params
    precision = bm.curvature(target, params, "ggn") + jnp.eye(650)
    sides = jnp.asarray(np.random.default_rng(0).normal(size=(650, 11 * 1797)), jnp.float32)
    limit = jax.jit(lambda H, b: cho_solve((jnp.linalg.cholesky(H), True), b))
    rows = np.arange(FEW)[:, None]
    rest = [jnp.delete(data[0], 0, axis=0), jnp.delete(data[1], 0)]
    refit = bm.Target.supervised(linear, "categorical", (rest[0], rest[1]))
    show(
        "every row of 1,797 (or as said), P = 650",
        race(
            {
                "bayesmerge": lambda: bm.leave_out(target, None, prior, params=params),
                f"{FEW} rows, a factor each": lambda: bm.leave_out(
                    target, rows, prior, params=params
                ),
                "one row, refitted": lambda: (
                    bm.find_mode(refit, prior, start=params, method="newton").params
                ),
                "solves alone": lambda: limit(precision, sides),
            },
            repeats,
        ),
    )


def matrix_free(data: tuple[Array, Array], repeats: int) -> None:
    rng = np.random.default_rng(0)
    pairs = itertools.pairwise(WIDTHS)
    params: Any = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in pairs]
    zero = jax.tree.map(jnp.zeros_like, params)
    prior = bm.IsotropicGaussian.from_mean_precision(zero, 10.0)
    target = bm.Target.supervised(network, "categorical", data)
    params = bm.find_mode(target, prior, start=params, max_steps=60).params
    gradient = jax.jit(lambda p: target.value_and_gradient(p)[1])
    product = jax.jit(lambda p, v: curvature_product(target, p, v, "ggn"))

    def leave_out(steps: int) -> Any:
        return bm.leave_out(
            target, np.arange(100), prior, params=params, solver="cg", max_steps=steps
        )

    timings = race(
        {
            "bayesmerge, 10 steps": lambda: leave_out(10),
            "bayesmerge, 30 steps": lambda: leave_out(30),
            "bayesmerge, 300 steps at most": lambda: leave_out(300),
            "one product with the GGN": lambda: product(params, params),
            "one gradient": lambda: gradient(params),
        },
        repeats,
    )
    size = sum(w.size for w in params)
    show(f"100 rows by conjugate gradients, P = {size:,}", timings, "one gradient")
    step = (timings["bayesmerge, 30 steps"].median - timings["bayesmerge, 10 steps"].median) / 20
    print(f"a step costs {step / timings['one gradient'].median:.2f} gradients")
    ended = jax.tree.map(jnp.subtract, leave_out(300), leave_out(30))
    change = jax.tree.map(jnp.subtract, leave_out(300), params)
    length = [np.sqrt(sum(float(jnp.sum(x**2)) for x in t)) for t in (ended, change)]
    print(f"after 30 steps {length[0] / length[1]:.1e} of the change is missing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore", bm.ConvergenceWarning)
    every_row(load(), repeats)
    matrix_free(load(), repeats)


if __name__ == "__main__":
    main()
