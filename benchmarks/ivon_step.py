"""The cost of an IVON step over an AdamW step, in JAX and in PyTorch side by side.

One Monte-Carlo sample, batch 128, float32, every step a compiled program whose arrays are donated:
784-32-32-10 and 784-1024-1024-10 relu networks and a small convolutional one. `jax.random.normal`
is IVON with the noise of jax.random in the place of its own. The two libraries race apart, for the
threads of each disturb the other.
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
MANY = 100


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


def scanned(model: str, optimiser: Any, steps: int) -> Callable[[], Any]:
    """A call that takes many steps in one `lax.scan`."""
    predict, params, x = network(model)
    y = jax.random.randint(jax.random.key(1), (BATCH,), 0, 10)

    def loss(params: PyTree) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(predict(params, x), y)
        return jnp.mean(losses)

    def step(carry: Any, key: Array) -> Any:
        params, state = carry
        noise = ivon_noise(key, params, state)
        gradient = jax.grad(loss)(optax.apply_updates(params, noise))
        updates, state = optimiser.update(gradient, state, params, noise=noise)
        return (optax.apply_updates(params, updates), state), None

    start, keys = (params, optimiser.init(params)), jax.random.split(jax.random.key(2), steps)
    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    return functools.partial(run, start, keys)


def repeated(call: Callable[[], Any], times: int) -> Callable[[], Any]:
    def several() -> Any:
        for _ in range(times - 1):
            call()
        return call()

    return several


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
        show(f"one step, {model}", race(contestants, repeats), reference="optax.adamw")
        if has_torch:
            pair = {
                "torch AdamW": contestant("adamw", model),
                "ivon-opt": contestant("ivon", model),
            }
            show(f"the same in PyTorch, {model}", race(pair, repeats), reference="torch AdamW")
    in_jax = {
        "optax.adamw": repeated(stepper("mlp32", optax.adamw(1e-3)), MANY),
        "bayesmerge IVON": repeated(stepper("mlp32", ivon, ivon_noise), MANY),
        "bayesmerge IVON in a lax.scan": scanned("mlp32", ivon, MANY),
    }
    show(f"{MANY} steps, mlp32", race(in_jax, repeats // 5), reference="optax.adamw")
    if has_torch:
        pair = {
            "torch AdamW": repeated(contestant("adamw", "mlp32"), MANY),
            "ivon-opt": repeated(contestant("ivon", "mlp32"), MANY),
        }
        timings = race(pair, repeats // 5)
        show(f"{MANY} steps in PyTorch, mlp32", timings, reference="torch AdamW")
    size = 2_000_000
    tree = jnp.zeros((1000, size // 1000))
    keys = {name: jax.random.key(3) for name in ("own noise", "jax.random.normal")}
    draw = {"own noise": jax.jit(normal_like), "jax.random.normal": jax.jit(jax_normal_like)}
    timings = race({n: functools.partial(draw[n], keys[n], tree) for n in draw}, repeats)
    show(f"{size} normal numbers", timings, reference="own noise")


if __name__ == "__main__":
    main()
