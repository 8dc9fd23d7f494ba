"""Modes of random products of mixtures: which starts find the highest, and after how many steps.

Every local maximum is first found by brute force in NumPy, with none of the library's code: on a
line by a grid and golden sections, in the plane and in five dimensions by plain
expectation-maximisation from hundreds of points (means, merged means, midpoints, random points).
Half of the products have a Gaussian prior with γ ≠ 0, of either sign.
"""

import argparse
import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize_scalar

import bayesmerge as bm

DIMENSIONS, TASKS, COMPONENTS = (1, 2, 5), (2, 3, 4), (2, 5, 20)
SPREADS = {"overlapping": 1.0, "mixed": 3.0, "separated": 8.0}
STARTS = ("blend", "means", "highest")
SLACK = 1e-6
"""How much lower in log-density still counts as the highest mode."""


class RandomProduct:
    """Π_t (Σ_k π_tk N(μ_tk, Λ_tk⁻¹))^{α_t} p_0^γ, with its own density and EM step in NumPy."""

    def __init__(self, seed: int, d: int, T: int, K: int, spread: float, prior: bool):
        rng = np.random.default_rng(seed)
        self.means = spread * rng.normal(size=(T, K, d))
        root = rng.normal(size=(T, K, d, d + 2))
        scale = np.exp(0.5 * rng.normal(size=(T, K, 1, 1))) / (d + 2)
        self.precisions = scale * root @ root.swapaxes(-1, -2)
        self.weights = rng.dirichlet(np.ones(K), size=T)
        self.gamma = rng.choice([-0.3, 0.4]) if prior else 0.0
        self.alpha = (1 - self.gamma) * rng.dirichlet(np.ones(T))
        self.prior_precision = 0.02 * np.eye(d)
        self.rng = rng

    def log_joint(self, x: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "N T K"]:
        away = x[:, None, None] - self.means
        square = np.einsum("ntki,tkij,ntkj->ntk", away, self.precisions, away)
        determinant = np.linalg.slogdet(self.precisions)[1] - x.shape[1] * np.log(2 * np.pi)
        return np.log(self.weights) + 0.5 * (determinant - square)

    def log_density(self, x: Float[np.ndarray, "N d"]) -> Float[np.ndarray, " N"]:
        prior = -0.5 * np.einsum("ni,ij,nj->n", x, self.prior_precision, x)
        return np.logaddexp.reduce(self.log_joint(x), axis=-1) @ self.alpha + self.gamma * prior

    def step(self, x: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "N d"]:
        joint = self.log_joint(x)
        shares = np.exp(joint - np.logaddexp.reduce(joint, axis=-1)[..., None])
        return self.peak(shares * self.alpha[:, None])

    def peak(self, w: Float[np.ndarray, "N T K"]) -> Float[np.ndarray, "N d"]:
        precision = np.einsum("ntk,tkij->nij", w, self.precisions)
        linear = np.einsum("ntk,tkij,tkj->ni", w, self.precisions, self.means)
        return np.linalg.solve(precision + self.gamma * self.prior_precision, linear[..., None])[
            ..., 0
        ]

    def highest(self) -> float:
        return self._on_a_line() if self.means.shape[-1] == 1 else self._by_many_climbs()

    def _on_a_line(self) -> float:
        low, high = self.means.min() - 3, self.means.max() + 3
        grid = np.linspace(low, high, 20001)
        values = np.concatenate(
            [self.log_density(part[:, None]) for part in np.array_split(grid, 10)]
        )
        inner = values[1:-1]
        best = -np.inf
        for i in 1 + np.flatnonzero((inner >= values[:-2]) & (inner >= values[2:])):
            found = minimize_scalar(
                lambda x: -self.log_density(np.array([[x]]))[0],
                bracket=grid[i - 1 : i + 2],
                method="golden",
                tol=1e-12,
            )
            best = max(best, -found.fun)
        return best

    def _by_many_climbs(self) -> float:
        T, K, d = self.means.shape
        every = self.means.reshape(-1, d)
        picks = self.rng.integers(0, K, size=(4000, T))
        merged = self.peak(np.eye(K)[picks] * self.alpha[:, None])
        merged = merged[np.argsort(-self.log_density(merged))[:300]]
        pairs = self.rng.integers(0, len(every), size=(2, 200))
        x = np.concatenate(
            [
                every,
                merged,
                every[pairs].mean(0),
                every[pairs[0]] + self.rng.normal(size=(200, d)),
                every.std() * self.rng.normal(size=(200, d)),
            ]
        )
        moving = np.arange(len(x))
        for _ in range(2000):
            new = self.step(x[moving])
            change = np.abs(new - x[moving]).max(axis=-1)
            x[moving] = new
            moving = moving[change > 1e-8]
            if not len(moving):
                break
        return self.log_density(x).max()

    def merged(self) -> bm.Product:
        mixtures = [
            bm.Mixture(w, jax.vmap(bm.FullGaussian.from_mean_precision)(m, p))
            for w, m, p in zip(
                self.weights, jnp.asarray(self.means), jnp.asarray(self.precisions), strict=True
            )
        ]
        prior = bm.FullGaussian.from_mean_precision(
            jnp.zeros(self.means.shape[-1]), jnp.asarray(self.prior_precision)
        )
        return bm.merge(mixtures, jnp.asarray(self.alpha), prior)


