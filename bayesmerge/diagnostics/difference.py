"""How far one Gaussian is from another, parameter by parameter."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.base import AbstractExponentialFamily
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.show import number, safely, table


class Difference(eqx.Module):
    r"""How far a posterior q is from a reference p, parameter by parameter.

    - `shift`: (mode q − mode p) / sd p, shaped as θ.
    - `spread`: sd q / sd p, shaped as θ.
    - `divergence`: KL(p ‖ q), in nats.
    """

    __repr__ = safely(lambda found: _show(found))

    shift: PyTree
    spread: PyTree
    divergence: Float[Array, ""]

    @property
    def largest(self) -> tuple[str, float]:
        """The parameter with the largest shift, and that shift."""
        names, shifts = entries(self.shift)
        worst = int(np.argmax(np.abs(shifts)))
        return names[worst], float(shifts[worst])


def _show(found: Difference) -> str:
    names, shift = entries(found.shift)
    columns = {"shift/sd": shift, "sd ratio": entries(found.spread)[1]}
    return f"Difference: KL divergence {number(found.divergence)} nats\n{table(columns, names)}"


def difference(posterior: Any, reference: Any) -> Difference:
    """How far a Gaussian is from a reference, in the standard deviations of the reference.

    - `posterior`, `reference`: Gaussians, or what `merge` returns with an exact prior.

    **Raises** `ValueError` for improper ones, or other parameters.
    """
    q, p = as_gaussian(posterior), as_gaussian(reference)
    q.layout.require_same(p.layout)
    sds = [jax.tree.map(jnp.sqrt, x.variance()) for x in (q, p)]
    shift = jax.tree.map(lambda x, y, sd: (x - y) / sd, q.mode(), p.mode(), sds[1])
    return Difference(shift, jax.tree.map(jnp.divide, *sds), p.kl_divergence(q))


def as_gaussian(posterior: Any) -> Any:
    """A Gaussian itself, or the Laplace approximation of what is none."""
    if isinstance(posterior, AbstractGaussian):
        return posterior
    if isinstance(posterior, AbstractExponentialFamily) or not hasattr(posterior, "laplace"):
        raise TypeError(
            f"a posterior is a {type(posterior).__name__}, and this diagnostic is one of Gaussians."
        )
    return posterior.laplace()


def entries(theta: PyTree) -> tuple[list[str], Float[np.ndarray, " P"]]:
    """Names and values of all entries: `theta`, `slope`, `effects[3]`."""
    names, values = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        stem = jax.tree_util.keystr(path, simple=True, separator=".") or "theta"
        array = np.asarray(leaf, float)
        for index in np.ndindex(array.shape):
            names.append(stem + (f"[{','.join(map(str, index))}]" if index else ""))
            values.append(array[index])
    return names, np.asarray(values)
