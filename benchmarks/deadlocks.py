"""Whether public calls with several batches of factorisations end, on as few threads as cores.

Each case runs in a process of its own, `--repeats` times, without NPROC and within `--limit`
seconds. The programs that it compiled are read as well: `batches` counts LAPACK calls of more than
one matrix, any two of which can deadlock before jax 0.12.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.pop("NPROC", None)

SIZES, COMPONENTS = (5, 37, 200), (2, 6, 20)
BATCH = re.compile(r'@lapack_\w+.*num_batch_dims = "[1-9]')


def cases(P: int, K: int) -> dict[str, Callable[[int], object]]:
    """Functions of the number of the repeat."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import bayesmerge as bm
    from bayesmerge.fit import fit_shards, moment_matched
    from bayesmerge.previews import Basis, Compute, Each, Refinement, Spread

    rng, key = np.random.default_rng(0), jax.random.key(0)

    def gaussian() -> bm.FullGaussian:
        A = rng.normal(size=(P, P)) / np.sqrt(P)
        return bm.FullGaussian.from_mean_precision(rng.normal(size=P), A @ A.T + np.eye(P))

    def posteriors() -> list[bm.FullGaussian]:
        return [gaussian() for _ in range(3)]

    def mixtures() -> list[bm.Mixture]:
        return [bm.Mixture(np.ones(K), [gaussian() for _ in range(K)]) for _ in range(3)]

    def weights(i: int) -> list[float]:
        return [0.5, 0.3, 0.2 + 0.01 * i]

    def supervised() -> bm.Target:
        x = rng.normal(size=(4 * P, P))
        return bm.Target.supervised(logits, "bernoulli", (x, rng.integers(2, size=4 * P)))

    def logits(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w

    p0 = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(P), 1.0)
    grid = bm.simplex_grid(3, 0.25)
    four = jax.jit(
        lambda q, W: (
            [bm.merge(q, W + 0.1 * i).mode() for i in range(4)]
            + [bm.merge(q, W).covariance(), bm.merge(q, W).kl_divergence(q[0])]
        )
    )
    fits = jax.jit(jax.vmap(lambda y: bm.laplace(bm.Target(half_square, y), p0).mode()))
    noise = jnp.asarray(rng.normal(size=(K, 3, P)))
    square = lambda w: jnp.sum(w**2)  # noqa: E731

    def preview_of(q: list, **options: object) -> Callable[[int], object]:
        return lambda i: bm.preview(
            q, grid, square, p0, progress=False, compute=Compute(None, 4 + i % 2), **options
        )

    def refined() -> Callable[[int], object]:
        targets = {str(t): supervised() for t in range(3)}
        q = {t: bm.laplace(target, p0) for t, target in targets.items()}
        refine = Refinement(targets)
        return lambda i: bm.preview(q, grid, square, p0, refine=refine, progress=False)

    def shards() -> Callable[[int], object]:
        targets, ones = {str(t): supervised() for t in range(3)}, [1.0, 1.0, 1.0]

        def call(i: int) -> object:
            merged = bm.merge(fit_shards(targets, p0), ones, p0)
            return bm.refine(targets, merged, ones, p0, steps=1)

        return call

    matched = jax.jit(jax.vmap(moment_matched))

    def mcmc(i: int) -> object:
        return matched(jnp.asarray(rng.normal(size=(3, 4 * P, P)))).mode()

    def with_mixtures(call: Callable[[list[bm.Mixture], int], object]) -> Callable[[], object]:
        def make() -> Callable[[int], object]:
            q = mixtures()
            return lambda i: call(q, i)

        return make

    def fitted(call: Callable[[bm.Target, jax.Array], object]) -> Callable[[], object]:
        def make() -> Callable[[int], object]:
            target = supervised()
            return lambda i: call(target, jax.random.fold_in(key, i))

        return make

    return {
        "merge.mode": with_mixtures(lambda q, i: bm.merge(q, weights(i)).mode()),
        "merge.maxima": with_mixtures(lambda q, i: bm.merge(q, weights(i)).maxima().params),
        "merge.laplace": with_mixtures(lambda q, i: bm.merge(q, weights(i)).laplace().mode()),
        "mixture.sample": with_mixtures(lambda q, i: q[0].sample(jax.random.key(i), (5,))),
        "mixture.collapse": with_mixtures(lambda q, i: q[i % 3].collapse().mode()),
        "mixture.reduce": with_mixtures(lambda q, i: q[i % 3].reduce(1).means),
        "preview mixtures": lambda: preview_of(mixtures()),
        "preview each": lambda: preview_of(posteriors(), modes=Each()),
        "preview basis": lambda: preview_of(posteriors(), modes=Basis()),
        "preview spread": lambda: preview_of(posteriors(), spread=Spread(3, key)),
        "preview refined": refined,
        "user's jit": lambda: (lambda q: lambda i: four(q, jnp.asarray(grid, float) + 0.001 * i))(
            posteriors()
        ),
        "vmap laplace": lambda: lambda i: fits(noise + i),
        "shards, refine": shards,
        "mixture_von": fitted(
            lambda t, k: (
                bm.mixture_von(t, p0, key=k, num_components=K, num_steps=2, progress=False).means
            )
        ),
        "von": fitted(
            lambda t, k: bm.von(t, p0, key=k, num_steps=2, curvature="price", progress=False).mode()
        ),
        "leave_out": fitted(lambda t, k: bm.leave_out(t, None, p0)),
        "influence": fitted(lambda t, k: bm.influence(t, p0)),
        "moments": lambda: mcmc,
    }


