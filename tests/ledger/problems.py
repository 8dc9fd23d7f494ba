"""Real data on which the equations are checked: a base model, two tasks, and their joint solution.

Three losses: least squares (quadratic), logistic regression, and a small tanh network. Each is one
third of the data for the base model and one for each task, trained to a gradient at rounding error.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

import bayesmerge as bm

NONLINEAR = ("logistic", "network")
ALL = ("least squares", *NONLINEAR)
TITLES = {
    "least squares": "diabetes, least squares, P = 11",
    "logistic": "breast cancer, logistic regression, P = 31",
    "network": "iris, tanh network 4-3-3, P = 24",
}
WIDTHS = (4, 3, 3)
SIZES = {"least squares": 11, "logistic": 31, "network": 24}


def linear(theta, x):
    return x @ theta


def network(theta, x):
    inputs, hidden, outputs = WIDTHS
    first, bias, second = jnp.split(theta, [inputs * hidden, (inputs + 1) * hidden])
    activation = jnp.tanh(x @ first.reshape(inputs, hidden) + bias[None])
    return activation @ second.reshape(hidden, outputs)


MODELS = {
    "least squares": (linear, "gaussian"),
    "logistic": (linear, "bernoulli"),
    "network": (network, "categorical"),
}


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


@functools.cache
def data(problem: str):
    """(x, y) of three thirds: of the base model and of two tasks."""
    load = {
        "least squares": load_diabetes,
        "logistic": load_breast_cancer,
        "network": load_iris,
    }[problem]
    x, y = load(return_X_y=True)
    shuffled = np.random.default_rng(0).permutation(len(x))[: len(x) // 3 * 3]
    x, y = standardised(x)[shuffled], y[shuffled]
    if problem == "least squares":
        y = standardised(y)
    if problem != "network":
        x = np.column_stack([np.ones(len(x)), x])
    return list(zip(np.split(x, 3), np.split(y, 3), strict=True))


def target(problem: str, x, y) -> bm.Target:
    model, likelihood = MODELS[problem]
    return bm.Target.supervised(model, likelihood, (jnp.asarray(x), jnp.asarray(y)))


def start(problem: str):
    if problem != "network":
        return None
    return jnp.asarray(np.random.default_rng(1).normal(size=24))


def minimise(loss, prior, start=None):
    """argmin ℓ + ½‖θ − θ_0‖²_{H_0}, finished with exact Newton steps."""
    theta = bm.find_mode(loss, prior, start=start, method="newton").params
    for _ in range(3):
        theta = (prior * bm.expand(loss, theta, curvature="hessian")).mode()
    return theta


class Setting(NamedTuple):
    """Everything that GM §3 names, on one problem."""

    title: str
    losses: list
    alpha: np.ndarray
    prior: bm.FullGaussian
    base: np.ndarray
    H0: np.ndarray
    thetas: list
    joint: np.ndarray

    def gradient(self, t: int, theta) -> np.ndarray:
        return np.asarray(self.losses[t].value_and_gradient(jnp.asarray(theta))[1])

    def hessian(self, t: int, theta) -> np.ndarray:
        return np.asarray(bm.curvature(self.losses[t], jnp.asarray(theta), "hessian"))

    @property
    def posteriors(self) -> list:
        """q_t = N(θ_t, (H_0 + H_t)⁻¹)."""
        return [
            self.prior * bm.expand(loss, theta, curvature="hessian")
            for loss, theta in zip(self.losses, self.thetas, strict=True)
        ]


def setting(problem: str, base, H0, alpha) -> Setting:
    losses = [target(problem, *third) for third in data(problem)[1:]]
    prior = bm.FullGaussian.from_mean_precision(jnp.asarray(base), jnp.asarray(H0))
    first = start(problem) if not np.any(base) else jnp.asarray(base)
    thetas = [minimise(loss, prior, first) for loss in losses]
    joint = minimise(bm.JointTarget(losses, alpha), prior, thetas[0])
    return Setting(
        TITLES[problem],
        losses,
        np.asarray(alpha),
        prior,
        np.asarray(base),
        np.asarray(H0),
        [np.asarray(theta) for theta in thetas],
        np.asarray(joint),
    )


@functools.cache
def from_scratch(problem: str, alpha=(0.7, 0.6)) -> Setting:
    """GM-1 to GM-4: prior N(0, I)."""
    size = SIZES[problem]
    return setting(problem, np.zeros(size), np.eye(size), alpha)


@functools.cache
def base_model(problem: str, delta: float = 0.5):
    """θ_0 of GM-5, its loss, and H_0 = δI + GGN there."""
    loss = target(problem, *data(problem)[0])
    size = SIZES[problem]
    prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(size), delta)
    theta = minimise(loss, prior, start(problem))
    return (
        np.asarray(theta),
        loss,
        delta * np.eye(size) + np.asarray(bm.curvature(loss, theta, "ggn")),
    )


@functools.cache
def fine_tuned(problem: str, stiffness: float = 1.0, alpha=(0.7, 1.1)) -> Setting:
    """GM-5 to GM-10: prior N(θ_0, (stiffness·H_0)⁻¹) around a base model."""
    theta, _, H0 = base_model(problem)
    return setting(problem, theta, stiffness * H0, alpha)


def gradient_of(function, theta) -> np.ndarray:
    """By automatic differentiation, away from the library."""
    return np.asarray(jax.jit(jax.grad(function))(jnp.asarray(theta)))


def half_square(difference, H):
    """½‖θ − θ'‖²_H."""
    return 0.5 * difference @ jnp.asarray(H) @ difference
