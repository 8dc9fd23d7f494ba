r"""Products of mixtures, multiplied out.

$\prod_t (\sum_k a_{tk})^{\alpha_t}$, with $a_{tk} = \pi_{tk} q_{tk}$, is for α = 1 the sum of
$\prod_t a_{tk_t}$ over all picks of one component of every mixture. For α ≤ 1 the sum of
$\prod_t a_{tk_t}^{\alpha_t}$ lies above it, by a factor of at most $\prod_t K_t^{1-\alpha_t}$:
a mixture of the same family, from which rejection makes exact draws.
"""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.families.checks import unchecked
from bayesmerge.mixtures.climb import (
    BYTES_AT_ONCE,
    Ridge,
    in_batches,
    is_single,
    minorizer,
    sizes,
    split,
)

MAX_TERMS = 200_000
ROUND = 4096


class Expansion(eqx.Module):
    """Σ over picks of Π_t a_{tk_t}^{α_t}.

    - `ridge`, `exponents`: the factors, so repeated that no exponent of a mixture is above 1.
    - `terms`: α_t at the picked components, shape (n, R).
    - `log_weights`: logarithms of the integrals of the terms up to a constant, shape (n,).
    """

    ridge: Ridge
    exponents: Float[Array, " T"]
    terms: Float[Array, "n R"]
    log_weights: Float[Array, " n"]

    @classmethod
    def of(cls, factors: list[Any], exponents: Float[np.ndarray, " T"]) -> "Expansion":
        """**Raises** `ValueError` for more than `MAX_TERMS` terms, or an improper one."""
        _require_few(factors, exponents)
        factors, powers = _repeated(factors, exponents)
        if all(is_single(q) for q in factors):
            raise ValueError("all exponents of mixtures are 0: nothing is there to multiply out.")
        counts = sizes(factors)
        first = np.cumsum((0, *counts))[:-1]
        picks = first + np.array(list(itertools.product(*map(range, counts))))
        ridge = Ridge.of(factors)
        terms = np.zeros((len(picks), sum(counts)), ridge.at_centre.dtype)
        np.put_along_axis(terms, picks, np.asarray(powers)[None].astype(terms.dtype), axis=1)
        log_weights = _log_integrals(ridge, jnp.asarray(terms))
        if not jnp.all(log_weights < jnp.inf):
            raise ValueError(
                "a term of the product is improper: negative exponents subtract more than the "
                "factors have. Use smaller weights."
            )
        return cls(ridge, jnp.asarray(powers, terms.dtype), jnp.asarray(terms), log_weights)

    def components(self) -> Any:
        """The terms as a batch of normalised posteriors."""
        return jax.vmap(lambda w: minorizer(self.ridge.factors, w))(self.terms)

    def sample(self, key: PRNGKeyArray, count: int) -> PyTree:
        """`count` exact draws of Π_t q_t^{α_t}."""
        kept: list[PyTree] = []
        missing = count
        bytes_each = self.ridge.size() * self.terms.dtype.itemsize
        size = min(ROUND, 2 ** math.ceil(math.log2(count + 1)), max(1, BYTES_AT_ONCE // bytes_each))
        while True:
            key, new = jax.random.split(key)
            draws, accepted = _proposals(self, jax.random.split(new, size))
            index = np.flatnonzero(np.asarray(accepted))[:missing]
            kept.append(jax.tree.map(lambda x, i=index: x[i], draws))
            missing -= len(index)
            if not missing:
                break
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)


@eqx.filter_jit
def _log_integrals(ridge: Ridge, terms: Float[Array, "n R"]) -> Float[Array, " n"]:
    def one(argument: tuple[Array]) -> Array:
        (w,) = argument
        with unchecked():
            term = minorizer(ridge.factors, w)
            mean = term.mean()
            peak = jnp.sum(jnp.where(w != 0, w * ridge.log_joint(mean), 0))
            return jnp.where(term.is_proper(), peak - term.log_prob(mean), jnp.nan)

    return in_batches(ridge, one, (terms,))


@eqx.filter_jit
def _proposals(expansion: Expansion, keys: Array) -> tuple[PyTree, Bool[Array, " n"]]:
    """Draws of the terms, and which of them to keep."""
    ridge = expansion.ridge

    def one(argument: tuple[Array]) -> tuple[PyTree, Array]:
        which, draw, keep = jax.random.split(argument[0], 3)
        w = expansion.terms[jax.random.categorical(which, expansion.log_weights)]
        with unchecked():
            theta = minorizer(ridge.factors, w).sample(draw)
        level = jnp.log(jax.random.uniform(keep, dtype=w.dtype))
        return theta, level < _log_acceptance(expansion, theta)

    return in_batches(ridge, one, (keys,))


def _log_acceptance(expansion: Expansion, theta: PyTree) -> Float[Array, ""]:
    """Σ_t [α_t log Σ_k a_tk − log Σ_k a_tk^{α_t}] ≤ 0."""
    ridge = expansion.ridge
    parts = split(ridge.factors, ridge.log_joint(theta))
    powers = zip(parts, expansion.exponents, strict=True)
    return jnp.sum(jnp.stack([a * logsumexp(part) - logsumexp(a * part) for part, a in powers]))


def _require_few(factors: list[Any], exponents: Float[np.ndarray, " T"]) -> None:
    copies = [(_count(q), math.ceil(a)) for q, a in zip(factors, exponents, strict=True)]
    digits = sum(copy * math.log10(count) for count, copy in copies if count > 1)
    if digits > math.log10(MAX_TERMS) + 1e-9:
        raise ValueError(
            f"multiplied out, mixtures of {[count for count, _ in copies if count > 1]} components "
            f"with exponents {exponents.round(6).tolist()} have 10^{digits:.1f} terms, "
            f"and at most {MAX_TERMS:,} are written out. `truncate` or `reduce` the mixtures."
        )


def _count(factor: Any) -> int:
    return 1 if is_single(factor) else factor.num_components


def _repeated(
    factors: list[Any], exponents: Float[np.ndarray, " T"]
) -> tuple[list[Any], list[float]]:
    """Mixtures of exponent 2.3 as three, of exponents 1, 1 and 0.3; none of exponent 0."""
    repeated: list[Any] = []
    powers: list[float] = []
    for q, exponent in zip(factors, exponents.tolist(), strict=True):
        whole = math.floor(exponent) if _count(q) > 1 else 0
        rest = exponent - whole
        parts = whole * [1.0] + (rest != 0) * [rest]
        repeated += len(parts) * [q]
        powers += parts
    return repeated, powers