def half_square(w: "jax.Array", y: "jax.Array") -> "jax.Array":  # noqa: F821
    return 0.5 * ((y - w[None]) ** 2).sum(-1)


def run(name: str, P: int, K: int, repeats: int) -> None:
    import jax

    warnings.simplefilter("ignore")
    call = cases(P, K)[name]()
    for i in range(repeats):
        jax.block_until_ready(jax.tree.leaves(call(i)))
        print("done", i, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--limit", type=float, default=300.0)
    parser.add_argument("--size", type=int, nargs="*", default=SIZES)
    parser.add_argument("--components", type=int, nargs="*", default=COMPONENTS)
    parser.add_argument("--case", nargs="*")
    parser.add_argument("--run", nargs=3)
    arguments = parser.parse_args()
    if arguments.run:
        name, P, K = arguments.run
        run(name, int(P), int(K), arguments.repeats)
        return
    names = arguments.case or list(cases(2, 2))
    bad = 0
    print(f"{'call':20}{'P':>5}{'K':>4}{'finished':>12}{'seconds':>9}{'batches':>9}")
    for name in names:
        for P in arguments.size:
            for K in arguments.components:
                bad += not one(name, P, K, arguments.repeats, arguments.limit)
    sys.exit(1 if bad else 0)


def one(name: str, P: int, K: int, repeats: int, limit: float) -> bool:
    """A row of the table: all repeats in a process of their own."""
    command = [sys.executable, __file__, "--repeats", str(repeats), "--run", name, str(P), str(K)]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_DUMP_IR_TO": folder}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit
            )
            out, error = done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            out, error = (late.stdout or b"").decode(), "no end within the limit"
        batches = sum(len(BATCH.findall(path.read_text())) for path in Path(folder).rglob("*.mlir"))
    finished = out.count("done")
    seconds = time.perf_counter() - start
    shown = f"{finished} of {repeats}"
    print(f"{name:20}{P:5}{K:4}{shown:>12}{seconds:9.0f}{batches:9}", flush=True)
    if finished < repeats:
        print("    " + (error.strip().splitlines() or ["no output"])[-1], flush=True)
    return finished == repeats and batches == 0


if __name__ == "__main__":
    main()
