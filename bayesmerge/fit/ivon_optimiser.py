r"""IVON as an optax transformation: a diagonal variational posterior for the price of Adam.

Mean m and Hessian h of q = N(m, 1/(λ(h + δ))), λ = `ess`, δ = `weight_decay`, follow gradients g of
the mean loss at perturbed parameters θ = m + σε, σ = (λ(h + δ))^{−½}.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import is_concrete
from bayesmerge.families.diagonal import DiagonalGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import DiagonalPrecision
from bayesmerge.fit.curvature import require_known
from bayesmerge.fit.noise import normal_like
from bayesmerge.fit.run import Schedule
from bayesmerge.keys import as_key

HessianEstimator: TypeAlias = Literal["price", "squared_gradients"]


class IVONState(NamedTuple):
    """What the optimiser remembers between steps.

    - `steps`: t, the updates taken.
    - `momentum`: a, the moving average of gradients, not debiased, float32.
    - `hessian`: h, the moving average of the mean loss's Hessian, without δ, float32.
    - `ess`, `weight_decay`: λ and δ, that the state alone gives the posterior.
    """

    steps: Int[Array, ""]
    momentum: PyTree
    hessian: PyTree
    ess: Float[Array, ""]
    weight_decay: PyTree


def ivon_optimiser(
    learning_rate: ArrayLike | Schedule,
    ess: ArrayLike,
    *,
    hess_init: Any = 1.0,
    beta1: Any = 0.9,
    beta2: Any = 0.99999,
    weight_decay: ArrayLike | PyTree = 1e-4,
    centre: PyTree | None = None,
    hessian: HessianEstimator = "price",
    clip_radius: Any = math.inf,
    rescale_lr: bool = True,
    debias: bool = True,
) -> Any:
    r"""IVON for any training loop: an optax gradient transformation whose `update` also takes the
    noise at which gradients were found,

    $$\begin{aligned}
    f &= \lambda(h+\delta)\,\overline{\sigma\varepsilon\,g} \;\text{(Price) or}\;
    \lambda\,\overline{g^2}, \qquad a \leftarrow \beta_1a + (1-\beta_1)\bar g,\\
    h &\leftarrow \beta_2h + (1-\beta_2)f + \tfrac12(1-\beta_2)^2\frac{(h-f)^2}{h+\delta},\\
    m &\leftarrow m - \alpha\,\mathrm{clip}\Big(\frac{\hat a + \delta m}{h+\delta},
    \pm\text{radius}\Big), \qquad \hat a = \frac{a}{1-\beta_1^t},
    \end{aligned}$$

    averages over Monte-Carlo samples, α = lr·(h_0 + δ) where rescaled. This is VON's improved step
    for a diagonal and mean losses, with momentum: h + δ stays positive, though h may not.

    - `learning_rate`: lr, or an optax schedule.
    - `ess`: λ, the effective sample size: the number of examples, or less for a wider posterior.
    - `hess_init`: h_0 > 0.
    - `beta1`, `beta2`: β_1, β_2 in [0, 1).
    - `weight_decay`: δ ≥ 0, a number or a pytree shaped as θ. It is a prior of precision λδ.
    - `centre`: θ_0, the mean of that prior; `None` for zero. The decay is then δ(m − θ_0).
    - `hessian`: `"price"` or `"squared_gradients"`, f above.
    - `clip_radius`: of every entry of the preconditioned step, before it is multiplied by α.
    - `rescale_lr`, `debias`: whether α and â are as above, or plainly lr and a.

    **Returns** an `optax.GradientTransformationExtraArgs`; it works inside `jit`, `lax.scan` and
    `optax.chain`. Perturbed parameters are values of their own, so that an exception leaves nothing
    perturbed; the state holds the step's number; a and h are float32 whatever θ is. It is one
    optimiser for all parameters: within `optax.masked` or `optax.MultiSteps` it does not see the
    noise of what it updates; average over samples instead (`ivon_noise(…, num_samples=S)`).

    **Raises** `ValueError` for options out of range.

    ```python
    >>> import jax, jax.numpy as jnp, optax
    >>> from bayesmerge.fit import ivon_noise, ivon_optimiser, ivon_posterior
    >>> def loss(w):
    ...     return jnp.mean((w - jnp.array([1.0, 3.0])) ** 2)
    >>> optimiser = ivon_optimiser(0.1, ess=100, beta2=0.9, weight_decay=0.0)
    >>> def step(carry, key):
    ...     w, state = carry
    ...     noise = ivon_noise(key, w, state)
    ...     grads = jax.grad(loss)(optax.apply_updates(w, noise))
    ...     updates, state = optimiser.update(grads, state, w, noise=noise)
    ...     return (optax.apply_updates(w, updates), state), None
    >>> w = jnp.array([0.0, 0.0])
    >>> keys = jax.random.split(jax.random.key(0), 300)
    >>> (w, state), _ = jax.lax.scan(step, (w, optimiser.init(w)), keys)
    >>> bool(jnp.max(jnp.abs(w - jnp.array([1.0, 3.0]))) < 0.2)
    True
    >>> type(ivon_posterior(w, state)).__name__
    'DiagonalGaussian'

    ```

    Source: Shen et al. (2024), *Variational Learning is Effective for Large Deep Networks*.
    """
    import optax

    require_options(ess, hess_init, beta1, beta2, weight_decay, clip_radius, learning_rate)
    require_known("hessian", hessian, HessianEstimator)

    def init(params: PyTree) -> IVONState:
        momentum = jax.tree.map(lambda m: jnp.zeros_like(m, jnp.float32), params)
        h = jax.tree.map(lambda a: jnp.full_like(a, hess_init), momentum)
        as_float = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
        delta = jax.tree.map(as_float, weight_decay)
        return IVONState(jnp.array(0), momentum, h, as_float(ess), delta)

    def update(
        updates: PyTree,
        state: IVONState,
        params: PyTree = None,
        *,
        noise: PyTree = None,
        **_: Any,
    ) -> tuple[PyTree, IVONState]:
        if params is None or noise is None:
            raise ValueError(
                "update needs `params`, the mean m, and `noise`, as `ivon_noise` draws it: call "
                "`optimiser.update(grads, state, params, noise=noise)` with the gradients at "
                "`optax.apply_updates(params, noise)`."
            )
        given, expected = str(jax.tree.structure(updates)), str(jax.tree.structure(params))
        if given != expected:
            raise ValueError(
                f"gradients have the structure {given}, and parameters {expected}: they must be "
                "the same."
            )
        t = state.steps + 1
        lr = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        lr = jnp.asarray(lr, jnp.float32)
        bias = 1 - beta1 ** t.astype(jnp.float32) if debias else 1.0
        centres, decays = like(centre, params), like(state.weight_decay, params)
        trees = (params, centres, decays, state.momentum, state.hessian, updates, noise)
        leaves = zip(*map(jax.tree.leaves, trees), strict=True)
        moved = [update_leaf(state.ess, lr, bias, *arrays) for arrays in leaves]
        structure = jax.tree.structure(params)
        steps, a, h = (jax.tree.unflatten(structure, part) for part in zip(*moved, strict=True))
        return steps, IVONState(t, a, h, state.ess, state.weight_decay)

    def update_leaf(
        ess: Array,
        lr: Array,
        bias: Any,
        m: Array,
        centre: Any,
        delta: Array,
        a: Array,
        h: Array,
        g: Array,
        noise: Array,
    ) -> tuple[Array, Array, Array]:
        g = g.astype(jnp.float32)
        if g.shape != noise.shape:
            raise ValueError(
                f"gradients have shape {g.shape} and their noise {noise.shape}: take one gradient "
                "at every sample, along the same leading axis."
            )
        product = g**2 if hessian == "squared_gradients" else noise * g
        if g.ndim > h.ndim:
            g, product = jnp.mean(g, axis=0), jnp.mean(product, axis=0)
        f = ess * (product if hessian == "squared_gradients" else (h + delta) * product)
        a = beta1 * a + (1 - beta1) * g
        bent = 0.5 * (1 - beta2) ** 2 * (h - f) ** 2 / (h + delta)
        new_h = beta2 * h + (1 - beta2) * f + bent
        offset = (m - centre).astype(jnp.float32)
        step = (a / bias + delta * offset) / (new_h + delta)
        if clip_radius is not math.inf:
            step = jnp.clip(step, -clip_radius, clip_radius)
        alpha = lr * (hess_init + delta) if rescale_lr else lr
        return (-alpha * step).astype(m.dtype), a, new_h

    return optax.GradientTransformationExtraArgs(init, update)


def ivon_noise(
    key: PRNGKeyArray, params: PyTree, state: Any, num_samples: int | None = None
) -> PyTree:
    r"""The perturbation $\sigma\varepsilon$, $\sigma = (\lambda(h+\delta))^{-1/2}$,
    ε ~ N(0, I), of one or more Monte-Carlo samples.

    - `key`: of the draw; a new one at every step.
    - `params`: m.
    - `state`: of `ivon_optimiser`, or of an `optax.chain` with one in it.
    - `num_samples`: `None` for one sample shaped as θ; S for S in a leading axis, whose gradients
      `jax.vmap` finds. `update` averages over them.

    **Returns** a float32 pytree, to be added: `optax.apply_updates(params, noise)`.

    Source: Shen et al. (2024), algorithm 1, line 1.
    """
    own, key = own_state(state), as_key(key)

    def one(key: PRNGKeyArray) -> PyTree:
        delta = like(own.weight_decay, params)
        draws = jax.tree.map(
            lambda e, h, d: e * jax.lax.rsqrt(own.ess * (h + d)),
            normal_like(key, params),
            own.hessian,
            delta,
        )
        return jax.lax.optimization_barrier(draws)

    if num_samples is None:
        return one(key)
    return jax.vmap(one)(jax.random.split(key, num_samples))


def ivon_posterior(params: PyTree, state: Any) -> DiagonalGaussian:
    r"""The posterior $\mathcal N(m, \mathrm{diag}(\lambda(h + \delta))^{-1})$ that training has
    reached, the prior of precision λδ in it.

    - `params`: m, float32 or wider.
    - `state`: of `ivon_optimiser`, or of an `optax.chain` with one in it.

    **Raises** `TypeError` for half-precision parameters: cast them to float32.
    """
    own, layout = own_state(state), Layout.of(params, "params")
    delta = like(own.weight_decay, params)
    precision = jax.tree.map(
        lambda h, d, m: (own.ess * (h + d)).astype(m.dtype), own.hessian, delta, params
    )
    linear = jax.tree.map(jnp.multiply, precision, params)
    return DiagonalGaussian(linear, DiagonalPrecision(precision, layout))


def own_state(state: Any) -> IVONState:
    """The state of IVON within that of a chain of transformations."""
    is_own = lambda x: isinstance(x, IVONState)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_own) if is_own(x)]
    if len(found) != 1:
        raise TypeError(
            f"state holds {len(found)} states of `ivon_optimiser`, and there must be one: pass "
            "what `optimiser.init(params)` or `optimiser.update` returned."
        )
    return found[0]


def like(tree: PyTree, params: PyTree) -> PyTree:
    """`tree`, or where it is a number (or none, for zero) that number for every leaf."""
    if tree is None:
        return jax.tree.map(lambda _: 0.0, params)
    if jax.tree_util.all_leaves([tree]):
        return jax.tree.map(lambda _: tree, params)
    return tree


def require_options(
    ess: ArrayLike = 1.0,
    hess_init: Any = 1.0,
    beta1: Any = 0.0,
    beta2: Any = 0.0,
    weight_decay: Any = 0.0,
    clip_radius: Any = math.inf,
    learning_rate: Any = 1.0,
) -> None:
    def require_that(holds: Callable[[Any], Any], name: str, value: Any, rule: str) -> None:
        if is_concrete(value) and not all(np.all(holds(x)) for x in jax.tree.leaves(value)):
            raise ValueError(f"{name} is {value}, and it must be {rule}.")

    positive: Callable[[Any], Any] = lambda x: (np.asarray(x) > 0) & np.isfinite(x)  # noqa: E731
    fraction: Callable[[Any], Any] = lambda x: (np.asarray(x) >= 0) & (np.asarray(x) < 1)  # noqa: E731
    require_that(positive, "ess", ess, "positive: the number of examples")
    require_that(positive, "hess_init", hess_init, "positive")
    require_that(fraction, "beta1", beta1, "in [0, 1)")
    require_that(fraction, "beta2", beta2, "in [0, 1)")
    require_that(lambda x: np.asarray(x) > 0, "clip_radius", clip_radius, "positive")
    require_that(lambda x: np.asarray(x) >= 0, "weight_decay", weight_decay, "at least 0")
    if not callable(learning_rate):
        require_that(positive, "learning_rate", learning_rate, "positive, or a schedule")
