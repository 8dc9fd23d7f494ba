"""Quality of a preview against its cost: mean squared difference of accuracies to joint training
over the gradients spent at every weighting, from every kind of posterior and from zero.

A row per start; a column per number of gradients; 0 is the preview itself.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fast_previews import towards_prior, von
from mnist import CLASSES, FOLDER, Tasks, mnist, tasks

import bayesmerge as bm
from bayesmerge.fit.curvature import Structure
from bayesmerge.previews import Each, Refinement

STEPS = (0, 1, 2, 4, 8)


def laplace(problem: Tasks, structure: Structure) -> dict[str, Any]:
    return {
        t: bm.laplace(x, problem.prior, structure=structure) for t, x in problem.targets.items()
    }


STARTS: dict[str, Callable[[Tasks], dict[str, Any]]] = {
    "zero, prior": lambda problem: dict.fromkeys(problem.targets, problem.prior),
    "isotropic, Laplace": lambda problem: laplace(problem, "isotropic"),
    "diagonal, Laplace": lambda problem: laplace(problem, "diagonal"),
    "diagonal, VON": lambda problem: von(problem, "diagonal"),
    "full, Laplace": lambda problem: laplace(problem, "full"),
    "full, VON": lambda problem: von(problem, "full"),
    "full, towards prior": towards_prior,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--setting", choices=[*CLASSES], default="imbalanced")
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--spacing", type=float, default=0.1)
    parser.add_argument("--starts", nargs="*", choices=[*STARTS], default=[*STARTS])
    options = parser.parse_args()
    problem = tasks(options.setting, mnist(options.data, pool=options.pool, count=options.count))
    weights = bm.simplex_grid(3, options.spacing)
    begin = time.perf_counter()
    joint = bm.joint_training(
        problem.targets, weights, problem.accuracy, problem.prior, progress=False
    )
    print(f"joint training {time.perf_counter() - begin:.0f} s, best {joint.best()}")
    print(f"{options.setting}: {problem.prior.layout.size} parameters, {len(weights)} weightings")
    print(f"{'gradients for each weighting':32}" + "".join(f"{k:9d}" for k in STEPS))
    for name in options.starts:
        posteriors = STARTS[name](problem)
        mses, seconds = [], []
        for k in STEPS:
            begin = time.perf_counter()
            refine = Refinement(problem.targets, steps=k) if k else None
            seen = bm.preview(posteriors, weights, problem.accuracy, problem.prior, modes=Each(),
                              refine=refine, progress=False)  # fmt: skip
            seconds.append(time.perf_counter() - begin)
            mses.append(seen.compare(joint).mse)
        print(f"{name:32}" + "".join(f"{x:9.5f}" for x in mses))
        print(f"{'':32}" + "".join(f"{x:8.0f}s" for x in seconds), flush=True)


if __name__ == "__main__":
    main()
