"""The cost of an IVON step over an AdamW step, in JAX and in PyTorch side by side.

One Monte-Carlo sample, batch 128, float32, every step a compiled program whose arrays are donated:
784-32-32-10 and 784-1024-1024-10 relu networks and a small convolutional one. `jax.random.normal`
is IVON with the noise of jax.random in the place of its own.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ivon_torch import contestant
from jaxtyping import Array, PyTree
from timing import race, show

from bayesmerge.fit import ivon_noise, ivon_optimiser
from bayesmerge.fit.noise import normal_like

BATCH = 128
EXAMPLES = 60_000.0


def dense(key: Array, *shape: int) -> PyTree:
    weights = jax.random.normal(key, shape) / jnp.prod(jnp.array(shape[:-1])) ** 0.5
    return {"w": weights, "b": jnp.zeros(shape[-1])}


def network(model: str) -> tuple[Callable[[PyTree, Array], Array], PyTree, Array]:
    """(params, x) ↦ logits, parameters, and a batch of inputs."""
    keys = jax.random.split(jax.random.key(0), 4)
    if model == "conv":
        layers = [dense(keys[0], 3, 3, 1, 16), dense(keys[1], 3, 3, 16, 32)]
        params = [*layers, dense(keys[2], 7 * 7 * 32, 10)]
        return convolutional, params, jax.random.uniform(keys[3], (BATCH, 28, 28, 1))
    width = {"mlp32": 32, "mlp1024": 1024}[model]
    shapes = ((784, width), (width, width), (width, 10))
    params = [dense(k, *shape) for k, shape in zip(keys[:3], shapes, strict=True)]
    return perceptron, params, jax.random.uniform(keys[3], (BATCH, 784))


def perceptron(params: PyTree, x: Array) -> Array:
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def convolutional(params: PyTree, x: Array) -> Array:
    *hidden, last = params
    for layer in hidden:
        x = jax.lax.conv_general_dilated(
            x, layer["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["b"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(BATCH, -1) @ last["w"] + last["b"]


def jax_normal_like(key: Array, tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def jax_noise(key: Array, params: PyTree, state: Any) -> PyTree:
    """`ivon_noise` with the draws of jax.random."""
    scale = lambda e, h: e * jax.lax.rsqrt(state.ess * (h + state.weight_decay))  # noqa: E731
    return jax.tree.map(scale, jax_normal_like(key, params), state.hessian)


def stepper(model: str, optimiser: Any, noise_of: Any = None) -> Callable[[], Any]:
    """A call that takes one step and keeps what it leads to."""
    predict, params, x = network(model)
    y = jax.random.randint(jax.random.key(1), (BATCH,), 0, 10)

    def loss(params: PyTree) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(predict(params, x), y)
        return jnp.mean(losses)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any) -> Any:
        params, state, key = carry
        key, own = jax.random.split(key)
        if noise_of is None:
            updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        else:
            noise = noise_of(own, params, state)
            gradient = jax.grad(loss)(optax.apply_updates(params, noise))
            updates, state = optimiser.update(gradient, state, params, noise=noise)
        return optax.apply_updates(params, updates), state, key

    carry = [(params, optimiser.init(params), jax.random.key(2))]

    def call() -> Any:
        carry[0] = step(carry[0])
        return carry[0][0]

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=150)
    repeats = parser.parse_args().repeats
    ivon = ivon_optimiser(0.1, EXAMPLES)
    has_torch = all(map(importlib.util.find_spec, ("torch", "ivon")))
    for model in ("mlp32", "mlp1024", "conv"):
        contestants = {
            "optax.adamw": stepper(model, optax.adamw(1e-3)),
            "bayesmerge IVON": stepper(model, ivon, ivon_noise),
            "with jax.random.normal": stepper(model, ivon, jax_noise),
        }
        if has_torch:
            contestants["torch AdamW"] = contestant("adamw", model)
            contestants["ivon-opt"] = contestant("ivon", model)
        show(f"one step, {model}", race(contestants, repeats), reference="optax.adamw")
    size = 2_000_000
    tree = jnp.zeros((1000, size // 1000))
    keys = {name: jax.random.key(3) for name in ("own noise", "jax.random.normal")}
    draw = {"own noise": jax.jit(normal_like), "jax.random.normal": jax.jit(jax_normal_like)}
    timings = race({n: functools.partial(draw[n], keys[n], tree) for n in draw}, repeats)
    show(f"{size} normal numbers", timings, reference="own noise")


if __name__ == "__main__":
    main()