class Outcome(NamedTuple):
    found: dict[str, bool]
    modes: int
    gradient: float
    plain: Float[np.ndarray, " S"]
    accelerated: Float[np.ndarray, " S"]
    unfinished: tuple[int, int]


@eqx.filter_jit
def scaled_gradients(product: bm.Product, params: Float[Array, "S d"]) -> Float[Array, " S"]:
    """√(gᵀΛ⁻¹g/P) with the gradient of the density by automatic differentiation."""

    def one(theta: Array) -> Array:
        gradient = jax.grad(product.log_density)(theta)
        return jnp.sqrt(product.minorizer(theta).squared_length(gradient) / theta.size)

    return jax.lax.map(one, params)


def outcome(case: RandomProduct) -> Outcome:
    product, highest = case.merged(), case.highest()
    ends = {name: product.maxima(name) for name in STARTS}
    found = {name: bool(end.log_density[0] > highest - SLACK) for name, end in ends.items()}
    plain, fast = product.maxima("means", accelerate=False), ends["means"]
    done = np.asarray(fast.converged)
    unfinished = int((~done).sum()), int((~plain.converged).sum())
    return Outcome(
        found,
        len(fast.distinct()),
        float(np.max(np.asarray(scaled_gradients(product, fast.params))[done])),
        np.asarray(plain.steps),
        np.asarray(fast.steps),
        unfinished,
    )


def quantiles(steps: Array) -> str:
    return "".join(f"{q:8.0f}" for q in np.quantile(steps, [0.1, 0.5, 0.9, 0.99, 1.0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=12, help="products of each kind")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    outcomes: dict[tuple[int, str], list[Outcome]] = {}
    for d, T, K in itertools.product(DIMENSIONS, TASKS, COMPONENTS):
        jax.clear_caches()
        for (name, spread), i in itertools.product(SPREADS.items(), range(options.repeats)):
            case = RandomProduct(1000 * i + 10 * d + T, d, T, K, spread, prior=i % 2 == 1)
            outcomes.setdefault((d, name), []).append(outcome(case))
    names = "".join(f"{name:>9}" for name in STARTS)
    print(f"{'highest mode found from':28}{names}{'modes':>8}{'cases':>7}")
    every = [o for group in outcomes.values() for o in group]
    for (d, name), group in [*outcomes.items(), ((0, "all"), every)]:
        rates = [np.mean([o.found[s] for o in group]) for s in every[0].found]
        row = "".join(f"{100 * rate:8.1f}%" for rate in rates)
        modes = np.mean([o.modes for o in group])
        print(f"{f'{d} dimensions, {name}':28}{row}{modes:8.1f}{len(group):7}")
    print(f"largest gradient of a converged climb: {max(o.gradient for o in every):.1e}")
    print(f"climbs not converged: {sum(o.unfinished[0] for o in every)} accelerated, "
          f"{sum(o.unfinished[1] for o in every)} plain, "
          f"of {sum(len(o.plain) for o in every)}")  # fmt: skip
    print(f"{'steps, quantiles':28}{'10 %':>8}{'50 %':>8}{'90 %':>8}{'99 %':>8}{'all':>8}")
    for (d, name), group in [*outcomes.items(), ((0, "all"), every)]:
        for kind in ("plain", "accelerated"):
            steps = np.concatenate([getattr(o, kind) for o in group])
            print(f"{f'{d} dimensions, {name}, {kind}':40}{quantiles(steps)}")


if __name__ == "__main__":
    main()
