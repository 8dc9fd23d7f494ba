"""Every entry of θ by itself: probabilities, quantiles, and SciPy's distributions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from bayesmerge.families.checks import is_concrete, require
from bayesmerge.families.layout import Layout


def in_float64(tree: PyTree) -> list[Float[np.ndarray, "..."]]:
    """The leaves."""
    return [np.asarray(leaf, float) for leaf in jax.tree.leaves(tree)]


def probabilities(p: ArrayLike | Sequence[Any]) -> Any:
    """`p`, in float64 where it is known, or an error where it is no probability."""
    message = "p holds probabilities, which lie in [0, 1] (95% is 0.95)."
    if not is_concrete(p):
        p = jnp.asarray(p, float)
        return require(p, jnp.all((p >= 0) & (p <= 1)), message)
    known = np.asarray(p, float)
    outside = known[~((known >= 0) & (known <= 1))]
    if outside.size:
        raise ValueError(f"{message} It holds {outside.flat[0]:.6g}.")
    return known


def normal_quantile(p: ArrayLike | Sequence[Any]) -> Float[np.ndarray, "..."] | Array:
    """Φ⁻¹(p), in float64 where p is known: 1 − 10⁻¹⁰ is 1 in float32."""
    known = probabilities(p)
    if isinstance(known, np.ndarray):
        from scipy.special import ndtri

        return np.asarray(ndtri(known))
    return jax.scipy.special.ndtri(known)


def quantiles(
    marginals: list[Any], p: ArrayLike | Sequence[Any], layout: Layout, batch_ndim: int = 0
) -> PyTree:
    """Of distributions with a `ppf`, one for each leaf, with the axes of `p` between those of a
    batch and the leaf's own."""
    if not is_concrete(p):
        raise ValueError(
            "p is being traced, and these quantiles are SciPy's: call this outside of `jax.jit`, "
            "`vmap` and `grad`."
        )
    known = probabilities(p)

    def of(marginal: Any, shape: tuple[int, ...], dtype: str) -> Array:
        found = marginal.ppf(known.reshape(known.shape + (1,) * (batch_ndim + len(shape))))
        found = np.moveaxis(found, range(known.ndim), range(batch_ndim, batch_ndim + known.ndim))
        return jnp.asarray(found, dtype)

    leaves = map(of, marginals, layout.shapes, layout.dtypes)
    return jax.tree.unflatten(layout.structure, list(leaves))
