"""What is remembered of posteriors that this process has made: the prior in them, and of merged
ones the parts. It is kept beside the objects, by identity, and so is lost by copies, pickles, files
and whatever is computed from them.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from bayesmerge.families.base import AbstractExponentialFamily, unstack
from bayesmerge.families.checks import is_concrete
from bayesmerge.families.gaussian import AbstractGaussian

T = TypeVar("T")


class Origin(NamedTuple):
    """Where a posterior comes from.

    - `prior`: p_0, which it holds once; `None` if it holds none, or a flat one.
    - `knows_prior`: whether that is known.
    - `parts`: of a merged posterior, by task name a function that returns q_t, or `None` where
      that is no longer in memory.
    - `weights`: α, by task name.
    """

    prior: Any
    parts: dict[str, Callable[[], Any]] = {}  # noqa: RUF012
    weights: dict[str, Array] = {}  # noqa: RUF012
    knows_prior: bool = True

    @property
    def has_prior(self) -> bool:
        """Whether it is known to hold a prior that says something."""
        return self.knows_prior and not is_flat(self.prior)

    @property
    def has_no_prior(self) -> bool:
        """Whether it is known to hold none."""
        return self.knows_prior and is_flat(self.prior)


_origins: dict[int, Origin] = {}


def remember(posterior: T, origin: Origin) -> T:
    """`posterior`, with its origin kept as long as it is in memory itself. Posteriors are not kept
    by what was made of them: priors are kept without their own origin, parts not at all."""
    key = id(posterior)
    if key not in _origins:
        weakref.finalize(posterior, _origins.pop, key, None).atexit = False
    _origins[key] = origin._replace(prior=_detached(origin.prior))
    return posterior


def origin_of(posterior: Any) -> Origin | None:
    """Where a posterior comes from, if that is known."""
    return _origins.get(id(posterior))


def prior_of(posterior: Any) -> Any:
    """The prior that a posterior is known to hold, or else `None`."""
    origin = origin_of(posterior)
    return None if origin is None or not origin.has_prior else origin.prior


def parts_of(posteriors: Any, names: tuple[str, ...], members: list[Any]) -> dict[str, Any]:
    """For every task name a function that returns the posterior, without keeping it in memory."""
    if isinstance(posteriors, AbstractExponentialFamily):
        batch = weakref.ref(posteriors)

        def member(t: int) -> Callable[[], Any]:
            return lambda: None if batch() is None else unstack(batch())[t]

        return {name: member(t) for t, name in enumerate(names)}
    return {name: weakref.ref(q) for name, q in zip(names, members, strict=True)}


def is_flat(prior: Any) -> bool:
    """Whether a prior says nothing: none at all, or a Gaussian of precision 0."""
    if prior is None:
        return True
    if not isinstance(prior, AbstractGaussian) or not is_concrete(prior):
        return False
    return not any(np.any(np.asarray(x)) for x in jax.tree.leaves(prior))


def differ(one: Any, other: Any) -> bool:
    """Whether two Gaussian priors are not the same, so far as that is cheap to tell."""
    if one is other or not all(isinstance(p, AbstractGaussian) for p in (one, other)):
        return False
    if not is_concrete((one, other)) or one.layout != other.layout:
        return False
    one, other = one.aligned_with(other)
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    if all(x is y for x, y in pairs):
        return False
    return any(
        np.shape(x) == np.shape(y) and not np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs
    )


def _detached(prior: Any) -> Any:
    """The same prior in a new object, of which no origin is known."""
    leaves, structure = jax.tree.flatten(prior)
    return jax.tree.unflatten(structure, leaves)
