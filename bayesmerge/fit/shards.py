"""Many shards fitted in one compiled program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bayesmerge.fit.laplace import laplace
from bayesmerge.origins import Origin, origin_of, remember
from bayesmerge.priors import Prior
from bayesmerge.tasks import named

LOOKS_AT_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where Python asks for a number that is being traced."""


def fit_shards(
    targets: Any, prior: Prior = None, method: Callable[[Any, Any], Any] = laplace
) -> dict[str, Any]:
    r"""The posterior of every shard, those of one shape in one compiled, vmapped call.

    - `targets`: ℓ_t, T targets or a mapping from the shards' names to them.
    - `prior`: p_0, the same for all; `None` for a flat one.
    - `method(target, prior)`: a posterior; pass the same function again, and new shards of the same
      shapes cost no compilation. A method that looks at numbers while it runs (`von`, `ivon` and
      others of many steps, or Python code that branches on values) is called for one shard after
      another, as are shards whose data are streams; what it compiles serves all of one shape.

    **Returns** a dictionary from names ("0", "1", … for a sequence) to posteriors, in order.

    **Raises** what `method` raises, with the name of the shard where it is a `ValueError`.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import fit_shards
    >>> def loss(theta, y):
    ...     return 0.5 * (y - theta) ** 2
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> shards = {"a": bm.Target(loss, jnp.array([2.0])), "b": bm.Target(loss, jnp.array([4.0]))}
    >>> {name: f"{q.mode():.3f}" for name, q in fit_shards(shards, prior).items()}
    {'a': '1.000', 'b': '2.000'}

    ```

    Source: none; each fit is that of `method`.
    """
    names, members = named(targets, "targets")
    groups: dict[Any, list[int]] = {}
    for t, member in enumerate(members):
        groups.setdefault(_shape(member), []).append(t)
    fitted: dict[int, Any] = {}
    one_by_one = False
    for group in groups.values():
        if len(group) > 1 and not one_by_one and not members[group[0]].is_streamed:
            arrays = [eqx.filter(members[t], eqx.is_array) for t in group]
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *arrays)
            rest = eqx.filter(members[group[0]], eqx.is_array, inverse=True)
            try:
                batch, holds = _fit_all(method, stacked, rest, prior)
            except LOOKS_AT_VALUES:
                one_by_one = True
            except Exception:
                for t in group:
                    _fit_one(method, names[t], members[t], prior)
                raise
            else:
                for i, t in enumerate(group):
                    fitted[t] = _member(batch, i)
                    if holds is not None:
                        remember(fitted[t], Origin(prior if holds else None))
                continue
        fitted |= {t: _fit_one(method, names[t], members[t], prior) for t in group}
    return {name: fitted[t] for t, name in enumerate(names)}


def _fit_one(method: Callable[[Any, Any], Any], name: str, target: Any, prior: Any) -> Any:
    try:
        return method(target, prior)
    except ValueError as error:
        raise ValueError(f"shard '{name}': {error}") from error


@eqx.filter_jit
def _fit_all(
    method: Callable[[Any, Any], Any], arrays: Any, rest: Any, prior: Any
) -> tuple[Any, bool | None]:
    """The posteriors, and whether they hold the prior, if that is known."""
    holds: bool | None = None

    def one(shard: Any) -> Any:
        nonlocal holds
        q = method(eqx.combine(shard, rest), prior)
        known = origin_of(q)
        if known is not None and known.knows_prior:
            holds = known.prior is not None and _is_one(known.prior, prior)
        return q

    batch = eqx.filter_vmap(one)(arrays)
    return batch, holds


def _is_one(prior: Any, other: Any) -> bool:
    """Whether two priors hold the very same arrays."""
    leaves, others = jax.tree.leaves(prior), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(x is y for x, y in zip(leaves, others, strict=True))


def _member(batch: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, batch)


def _shape(target: Any) -> Any:
    """What two targets must share to be stacked."""
    arrays, rest = eqx.partition(target, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    others, _ = jax.tree.flatten(rest)
    return structure, tuple((x.shape, x.dtype.name) for x in leaves), tuple(map(repr, others))
