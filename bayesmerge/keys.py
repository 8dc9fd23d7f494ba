"""Random keys as users give them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def as_key(key: Any, name: str = "key", *, batch: bool = False) -> Array:
    """`key`, one of `jax.random.key` or the older `jax.random.PRNGKey`, or an error that says how
    to make one; with `batch` several in leading axes are allowed."""
    if isinstance(key, np.ndarray) and key.dtype == np.uint32:
        key = jnp.asarray(key)
    if not isinstance(key, jax.Array) or not _is_key(key):
        raise TypeError(
            f"{name} is {_shown(key)}, and it must be one of JAX's random keys: write "
            "`jax.random.key(0)`, with any integer for 0."
        )
    shape = key.shape if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.shape[:-1]
    if shape and not batch:
        raise TypeError(
            f"{name} is a batch of keys of shape {shape}, and one is needed: pick one, as "
            f"`{name}[0]`, or map over them by `jax.vmap`."
        )
    return key


def _is_key(key: jax.Array) -> bool:
    is_old = key.dtype == jnp.uint32 and key.shape[-1:] in ((2,), (4,))
    return is_old or jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _shown(key: Any) -> str:
    if isinstance(key, (bool, int, float, str, type(None))):
        return repr(key)
    shape = f" of shape {key.shape} and dtype {key.dtype}" if isinstance(key, jax.Array) else ""
    return f"a {type(key).__name__}{shape}"
