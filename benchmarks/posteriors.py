"""Which posterior previews best? Softmax regression on scikit-learn's digits, tasks of disjoint
classes, every kind of posterior against joint training at the same weightings."""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import bayesmerge as bm
from bayesmerge.demo import TASKS, load_digits, softmax_regression
from bayesmerge.fit import elbo, multi_ivon

Fit = Callable[[bm.Target, Any, Array], Any]


def fits(components: int, samples: int, steps: int) -> dict[str, Fit]:
    """Name → posterior of a target."""
    rates = optax.schedules.cosine_decay_schedule(0.3, 2000)

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
            num_steps=2000,
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
            stops=(1500, 2000),
            learning_rate=rates,
            beta2=0.999,
            batch_size=100,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", type=float, nargs="+", default=[1.0], help="of the prior")
    parser.add_argument("--spacing", type=float, default=0.1)
    parser.add_argument("--components", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", help="names of posteriors")
    options = parser.parse_args()
    digits = load_digits()
    x, y = digits.test

    def accuracy(params: PyTree) -> Float[Array, ""]:
        return jnp.mean(jnp.argmax(softmax_regression(params, x), axis=1) == y)

    targets = {}
    for name, classes in TASKS.items():
        mine = np.isin(np.asarray(digits.train[1]), classes)
        data = jax.tree.map(lambda a, mine=mine: a[mine], digits.train)
        targets[name] = bm.Target.supervised(softmax_regression, "categorical", data)
    weights = bm.simplex_grid(len(TASKS), options.spacing)
    zero = {"W": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    for precision in options.precision:
        prior = bm.IsotropicGaussian.from_mean_precision(zero, precision)
        train = functools.partial(bm.joint_training, targets, weights, accuracy, prior)
        joint = train(progress=False)
        print(f"\nprior precision {precision:g}, joint best {joint.best().value:.3f}")
        print(
            f"{'':20}{'MSE':>8}{'rank':>7}{'best':>7}{'joint':>7}{'regret':>8}"
            f"{'bound':>8}{'fit s':>8}{'sweep s':>9}"
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
            seen = bm.preview(q, weights, accuracy, prior, progress=False)
            done = time.perf_counter()
            bound = sum(
                float(elbo(targets[t], q[t], prior, key=jax.random.key(1), num_samples=400))
                for t in targets
            )
            best, against = seen.best(), seen.compare(joint)
            print(
                f"{name:20}{against.mse:8.4f}{against.rank_correlation:7.2f}{best.value:7.3f}"
                f"{joint.values()[best.row]:7.3f}{against.regret:8.3f}{bound:8.0f}"
                f"{fitted - start:8.1f}{done - fitted:9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
