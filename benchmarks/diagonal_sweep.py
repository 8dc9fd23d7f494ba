"""Sweeps of diagonal Gaussians: seconds and peak memory for a weighting, over how many there are,
beside one merge after the other. What limits is memory bandwidth: a merged mode of T tasks reads
2T arrays of P numbers once for a whole batch of weightings, and writes one for each.
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import bayesmerge as bm


def posteriors(size: int, num_tasks: int) -> dict[str, bm.DiagonalGaussian]:
    rng = np.random.default_rng(0)

    def draw(low: float, high: float) -> jax.Array:
        return jnp.asarray(rng.random(size, np.float32) * (high - low) + low)

    return {
        f"task {t}": bm.DiagonalGaussian.from_mean_precision(draw(-1, 1), draw(0.1, 10))
        for t in range(num_tasks)
    }


def mean_square(theta: jax.Array) -> jax.Array:
    return jnp.mean(theta**2)


def one_run(options: argparse.Namespace) -> None:
    qs = posteriors(options.size, options.tasks)
    weights = np.random.default_rng(0).dirichlet(np.ones(options.tasks), options.count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if options.naive:
        for alpha in weights:
            mean_square(bm.merge(qs, alpha).mode()).block_until_ready()
    else:
        bm.preview(qs, weights, mean_square, progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each = 1e3 * seconds / options.count
    print(
        f"{'one by one' if options.naive else 'preview':12}{options.count:6d} weightings"
        f"{each:9.1f} ms each{peak / 2**20:8.2f} GiB at most, {before / 2**20:.2f} before",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=20_000_000)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--count", type=int)
    parser.add_argument("--naive", action="store_true")
    options = parser.parse_args()
    if options.count:
        one_run(options)
        return
    size = ["--size", str(options.size), "--tasks", str(options.tasks)]
    total = 8 * options.size * options.tasks / 2**30
    print(f"{options.size:,} parameters, {options.tasks} tasks: {total:.2f} GiB", flush=True)
    for run in (["--naive", "--count", "16"], *(["--count", str(a)] for a in (16, 64, 256))):
        subprocess.run([sys.executable, __file__, *size, *run], check=True)


if __name__ == "__main__":
    main()
