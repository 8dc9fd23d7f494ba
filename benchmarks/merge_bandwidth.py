"""The diagonal merge against memory: bytes a second, next to a plain copy.

Three diagonal Gaussians over a pytree of float32 leaves. For every weighting the merge reads 3
linear terms and 3 precisions and writes one mode: 7 passes over the parameters, and these are the
bytes counted. A copy reads and writes: 2 passes over its array. Many weightings are mapped over
inside one compiled program and each merged model is reduced to its largest entry, so that nothing
need be written: then only the 6 passes of reading are counted. What a compiled program moves
beyond that counts against it.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from timing import race

import bayesmerge as bm

TASKS = 3
LEAVES = {"embedding": 0.4, "mlp": 0.35, "attention": 0.2, "head": 0.05}
COPIED_BYTES = 160_000_000


def posterior(key: Array, size: int) -> bm.DiagonalGaussian:
    def draw(key: Array) -> PyTree:
        keys = jax.random.split(key, len(LEAVES))
        return {
            name: jax.random.uniform(k, (int(share * size),), jnp.float32, 0.5, 1.5)
            for (name, share), k in zip(LEAVES.items(), keys, strict=True)
        }

    linear, precision = (draw(k) for k in jax.random.split(key))
    return bm.DiagonalGaussian.from_natural_parameters(linear, precision)


@jax.jit
def merged_model(qs: list[bm.DiagonalGaussian], alpha: Float[Array, " T"]) -> PyTree:
    return bm.merge(qs, alpha).mode()


def largest_entry(params: PyTree) -> Float[Array, ""]:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(params)]))


@jax.jit
def largest_entries(
    qs: list[bm.DiagonalGaussian], alphas: Float[Array, "A T"]
) -> Float[Array, " A"]:
    return jax.lax.map(lambda alpha: largest_entry(bm.merge(qs, alpha).mode()), alphas)


def previewed(qs: list[bm.DiagonalGaussian], alphas: Float[Array, "A T"]) -> bm.Preview:
    return bm.preview(qs, alphas, largest_entry, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=20_000_000, help="parameters")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    qs = [posterior(key, options.size) for key in jax.random.split(jax.random.key(0), TASKS)]
    parameter_bytes = sum(x.nbytes for x in jax.tree.leaves(qs[0].linear))

    source = np.ones(COPIED_BYTES // 4, np.float32)
    target, array = np.empty_like(source), jnp.asarray(source)
    copy = jax.jit(jnp.copy)
    contestants: dict[str, Callable[[], Any]] = {
        "copy, numpy.copyto": lambda: np.copyto(target, source),
        "copy, jax.numpy.copy": lambda: copy(array),
    }
    moved = dict.fromkeys(contestants, 2 * COPIED_BYTES)
    weightings = np.random.default_rng(0).dirichlet(np.ones(TASKS), 256)
    contestants["merge, 1 weighting"] = lambda: merged_model(qs, weightings[0])
    moved["merge, 1 weighting"] = (2 * TASKS + 1) * parameter_bytes
    for count in (1, 16, 256):
        name = f"merge and reduce, weightings: {count}"
        contestants[name] = lambda count=count: largest_entries(qs, weightings[:count])
        moved[name] = 2 * TASKS * parameter_bytes * count
    for count in (16, 256):
        name = f"preview, weightings: {count}"
        contestants[name] = lambda count=count: previewed(qs, weightings[:count])
        moved[name] = 2 * TASKS * parameter_bytes * count

    timings = race(contestants, options.repeats)
    speeds = {name: moved[name] / timings[name].median for name in contestants}
    unit = speeds["copy, numpy.copyto"]
    read = 2 * TASKS * parameter_bytes
    print(f"{TASKS} posteriors, {parameter_bytes // 4} parameters, {read / 1e6:.0f} MB to read")
    print(f"{'':36}{'median':>14}{'GB moved':>10}{'GB/s':>8}{'of copyto':>11}")
    for name, speed in speeds.items():
        milliseconds, gigabytes = 1e3 * timings[name].median, moved[name] / 1e9
        row = f"{milliseconds:11.2f} ms{gigabytes:10.2f}{speed / 1e9:8.2f}{speed / unit:11.2f}"
        print(f"{name:36}{row}")
    memory = merged_model.lower(qs, weightings[0]).compile().memory_analysis()
    beyond = memory.temp_size_in_bytes / parameter_bytes
    print(f"memory beyond arguments and result of one merge: {beyond:.2f} models")


if __name__ == "__main__":
    main()
