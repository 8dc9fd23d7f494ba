"""Which posterior previews best? Digits of scikit-learn, three tasks, every kind of posterior
against joint training at the same weightings.

For `--tasks classes` the full mixture takes long: try `--components 5 --samples 4 --steps 60
--spacing 0.1`.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import bayesmerge as bm
from bayesmerge.demo import TASKS, Digits, load_digits, softmax_regression
from bayesmerge.fit import elbo, multi_ivon

IVON_STEPS = 6000
PAIRS = ((3, 8), (4, 9), (1, 7))

Fit = Callable[[bm.Target, Any, Array], Any]


def fits(components: int, samples: int, steps: int) -> dict[str, Fit]:
    """Name → posterior of a target."""
    rates = optax.schedules.cosine_decay_schedule(0.02, IVON_STEPS)

    def laplace(structure: Any) -> Fit:
        return lambda target, prior, key: bm.laplace(target, prior, structure=structure)

    def von(structure: Any) -> Fit:
        return lambda target, prior, key: bm.von(
            target,
            prior,
            key=key,
            structure=structure,
            num_samples=samples,
            num_steps=steps,
            progress=False,
        )

    def mixture(structure: Any) -> Fit:
        return lambda target, prior, key: bm.mixture_von(
            target,
            prior,
            key=key,
            num_components=components,
            structure=structure,
            num_samples=samples,
            num_steps=steps,
            start=von(structure)(target, prior, key),
            weight_step_size=1e-3,
            progress=False,
        )

    def ivon(target: bm.Target, prior: Any, key: Array) -> Any:
        return bm.ivon(
            target,
            prior,
            key=key,
            num_steps=IVON_STEPS,
            learning_rate=rates,
            beta2=0.999,
            progress=False,
        )

    def multi(target: bm.Target, prior: Any, key: Array) -> Any:
        return multi_ivon(
            target,
            prior,
            key=key,
            num_runs=components,
            stops=(IVON_STEPS // 2, IVON_STEPS),
            learning_rate=rates,
            beta2=0.999,
            progress=False,
        )

    return {
        "isotropic Laplace": laplace("isotropic"),
        "diagonal Laplace": laplace("diagonal"),
        "full Laplace": laplace("full"),
        "isotropic VON": von("isotropic"),
        "diagonal VON": von("diagonal"),
        "IVON": ivon,
        "MultiIVON": multi,
        "diagonal mixture": mixture("diagonal"),
        "full VON": von("full"),
        "full mixture": mixture("full"),
    }


class Problem(NamedTuple):
    """Tasks, their model's zero parameters, and the test accuracy of parameters."""

    targets: dict[str, bm.Target]
    zero: PyTree
    accuracy: Callable[[PyTree], Float[Array, ""]]


def classes(digits: Digits) -> Problem:
    """Softmax regression of ten classes, tasks of disjoint classes (P = 650)."""
    x, y = digits.test

    def accuracy(params: PyTree) -> Float[Array, ""]:
        return jnp.mean(jnp.argmax(softmax_regression(params, x), axis=1) == y)

    targets = {}
    for name, members in TASKS.items():
        mine = np.isin(np.asarray(digits.train[1]), members)
        data = jax.tree.map(lambda a, mine=mine: a[mine], digits.train)
        targets[name] = bm.Target.supervised(softmax_regression, "categorical", data)
    return Problem(targets, {"W": jnp.zeros((64, 10)), "b": jnp.zeros(10)}, accuracy)


def pairs(digits: Digits) -> Problem:
    """Logistic regression of one digit against another, tasks of separable pairs (P = 65)."""

    def of(data: tuple[Array, Array], pair: tuple[int, int]) -> tuple[Array, Array]:
        x, y = data
        mine = np.isin(np.asarray(y), pair)
        images = jnp.concatenate([x[mine], jnp.ones((mine.sum(), 1))], axis=1)
        return images, (y[mine] == pair[1]).astype(float)

    def predict(w: Array, x: Array) -> Array:
        return x @ w

    tests = [of(digits.test, pair) for pair in PAIRS]

    def accuracy(w: Array) -> Float[Array, ""]:
        return jnp.mean(jnp.stack([jnp.mean((x @ w > 0) == (y > 0.5)) for x, y in tests]))

    targets = {
        f"{a} or {b}": bm.Target.supervised(predict, "bernoulli", of(digits.train, (a, b)))
        for a, b in PAIRS
    }
    return Problem(targets, jnp.zeros(65), accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", choices=("pairs", "classes"), default="pairs")
    parser.add_argument("--precision", type=float, nargs="+", default=[1.0], help="of the prior")
    parser.add_argument("--spacing", type=float, default=0.05)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="names of posteriors")
    options = parser.parse_args()
    problem = {"pairs": pairs, "classes": classes}[options.tasks](load_digits())
    targets, weights = problem.targets, bm.simplex_grid(3, options.spacing)
    for precision in options.precision:
        prior = bm.IsotropicGaussian.from_mean_precision(problem.zero, precision)
        joint = bm.joint_training(targets, weights, problem.accuracy, prior, progress=False)
        print(f"\nprior precision {precision:g}, joint best {joint.best().value:.3f}")
        print(
            f"{'':20}{'MSE':>8}{'rank':>7}{'best':>7}{'joint':>7}{'regret':>8}"
            f"{'bound':>9}{'fit s':>8}{'sweep s':>9}"
        )
        for name, fit in fits(options.components, options.samples, options.steps).items():
            if options.only and name not in options.only:
                continue
            keys = jax.random.split(jax.random.key(0), len(targets))
            start = time.perf_counter()
            q = {
                t: fit(target, prior, key)
                for (t, target), key in zip(targets.items(), keys, strict=True)
            }
            fitted = time.perf_counter()
            seen = bm.preview(q, weights, problem.accuracy, prior, progress=False)
            done = time.perf_counter()
            bound = sum(
                float(elbo(targets[t], q[t], prior, key=jax.random.key(1), num_samples=400))
                for t in targets
            )
            best, against = seen.best(), seen.compare(joint)
            print(
                f"{name:20}{against.mse:8.4f}{against.rank_correlation:7.2f}{best.value:7.3f}"
                f"{joint.values()[best.row]:7.3f}{against.regret:8.3f}{bound:9.1f}"
                f"{fitted - start:8.1f}{done - fitted:9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
