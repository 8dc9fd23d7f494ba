"""Modes of full Gaussians at every weighting of a simplex grid: one Cholesky factorisation each
against a basis, with the true errors of a few modes beside their bounds.

Posteriors are Laplace's, of the first `--count` images.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
import scipy.linalg
from mnist import FOLDER, mnist, tasks

import bayesmerge as bm
from bayesmerge.previews.modes.reduced_basis import modes_in_basis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--pool", type=int, default=1)
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--spacing", type=float, default=0.02)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--checked", type=int, default=6)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    problem = tasks("imbalanced", mnist(options.data, pool=options.pool, count=options.count))
    posteriors = {
        n: bm.laplace(
            t, problem.prior, params=bm.find_mode(t, problem.prior).params, block_size=256
        )
        for n, t in problem.targets.items()
    }
    weights = bm.simplex_grid(3, options.spacing)
    size = problem.prior.layout.size
    print(f"{size} parameters, {len(weights)} weightings")

    exponents = np.column_stack([np.zeros(len(weights)), weights])
    factors = [problem.prior, *posteriors.values()]
    start = time.perf_counter()
    found = modes_in_basis(factors, exponents, options.tolerance)
    seconds = time.perf_counter() - start
    print(
        f"basis of {found.vectors.shape[1]}: {seconds:.1f} s, largest bound {found.error.max():.1e}"
    )

    rng = np.random.default_rng(0)
    rows = [int(np.argmax(found.error)), *rng.choice(len(weights), options.checked, replace=False)]
    linear = np.stack([np.asarray(q.layout.ravel(q.linear)) for q in posteriors.values()])
    precisions = [np.asarray(q.precision.value) for q in posteriors.values()]
    each, ratios = [], []
    for row in rows:
        start = time.perf_counter()
        precision = sum(a * p for a, p in zip(weights[row], precisions, strict=True))
        factor = scipy.linalg.cho_factor(precision, lower=True, overwrite_a=True)
        mode = scipy.linalg.cho_solve(factor, weights[row] @ linear)
        each.append(time.perf_counter() - start)
        seen = found.vectors @ found.coefficients[row]
        error = np.linalg.norm(seen - mode) / np.linalg.norm(mode)
        ratios.append(found.error[row] / error if error else np.inf)
        print(f"  weights {weights[row].round(2)}: error {error:.1e}, bound {found.error[row]:.1e}")
    total = np.median(each) * len(weights)
    print(f"one factorisation {np.median(each):.2f} s, {len(weights)} of them {total:.0f} s: "
          f"{total / seconds:.0f} times the basis")  # fmt: skip
    print(f"bound over error: {min(ratios):.1f} to {max(ratios):.1f}")


if __name__ == "__main__":
    main()
