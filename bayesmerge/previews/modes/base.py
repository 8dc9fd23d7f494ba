"""What a way of finding the modes of many merges is, and what it returns."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from bayesmerge.previews.modes.merges import Merges

BYTES_AT_ONCE = 2**28


class Start(NamedTuple):
    """A merged model.

    - `theta`: θ̂, the mode.
    - `colour`: u ↦ Λ^{-½}u with Λ the precision of the merged posterior, or of one nearby where
      modes are refined and not drawn from: coordinates θ̂ + Λ^{-½}u in which it is a standard
      normal distribution. `None` where neither is asked for.
    """

    theta: PyTree
    colour: Callable[[PyTree], PyTree] | None = None


class Group(NamedTuple):
    """Weightings for which one compiled program finds the models.

    - `find`: `find(models, w)` is a `Start`, for every w along the leading axis of `weightings`.
    - `models`, `weightings`: pytrees of arrays.
    - `rows`: the numbers of these weightings among all.
    - `at_once`: how many may be computed at once, so that memory suffices.
    """

    find: Callable[[Any, Any], Any]
    models: Any
    weightings: PyTree
    rows: Int[np.ndarray, " R"]
    at_once: int


class Sweep(NamedTuple):
    """The modes of all weightings.

    - `groups`: of weightings, together all of them.
    - `error`: bounds on ‖θ̂ − θ‖/‖θ‖, shape (A,), or `None` for exact modes.
    """

    groups: list[Group]
    error: Float[np.ndarray, " A"] | None = None


class Obstacle(NamedTuple):
    """Why a way does not find the modes of these merges: text that completes "modes=Way(), and …",
    with what to do instead."""

    reason: str


Found: TypeAlias = Sweep | Obstacle


class AbstractModes(eqx.Module):
    """A way of finding the modes of many merges. Its fields are its options.

    A new one is a subclass with three methods, passed as `preview(…, modes=…)`; `Fastest` chooses
    it where it is among its `ways`.
    """

    @abc.abstractmethod
    def obstacle(self, merges: Merges) -> str | None:
        """Why it does not apply to these merges, as in `Obstacle`, or `None`. Nothing large is
        computed to know."""

    @abc.abstractmethod
    def pays(self, merges: Merges) -> bool:
        """Whether it is fast for these merges where it applies: faster than `Each`."""

    @abc.abstractmethod
    def sweep(self, merges: Merges, progress: bool | str) -> Found:
        """The modes, or what has turned out to be in the way.

        - `progress`: whether to show a bar, where the search takes long.
        """

    def attempt(self, merges: Merges, progress: bool | str) -> Found:
        """The modes, or what is in the way."""
        reason = self.obstacle(merges)
        return self.sweep(merges, progress) if reason is None else Obstacle(reason)


def within_memory(model: PyTree) -> int:
    """How many models, or merged posteriors, with the shapes of `model` fit into 256 MB."""
    return max(1, BYTES_AT_ONCE // sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model)))


def colouring(posterior: Any) -> Callable[[PyTree], PyTree] | None:
    """u ↦ Λ^{-½}u of a Gaussian; `None` of other posteriors, which have none."""
    return posterior.colouring() if hasattr(posterior, "colouring") else None
