"""A preview of diagonal mixtures at every weighting of a simplex grid, against memory.

The naive sweep is FP's Algorithm 1 as it is printed: for every weighting, from the blend, NumPy
passes over every component of every task, step after step. It is timed on a few weightings, and
from one start. The library is timed from that start too, and as `preview` works: many starts at
some weightings, what these and all neighbours found at the others.

The limit of memory is one reading of all natural parameters, at the speed of a copy, for every
batch of weightings and every step that the slowest of them needs. What is left is arithmetic: eight
operations for each parameter of each component in every evaluation.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import softmax

import bayesmerge as bm
from bayesmerge.mixtures.warm_starts import BATCH, modes_along

TASKS, COMPONENTS = 3, 10


def mixture(seed: int, size: int, apart: float, spread: float) -> bm.Mixture:
    """Components around a centre of their task, so near that several count at once."""
    centre, *keys = jax.random.split(jax.random.key(seed), 1 + COMPONENTS)
    middle = apart * jax.random.normal(centre, (size,), jnp.float32)

    def one(key: Array) -> bm.DiagonalGaussian:
        at, width = jax.random.split(key)
        mean = middle + spread * jax.random.normal(at, (size,), jnp.float32)
        precision = jnp.exp(1e-3 * jax.random.normal(width, (size,), jnp.float32))
        return bm.DiagonalGaussian.from_mean_precision(mean, precision)

    return bm.Mixture(np.ones(COMPONENTS), jax.lax.map(one, jnp.stack(keys)))


def naive_mode(
    mixtures: list[dict[str, np.ndarray]], alpha: Float[np.ndarray, " T"], tolerance: float
) -> tuple[Float[np.ndarray, " P"], int]:
    """FP Algorithm 1: a loop over tasks and components in every step."""
    size = mixtures[0]["means"].shape[1]
    shares = [np.exp(q["log_weights"]) for q in mixtures]
    theta = np.full(size, np.inf, np.float32)
    steps, length = 0, np.inf
    while length > tolerance:
        steps += 1
        top, bottom = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for a, q, share in zip(alpha, mixtures, shares, strict=True):
            for k in range(COMPONENTS):
                weight = np.float32(a * share[k])
                bottom += weight * q["precision"][k]
                top += weight * q["precision"][k] * q["means"][k]
        new = top / bottom
        length = np.sqrt(np.mean(bottom * (new - theta) ** 2))
        theta = new
        shares = [
            softmax(
                [
                    q["log_weights"][k]
                    + q["heights"][k]
                    - 0.5 * np.sum(q["precision"][k] * (theta - q["means"][k]) ** 2)
                    for k in range(COMPONENTS)
                ]
            )
            for q in mixtures
        ]
    return theta, steps


def largest_entry(params: Array) -> Array:
    return jnp.max(jnp.abs(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000, help="parameters")
    parser.add_argument("--spacing", type=float, default=0.05, help="of the grid of weightings")
    parser.add_argument("--apart", type=float, default=3e-3, help="of the tasks' centres")
    parser.add_argument("--spread", type=float, default=1e-3, help="of components around them")
    parser.add_argument("--naive", type=int, default=6, help="weightings of the naive sweep")
    options = parser.parse_args()
    posteriors = [
        mixture(seed, options.size, options.apart, options.spread) for seed in range(TASKS)
    ]
    grid = bm.simplex_grid(TASKS, options.spacing)
    size = sum(x.nbytes for q in posteriors for x in jax.tree.leaves(q.components))

    source = np.ones(40_000_000, np.float32)
    target, speeds = np.empty_like(source), []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        speeds.append(2 * source.nbytes / (time.perf_counter() - start))
    reading = size / np.median(speeds)
    square = jnp.ones((2048, 2048))
    jax.block_until_ready(square @ square)
    start = time.perf_counter()
    jax.block_until_ready(square @ square)
    arithmetic = 2 * 2048**3 / (time.perf_counter() - start)

    product = bm.merge(posteriors, grid)
    seconds: list[float] = []
    single: list[float] = []
    for _ in range(2):
        start = time.perf_counter()
        bm.preview(posteriors, grid, largest_entry, progress=False)
        seconds.append(time.perf_counter() - start)
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(product.maxima("blend").log_density)
        single.append(time.perf_counter() - start)
    modes = modes_along(product)
    found = np.quantile(modes.steps, [0.5, 0.9, 1.0]).astype(int)
    soft = np.mean((modes.responsibilities > 0.01) & (modes.responsibilities < 0.99))

    plain = [
        {
            "means": np.asarray(q.means),
            "precision": np.asarray(q.components.precision.value),
            "heights": np.asarray(q.heights),
            "log_weights": np.asarray(q.log_weights),
        }
        for q in posteriors
    ]
    rows = np.linspace(0, len(grid) - 1, options.naive).astype(int)
    start = time.perf_counter()
    ends = [naive_mode(plain, np.asarray(grid[row]), 3e-5) for row in rows]
    naive = (time.perf_counter() - start) / len(rows) * len(grid)
    params = product.with_exponents(product.exponents[rows]).on_ridge(
        jnp.asarray(modes.responsibilities[rows])
    )
    apart = max(
        float(np.sqrt(np.mean((np.asarray(x) - end) ** 2)))
        for x, (end, _) in zip(params, ends, strict=True)
    )

    evaluation = 8 * TASKS * COMPONENTS * options.size / arithmetic
    passes = -(-len(grid) // BATCH) * (int(modes.steps.max()) + 1)
    print(f"{len(grid)} weightings, {TASKS} mixtures of {COMPONENTS}, {options.size:,} parameters, "
          f"{size / 1e9:.2f} GB of natural parameters; {100 * soft:.0f} % of responsibilities "
          "between 0.01 and 0.99")  # fmt: skip
    print(f"preview: {seconds[1]:.1f} s ({seconds[0]:.1f} s with compilation); steps to a mode: "
          f"median {found[0]}, 90 % {found[1]}, most {found[2]}")  # fmt: skip
    print(f"from the blend only: {single[1]:.1f} s ({single[0]:.1f} s with compilation)")
    steps = np.median([steps for _, steps in ends])
    print(f"naive double loop from the blend: {naive:.0f} s, estimated from {len(rows)} weightings "
          f"of {steps:.0f} steps: {naive / single[1]:.1f} times the library from the blend, "
          f"{naive / seconds[1]:.1f} times the preview")  # fmt: skip
    print(f"largest root-mean-square distance of its modes from the preview's: {apart:.1e}")
    print(f"limit of memory: {passes} times {1e3 * reading:.0f} ms, {passes * reading:.1f} s;"
          f" without batches {len(grid) * (found[0] + 1) * reading:.0f} s")  # fmt: skip
    print(f"limit of arithmetic: {1e3 * evaluation:.1f} ms for one evaluation at the speed of a "
          f"matrix product; the preview took as long as {seconds[1] / evaluation / len(grid):.0f} "
          "of them for each weighting")  # fmt: skip


if __name__ == "__main__":
    main()
