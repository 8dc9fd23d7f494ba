"""A loss from some of its examples, right in value and gradient at one point."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bayesmerge.families.checks import require_finite
from bayesmerge.families.layout import as_arrays
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.optimise import require_target
from bayesmerge.fit.target import JointTarget, Target
from bayesmerge.keys import as_key


def subsampled(
    target: AbstractTarget, size: int, params: PyTree, *, key: PRNGKeyArray
) -> AbstractTarget:
    r"""The loss from n of its N examples S, drawn without replacement, with a linear term that
    makes value and gradient those of all examples at θ̄,

    $$\tilde\ell(\theta) = \hat\ell(\theta) + \ell(\bar\theta) - \hat\ell(\bar\theta)
    + \left(\nabla\ell(\bar\theta) - \nabla\hat\ell(\bar\theta)\right)^\top(\theta - \bar\theta),
    \qquad \hat\ell = \tfrac Nn \sum_{i \in S} \ell_i.$$

    Of use where data are large, as one of the `targets` of a refined `preview` or in `find_mode`,
    which ask for values and gradients: all examples are read once here, and n of them for every
    gradient after it. The gradient's error is the sampling error of the Hessian times the distance
    from θ̄, whereas that of a minibatch alone is as large everywhere. So let θ̄ be a merged model in
    the middle of the weightings: there it is better than a minibatch, and far from there, where one
    task has nearly all weight, it can be worse (docs/results.md). It is no target for `laplace`,
    since the linear term is no example.

    - `target`: ℓ, with its data as arrays, or a NumPyro model whose rows are in a plate that
      subsamples.
    - `size`: n, of every task where `target` is a joint one; from N on the target is as it was.
    - `params`: θ̄.
    - `key`: of the draw.

    **Returns** a target.

    **Raises** `ValueError` for a size below 1, for streams, for NumPyro models without such a
    plate, for `params` of another shape than the loss takes, and where loss or
    gradient there are not finite.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import subsampled
    >>> target = bm.Target(lambda theta, y: (theta - y) ** 2, jnp.arange(100.0))
    >>> few = subsampled(target, 10, jnp.array(50.0), key=jax.random.key(0))
    >>> jax.grad(few.total)(jnp.array(60.0)), jax.grad(target.total)(jnp.array(60.0))
    (Array(2100., dtype=float32, weak_type=True), Array(2100., dtype=float32, weak_type=True))

    ```

    Source: Jordan, Lee & Yang (2019), communication-efficient surrogate likelihoods; GMA §1.5 for
    the steps it makes cheap.
    """
    require_target(target)
    if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size is {size!r}, and it is a number of examples: an integer, ≥ 1.")
    if target.is_streamed:
        raise ValueError("the target is a stream, from which no examples are drawn: pass arrays.")
    key = as_key(key)
    params = require_finite(as_arrays(params, "params")[0], "params")
    target.check(params)
    few = target.minibatch(target.order(key), 0, int(size))
    if few is target:
        return target
    rest = require_finite(_rest(target, few, params), "loss and gradient at params")
    return JointTarget([few, Target(_linear, rest)], [1.0, 1.0])


@eqx.filter_jit
def _rest(target: AbstractTarget, few: AbstractTarget, params: PyTree) -> dict[str, Any]:
    """What `few` lacks of `target` to first order at `params`, as data of one example."""
    difference = jax.tree.map(
        jnp.subtract, target.value_and_gradient(params), few.value_and_gradient(params)
    )
    names = "value", "gradient", "at"
    return {
        n: jax.tree.map(lambda x: x[None], t)
        for n, t in zip(names, (*difference, params), strict=True)
    }


def _linear(params: PyTree, rest: dict[str, Any]) -> Float[Array, " N"]:
    def one(value: Array, gradient: PyTree, at: PyTree) -> Float[Array, ""]:
        return value + tree_dot(gradient, jax.tree.map(jnp.subtract, params, at))

    return jax.vmap(one)(rest["value"], rest["gradient"], rest["at"])
