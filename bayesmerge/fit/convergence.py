r"""Whether a variational fit has arrived, and whether it is better than what it started from.

Both are asked of draws from q at the end of a fit, and from its start with the same noise. At a
maximum of the evidence lower bound every component c of q has $E_c[\nabla h] = 0$, where
$h = \ell - \log p_0 + \log q$, and all $E_c[h]$ are equal. What is left of that is a step of
natural gradients, in standard deviations of q. The square of an average of noisy gradients is too
large on average; the average of products of different ones is not, and their spread says how noisy
it is.
"""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import ConvergenceWarning
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.abstract_target import AbstractTarget, Loss
from bayesmerge.mixtures.mixture import Mixture

PAIRS = 32
PAIRS_OF_MINIBATCHES = 4
"""Where a fit reads minibatches, a pass over all data costs as much as many steps."""

MUCH = 0.1
"""Standard deviations. An interval of 95 % that is off by a tenth of one covers 94.9 %, and the
bound is 0.005 nats a parameter below its maximum."""

STANDARD_ERRORS = 4.0
"""Of the noise that is no alarm; half as many decide between the end of a fit and its start."""

LAST = 2**32 - 2
"""The number of a step that no fit takes, and with it a key that no step draws from."""


class Evidence(NamedTuple):
    """What J noisy looks at q say.

    - `bounds`: J estimates of the evidence lower bound, up to one constant.
    - `products`: ⟨r_i, r_j⟩/P of the natural-gradient steps r_1 … r_J that remain.
    - `widths`: J estimates of tr(Λ⁻¹Λ*)/P − 1, Λ* the precision that is right by Price's theorem.
    - `kept`: whether they are by the draws that the fit kept. Then the average over these is what
      it minimised, and there is no noise.
    """

    bounds: Float[np.ndarray, " J"]
    products: Float[np.ndarray, "J J"]
    widths: Float[np.ndarray, " J"]
    kept: bool = False

    @property
    def is_finite(self) -> bool:
        return bool(np.all(np.isfinite(self.bounds)) and np.all(np.isfinite(self.products)))

    @property
    def remaining(self) -> tuple[float, float]:
        """The length of the step that remains, in standard deviations, and that which noise alone
        could seem to have."""
        count = len(self.bounds)
        own, total = np.trace(self.products), np.sum(self.products)
        if self.kept:
            return float(np.sqrt(max(total, 0.0)) / count), 0.0
        squared = (total - own) / (count * (count - 1))
        noise = (own - total / count) / (count - 1)
        chance = STANDARD_ERRORS * noise * np.sqrt(2 / (count * (count - 1)))
        return float(np.sqrt(max(squared, 0.0))), float(np.sqrt(max(chance, 0.0)))

    @property
    def spread(self) -> tuple[float, float]:
        """|log sd| that is to come, on average over parameters, and what noise could make of it."""
        if self.kept:
            return float(abs(np.mean(self.widths)) / 2), 0.0
        error = np.std(self.widths, ddof=1) / np.sqrt(len(self.widths))
        return float(abs(np.mean(self.widths)) / 2), float(STANDARD_ERRORS * error / 2)

    def below(self, other: "Evidence") -> tuple[float, float]:
        """By how many nats the bound is below that of another, and what noise could make of it."""
        gap = other.bounds - self.bounds
        if self.kept:
            return float(np.mean(gap)), 0.0
        error = np.std(gap, ddof=1) / np.sqrt(len(gap))
        return float(np.mean(gap)), float(STANDARD_ERRORS / 2 * error)


def settled(
    posterior: Any,
    start: Any,
    last: Evidence,
    first: Evidence,
    *,
    num_steps: int,
    left: float,
    by_price: bool = False,
    step_name: str = "step_size",
    stacklevel: int = 3,
) -> Any:
    """`posterior`, or `start` where that has the higher bound; with a warning where the fit has not
    converged, or lost more of the bound than a tenth of a standard deviation would.

    - `left`: the share of the start's precision that is left in that of the end.
    - `by_price`: whether the precision is to be what Price's theorem says, from which how far it
      has to go is then estimated; otherwise by how far it has come.
    """
    if not last.is_finite and not first.is_finite:
        _warn(
            "the loss is not finite at draws of the posterior, so that the fit cannot be judged: "
            "look for log(0) and overflow in the loss, or start from a narrower posterior.",
            stacklevel,
        )
        return posterior
    lost, chance = last.below(first) if first.is_finite else (-np.inf, 0.0)
    if not last.is_finite:
        lost, chance = np.inf, 0.0
    worth = posterior.layout.size * MUCH**2
    few = len(last.bounds) <= PAIRS_OF_MINIBATCHES and not last.kept
    if lost > chance + worth * few:
        if lost > worth:
            _warn(
                f"after {num_steps} steps the evidence lower bound is {lost:.3g} nats below that "
                "of the start, which is returned instead. Use a smaller "
                f"{step_name}, more num_samples, or another start.",
                stacklevel,
            )
        return start
    away, noise = last.remaining
    spread, unsure = last.spread if by_price else (_spread(posterior, start, left), 0.0)
    if away**2 > MUCH**2 + noise**2 or spread > MUCH + unsure:
        more = f"more num_steps (they were {num_steps})"
        larger = (
            f", or a larger {step_name}" if left > MUCH else ", or another start or coordinates"
        )
        _warn(
            f"after {num_steps} steps the posterior has not converged: the next natural-gradient "
            f"step moves it by {away:.2g} of its standard deviations (root mean square), "
            f"and these have {100 * spread:.2g} % to go. Allow {more}{larger}.",
            stacklevel,
        )
    return posterior


