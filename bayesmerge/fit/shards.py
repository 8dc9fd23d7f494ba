"""Many shards fitted in one compiled program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bayesmerge.families.base import unstack
from bayesmerge.fit.laplace import laplace
from bayesmerge.tasks import named


def fit_shards(targets: Any, method: Callable[[Any], Any] = laplace) -> dict[str, Any]:
    r"""The posterior of every shard, those of one shape in one compiled, vmapped call.

    - `targets`: ℓ_t, T targets or a mapping from the shards' names to them, with data in arrays.
    - `method(target)`: a posterior; pass the same function again, and new shards of the same shapes
      cost no compilation.

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
    for group in groups.values():
        if len(group) == 1:
            fitted[group[0]] = _fit_one(method, names[group[0]], members[group[0]])
            continue
        arrays = [eqx.filter(members[t], eqx.is_array) for t in group]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *arrays)
        rest = eqx.filter(members[group[0]], eqx.is_array, inverse=True)
        try:
            batch = _fit_all(method, stacked, rest)
        except Exception:
            for t in group:
                _fit_one(method, names[t], members[t])
            raise
        fitted |= dict(zip(group, unstack(batch), strict=True))
    return {name: fitted[t] for t, name in enumerate(names)}


def _fit_one(method: Callable[[Any], Any], name: str, target: Any) -> Any:
    try:
        return method(target)
    except ValueError as error:
        raise ValueError(f"shard '{name}': {error}") from error


@eqx.filter_jit
def _fit_all(method: Callable[[Any], Any], arrays: Any, rest: Any) -> Any:
    return jax.vmap(lambda one: method(eqx.combine(one, rest)))(arrays)


def _shape(target: Any) -> Any:
    """What two targets must share to be stacked."""
    arrays, rest = eqx.partition(target, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    others, _ = jax.tree.flatten(rest)
    return structure, tuple((x.shape, x.dtype.name) for x in leaves), tuple(map(repr, others))
