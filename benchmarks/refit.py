"""Fitting again: `bm.laplace` on new data of a known shape, alone and for ten shards at once.

Logistic regression on scikit-learn's breast cancer data (31 parameters, ten shards of 56 examples,
float64), prior N(0, I). The limit is a bare Newton solver: no checks, no line search, ten steps.
"""

import argparse
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.datasets import load_breast_cancer
from timing import race, show

import bayesmerge as bm

jax.config.update("jax_enable_x64", True)

SHARDS = 10
NEWTON_STEPS = 10

Data = tuple[Float[Array, "*T N P"], Float[Array, "*T N"]]


def load() -> Data:
    """The shards, stacked: x (T, N, P) standardised and with a column of ones, y (T, N)."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y) - len(y) % SHARDS)
    x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])[order]
    x, y = x.reshape(SHARDS, -1, x.shape[1]), y[order].reshape(SHARDS, -1)
    return jnp.asarray(x), jnp.asarray(y, float)


def logits(w: Array, x: Array) -> Array:
    return x @ w


def fit(data: Data) -> bm.FullGaussian:
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(data[0].shape[-1]), 1.0)
    return bm.laplace(bm.Target.supervised(logits, "bernoulli", data), prior)


@jax.jit
def newton(data: Data) -> tuple[Array, Array]:
    """The mode and the precision there."""
    x, y = data
    identity = jnp.eye(x.shape[1])

    def precision(w: Array) -> Array:
        p = jax.nn.sigmoid(x @ w)
        return (x.T * (p * (1 - p))) @ x + identity

    def step(_: Any, w: Array) -> Array:
        gradient = x.T @ (jax.nn.sigmoid(x @ w) - y) + w
        return w - jax.scipy.linalg.solve(precision(w), gradient, assume_a="pos")

    w = jax.lax.fori_loop(0, NEWTON_STEPS, step, jnp.zeros(x.shape[1]))
    return w, precision(w)


def each(solve: Callable[[Data], Any], shards: list[Data]) -> Callable[[], list[Any]]:
    return lambda: [solve(data) for data in shards]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    stacked = load()
    shards = [(stacked[0][t], stacked[1][t]) for t in range(SHARDS)]
    compiled, mapped = eqx.filter_jit(fit), eqx.filter_jit(eqx.filter_vmap(fit))

    one = race(
        {
            "bayesmerge": lambda: fit(shards[1]),
            "bayesmerge under filter_jit": lambda: compiled(shards[1]),
            "bare Newton": lambda: newton(shards[1]),
        },
        repeats,
    )
    show("one fit", one)

    newton_mapped = jax.jit(jax.vmap(newton))
    many = race(
        {
            "bayesmerge": each(fit, shards),
            "bayesmerge under filter_jit": each(compiled, shards),
            "bayesmerge, one filter_vmap": lambda: mapped(stacked),
            "bare Newton": each(newton, shards),
            "bare Newton, one vmap": lambda: newton_mapped(stacked),
        },
        repeats,
    )
    show(f"{SHARDS} fits", many)

    modes, precisions = newton_mapped(stacked)
    posteriors = mapped(stacked)
    print("largest difference from bare Newton")
    print(f"{'mode':32}{jnp.max(jnp.abs(posteriors.mode() - modes)):10.1e}")
    print(f"{'precision':32}{jnp.max(jnp.abs(posteriors.precision.value - precisions)):10.1e}")


if __name__ == "__main__":
    main()