def _spread(posterior: Any, start: Any, left: float) -> float:
    """|log sd| that is still to come, on average over parameters: what is `left` of the start in
    the precision will go as the rest has gone."""
    if left >= 1:
        return 0.0
    ends, begins, weights = (
        np.atleast_1d(x)
        for x in (_entropy(posterior), _entropy(start), getattr(posterior, "weights", 1.0))
    )
    size = posterior.layout.size
    return float(np.sum(weights * np.abs(ends - begins)) / size * left / (1 - left))


def _entropy(q: Any) -> Float[np.ndarray, "..."]:
    return np.asarray((q.components if isinstance(q, Mixture) else q).entropy())


def _warn(message: str, stacklevel: int) -> None:
    warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)


def left_of_start(step_size: Any, num_steps: int) -> float:
    """Π(1 − ρ_t)."""
    if not callable(step_size):
        return float((1 - step_size) ** num_steps)
    if num_steps == 0:
        return 1.0
    sizes = np.asarray(jax.vmap(step_size)(jnp.arange(num_steps)), float)
    return float(np.prod(1 - np.broadcast_to(sizes, (num_steps,))))


class Words(NamedTuple):
    """Keys as numbers, from which the same noise is drawn more than once on purpose."""

    data: Array
    kind: str

    @classmethod
    def of(cls, keys: Array) -> "Words":
        return cls(jax.random.key_data(keys), str(jax.random.key_impl(keys)))

    def keys(self) -> Array:
        return jax.random.wrap_key_data(self.data, impl=self.kind)


class Draws(NamedTuple):
    """How to look at a q of K components: their keys, how many pairs of draws, and whether these
    are the ones that the fit kept."""

    words: Words
    pairs: int
    kept: bool


def fresh_draws(key: PRNGKeyArray, count: int, minibatches: bool) -> Draws:
    """Other draws than any step has seen, few where data are read in minibatches."""
    keys = jax.random.split(jax.random.fold_in(key, LAST), count)
    return Draws(Words.of(keys), PAIRS_OF_MINIBATCHES if minibatches else PAIRS, False)


def kept_draws(keys: Array, num_samples: int) -> Draws:
    """The draws of every step of a fit that does not resample."""
    return Draws(Words.of(keys), num_samples // 2, True)


def compared(
    target: AbstractTarget, prior: Any, last: Any, first: Any, draws: Draws
) -> tuple[Evidence, Evidence]:
    """`evidence` of the end of a fit and of its start, by the same noise."""
    near = last.mean()
    ends, begins = (evidence(target, prior, q, near, draws) for q in (last, first))
    return ends, begins


def evidence(target: AbstractTarget, prior: Any, q: Any, near: PyTree, draws: Draws) -> Evidence:
    """Of a Gaussian or a mixture of Gaussians q, from pairs of draws m ± d of every component. Two
    q with the same `near`, a point to measure the prior from, can be compared."""
    if not isinstance(q, Mixture):
        q = Mixture(jnp.ones(1), jax.tree.map(lambda x: x[None], q))
    look = _look if target.is_streamed else _look_compiled
    bounds, products, widths = map(np.asarray, look(target, prior, q, near, draws))
    return Evidence(bounds.astype(float), products.astype(float), widths.astype(float), draws.kept)


def _look(
    target: AbstractTarget,
    prior: Any,
    q: Mixture,
    near: PyTree,
    draws: Draws,
) -> tuple[Float[Array, " J"], Float[Array, "J J"], Float[Array, " J"]]:
    def drawn(component: Any, mean: PyTree, key: PRNGKeyArray) -> PyTree:
        away = component.deviations(key, draws.pairs)
        return jax.tree.map(lambda m, d: m[None] + d, mean, away)

    thetas = jax.lax.map(lambda one: drawn(*one), (q.components, q.means, draws.words.keys()))
    flat = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), thetas)
    losses, slopes = target.accumulate(jax.tree_util.Partial(_at_each, flat), near)

    def rest(theta: PyTree) -> Float[Array, ""]:
        height = q.log_prob(theta)
        return height if prior is None else height - prior.log_ratio(theta, near)

    heights, pulls = jax.lax.map(jax.value_and_grad(rest), flat)
    sets = 1 if draws.kept else draws.pairs

    def by_set(x: Array) -> Array:
        each = x.shape[0] // (q.num_components * sets)
        return x.reshape(q.num_components, sets, each, *x.shape[1:]).mean(2)

    slopes = jax.tree.map(jnp.add, slopes, pulls)
    centres = jax.tree.map(lambda m: jnp.repeat(m, 2 * draws.pairs, axis=0), q.means)
    along = jax.vmap(tree_dot)(jax.tree.map(jnp.subtract, flat, centres), slopes)
    h, along, slopes = jax.tree.map(by_set, (losses + heights, along, slopes))

    def gram(component: Any, slopes: PyTree) -> Float[Array, "J J"]:
        rows = jax.vmap(component.layout.ravel)(slopes)
        steps = jax.vmap(lambda g: component.layout.ravel(component.solve(g)))(slopes)
        return rows @ steps.T

    away = h - (q.weights @ h)[None]
    grams = jax.lax.map(lambda one: gram(*one), (q.components, slopes))
    products = jnp.tensordot(q.weights, grams, 1)
    products = products + (q.weights[:, None] * away).T @ away
    return -q.weights @ h, products / q.layout.size, q.weights @ along / q.layout.size


_look_compiled = eqx.filter_jit(_look)


def _at_each(
    draws: PyTree, loss: Loss, _: PyTree, batch: PyTree, index: Int[ArrayLike, ""]
) -> tuple[Float[Array, " S"], PyTree]:
    """Loss and gradient at every draw."""
    total = jax.value_and_grad(lambda theta: jnp.sum(loss(theta, batch)))
    return jax.lax.map(total, draws)
