"""Many shards fitted in one compiled program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bayesmerge.families.checks import is_concrete
from bayesmerge.fit.laplace import laplace
from bayesmerge.origins import Origin, origin_of, remember
from bayesmerge.tasks import named

TARGETS = "that of each target"

LOOKS_AT_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where Python asks for a number that is being traced."""


def fit_shards(targets: Any, method: Callable[[Any], Any] = laplace) -> dict[str, Any]:
    r"""The posterior of every shard, those of one shape in one compiled, vmapped call.

    - `targets`: ℓ_t, T targets or a mapping from the shards' names to them.
    - `method(target)`: a posterior; pass the same function again, and new shards of the same shapes
      cost no compilation. A method that looks at numbers while it runs (`von`, `ivon` and others
      of many steps, or Python code that branches on values) is called for one shard after another,
      as are shards whose data are streams; what it compiles serves all shards of one shape.

    **Returns** a dictionary from names ("0", "1", … for a sequence) to posteriors, in order.

    **Raises** what `method` raises, with the name of the shard where it is a `ValueError`.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import fit_shards
    >>> def loss(theta, y):
    ...     return 0.5 * (y - theta) ** 2
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 1.0)
    >>> shards = {"a": bm.Target(loss, jnp.array([2.0]), prior=prior),
    ...           "b": bm.Target(loss, jnp.array([4.0]), prior=prior)}
    >>> {name: f"{q.mode():.3f}" for name, q in fit_shards(shards).items()}
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
                batch, knows, own = _fit_all(method, stacked, rest)
            except LOOKS_AT_VALUES:
                one_by_one = True
            except Exception:
                for t in group:
                    _fit_one(method, names[t], members[t])
                raise
            else:
                for i, t in enumerate(group):
                    fitted[t] = _member(batch, i)
                    if knows:
                        remember(fitted[t], Origin(members[t].prior if own is TARGETS else own))
                continue
        fitted |= {t: _fit_one(method, names[t], members[t]) for t in group}
    return {name: fitted[t] for t, name in enumerate(names)}


def _fit_one(method: Callable[[Any], Any], name: str, target: Any) -> Any:
    try:
        return method(target)
    except ValueError as error:
        raise ValueError(f"shard '{name}': {error}") from error


@eqx.filter_jit
def _fit_all(method: Callable[[Any], Any], arrays: Any, rest: Any) -> tuple[Any, bool, Any]:
    """The posteriors, whether it is known what prior is in them, and that prior."""
    origin = Origin(None, knows_prior=False)

    def one(shard: Any) -> Any:
        nonlocal origin
        target = eqx.combine(shard, rest)
        q = method(target)
        known = origin_of(q)
        if known is None or not known.knows_prior:
            return q
        if known.prior is None or is_concrete(known.prior):
            origin = Origin(known.prior)
        elif _is_one(known.prior, target.prior):
            origin = Origin(TARGETS)
        return q

    batch = eqx.filter_vmap(one)(arrays)
    return batch, origin.knows_prior, origin.prior


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
