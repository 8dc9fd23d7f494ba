"""One entry for every family: how to make one, and an independent scipy version of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.stats

import bayesmerge as bm


@dataclasses.dataclass(frozen=True)
class Case:
    """`make(rng)` is a proper posterior and `point(rng)` a θ in its support, both pytrees."""

    name: str
    make: Callable[[np.random.Generator], Any]
    point: Callable[[np.random.Generator], Any]

    def __repr__(self) -> str:
        return self.name


def tree(rng: np.random.Generator) -> dict[str, Any]:
    return {"b": jnp.asarray(rng.normal()), "w": jnp.asarray(rng.normal(size=(2, 2)))}


def positive_tree(rng: np.random.Generator) -> dict[str, Any]:
    return {"b": jnp.asarray(rng.gamma(4.0)), "w": jnp.asarray(rng.gamma(4.0, size=(2, 2)))}


def precision_matrix(rng: np.random.Generator, size: int = 5) -> Any:
    root = rng.normal(size=(size, size + 3))
    return jnp.asarray(root @ root.T)


def probabilities(rng: np.random.Generator) -> dict[str, Any]:
    return {"b": jnp.asarray(rng.beta(2, 2)), "w": jnp.asarray(rng.beta(2, 2, size=(2, 2)))}


def plus_one(x: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf + 1 for name, leaf in x.items()}


FAMILIES = [
    Case(
        "isotropic",
        lambda rng: bm.IsotropicGaussian.from_mean_precision(tree(rng), rng.gamma(4.0)),
        tree,
    ),
    Case(
        "diagonal",
        lambda rng: bm.DiagonalGaussian.from_mean_precision(tree(rng), positive_tree(rng)),
        tree,
    ),
    Case(
        "full",
        lambda rng: bm.FullGaussian.from_mean_precision(tree(rng), precision_matrix(rng)),
        tree,
    ),
    Case(
        "blocks",
        lambda rng: bm.BlockGaussian.from_mean_precision(
            tree(rng), [precision_matrix(rng, 1), precision_matrix(rng, 4)]
        ),
        tree,
    ),
    Case(
        "beta",
        lambda rng: bm.Beta.from_concentrations(
            plus_one(positive_tree(rng)), plus_one(positive_tree(rng))
        ),
        probabilities,
    ),
    Case(
        "gamma",
        lambda rng: bm.Gamma.from_shape_rate(plus_one(positive_tree(rng)), positive_tree(rng)),
        positive_tree,
    ),
    Case(
        "dirichlet",
        lambda rng: bm.Dirichlet.from_concentrations(
            {"p": jnp.asarray(1 + rng.gamma(2.0, size=(2, 3)))}
        ),
        lambda rng: {"p": jnp.asarray(rng.dirichlet(np.ones(3), size=2))},
    ),
]


@dataclasses.dataclass(frozen=True)
class ScipyCase:
    """A posterior over an array θ, and the frozen scipy distribution it should equal."""

    name: str
    posterior: Callable[[], Any]
    scipy: Any
    to_scipy: Callable[[np.ndarray], np.ndarray] = lambda x: x

    def __repr__(self) -> str:
        return self.name


MEAN = np.array([0.3, -1.2, 2.0])
MATRIX = np.array([[2.0, 0.3, -0.5], [0.3, 1.0, 0.2], [-0.5, 0.2, 1.5]])
SCIPY = [
    ScipyCase(
        "isotropic",
        lambda: bm.IsotropicGaussian.from_mean_precision(jnp.array(MEAN), 2.5),
        scipy.stats.multivariate_normal(MEAN, np.eye(3) / 2.5),
    ),
    ScipyCase(
        "diagonal",
        lambda: bm.DiagonalGaussian.from_mean_precision(
            jnp.array(MEAN), jnp.array([0.5, 1.0, 4.0])
        ),
        scipy.stats.multivariate_normal(MEAN, np.diag([2.0, 1.0, 0.25])),
    ),
    ScipyCase(
        "full",
        lambda: bm.FullGaussian.from_mean_precision(jnp.array(MEAN), jnp.array(MATRIX)),
        scipy.stats.multivariate_normal(MEAN, np.linalg.inv(MATRIX)),
    ),
    ScipyCase(
        "blocks",
        lambda: bm.BlockGaussian.from_mean_precision(jnp.array(MEAN), [jnp.array(MATRIX)]),
        scipy.stats.multivariate_normal(MEAN, np.linalg.inv(MATRIX)),
    ),
    ScipyCase("beta", lambda: bm.Beta.from_concentrations(2.5, 4.0), scipy.stats.beta(2.5, 4.0)),
    ScipyCase(
        "beta below one", lambda: bm.Beta.from_concentrations(0.5, 0.7), scipy.stats.beta(0.5, 0.7)
    ),
    ScipyCase(
        "gamma", lambda: bm.Gamma.from_shape_rate(3.5, 2.0), scipy.stats.gamma(3.5, scale=0.5)
    ),
    ScipyCase(
        "dirichlet",
        lambda: bm.Dirichlet.from_concentrations(jnp.array([1.5, 3.0, 2.0])),
        scipy.stats.dirichlet([1.5, 3.0, 2.0]),
    ),
]
