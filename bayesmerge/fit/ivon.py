r"""IVON: a diagonal variational posterior for the price of Adam.

Mean m and Hessian h of q = N(m, 1/(λ(h + δ))), λ = `ess`, δ = `weight_decay`, follow gradients g of
the mean loss at perturbed parameters θ = m + σε, σ = (λ(h + δ))^{−½}. `ivon_optimiser` is the
update for any training loop, `ivon` a training loop for a `Target`.
"""

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import is_concrete, require_finite
from bayesmerge.families.diagonal import DiagonalGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.mixture import Mixture
from bayesmerge.fit.curvature import require_known
from bayesmerge.fit.noise import normal_like
from bayesmerge.fit.optimise import require_kinds
from bayesmerge.fit.run import AbstractMethod, Run, Schedule, run
from bayesmerge.fit.target import AbstractTarget
from bayesmerge.fit.von import at_step

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
    learning_rate: float | Schedule,
    ess: float | int,
    *,
    hess_init: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.99999,
    weight_decay: float | PyTree = 1e-4,
    centre: PyTree | None = None,
    hessian: HessianEstimator = "price",
    clip_radius: float = math.inf,
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
    perturbed; the state holds the step's number; a and h are float32 whatever θ is.

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

    _require_options(ess, hess_init, beta1, beta2, weight_decay, clip_radius)
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
        t = state.steps + 1
        lr = at_step(learning_rate, state.steps).astype(jnp.float32)
        bias = 1 - beta1 ** t.astype(jnp.float32) if debias else 1.0
        centres, decays = _like(centre, params), _like(state.weight_decay, params)
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
        offset = m.astype(jnp.float32) - centre
        step = (a / bias + delta * offset) / (new_h + delta)
        if math.isfinite(clip_radius):
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
    own = _own(state)

    def one(key: PRNGKeyArray) -> PyTree:
        delta = _like(own.weight_decay, params)
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
    own, layout = _own(state), Layout.of(params, "params")
    delta = _like(own.weight_decay, params)
    precision = jax.tree.map(
        lambda h, d, m: (own.ess * (h + d)).astype(m.dtype), own.hessian, delta, params
    )
    linear = jax.tree.map(jnp.multiply, precision, params)
    return DiagonalGaussian(linear=linear, precision=precision, layout=layout)


class Trained(NamedTuple):
    """Parameters and the state of their optimiser."""

    params: PyTree
    optimiser: Any


class IVON(AbstractMethod):
    """IVON as a method of `run`; see `ivon`, and `ivon_optimiser` for the options. The state is
    `Trained`.

    - `prior`: of precision `ess`·δ, around `centre`.
    - `num_examples`: N of the target, that turns sums into means.

    Source: Shen et al. (2024).
    """

    shown: ClassVar[str] = "loss"
    num_examples: int
    ess: float
    weight_decay: Any
    centre: Any
    learning_rate: float | Schedule = 0.1
    hess_init: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99999
    mc_samples: int = 1
    hessian: HessianEstimator = "price"
    clip_radius: float = math.inf
    rescale_lr: bool = True
    debias: bool = True

    def __check_init__(self) -> None:
        if self.mc_samples < 1:
            raise ValueError(f"mc_samples is {self.mc_samples}, and it must be at least 1.")
        require_known("hessian", self.hessian, HessianEstimator)

    @property
    def optimiser(self) -> Any:
        """The optax transformation."""
        return ivon_optimiser(
            self.learning_rate,
            self.ess,
            hess_init=self.hess_init,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            centre=self.centre,
            hessian=self.hessian,
            clip_radius=self.clip_radius,
            rescale_lr=self.rescale_lr,
            debias=self.debias,
        )

    def init(self, start: Any) -> Trained:
        """From parameters, or from a `DiagonalGaussian` whose precision is taken for λ(h + δ)."""
        if not isinstance(start, AbstractGaussian):
            params = require_finite(as_arrays(start, "start")[0], "start")
            return Trained(params, self.optimiser.init(params))
        params = start.mode()
        state = self.optimiser.init(params)
        h = jax.tree.map(
            lambda precision, d: (precision / self.ess - d).astype(jnp.float32),
            start.precision,
            _like(self.weight_decay, params),
        )
        return Trained(params, state._replace(hessian=h))

    def step(
        self, inner: Trained, target: AbstractTarget, t: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Trained, dict[str, Float[Array, ""]]]:
        """Mean and Hessian after a step, and the mean loss per example at the perturbed θ."""
        m, state = inner
        samples = None if self.mc_samples == 1 else self.mc_samples
        noise = ivon_noise(key, m, state, samples)

        def at(noise: PyTree) -> tuple[Array, PyTree]:
            theta = jax.tree.map(lambda m, e: (m + e).astype(m.dtype), m, noise)
            value, gradient = target.value_and_gradient(theta)
            return jax.tree.map(lambda x: x / self.num_examples, (value, gradient))

        value, gradient = at(noise) if samples is None else jax.lax.map(at, noise)
        updates, state = self.optimiser.update(gradient, state, m, noise=noise)
        m = jax.tree.map(lambda m, u: (m + u).astype(m.dtype), m, updates)
        return Trained(m, state), {"loss": jnp.mean(value)}

    def posterior(self, inner: Trained) -> DiagonalGaussian:
        """q."""
        if inner.optimiser.steps.ndim:
            return jax.vmap(lambda i: ivon_posterior(*i))(inner)
        return ivon_posterior(*inner)


def ivon(
    target: AbstractTarget,
    prior: AbstractGaussian | None = None,
    *,
    key: PRNGKeyArray,
    num_steps: int,
    start: Any = None,
    learning_rate: float | Schedule = 0.1,
    ess: float | int | None = None,
    weight_decay: float | None = None,
    hess_init: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.99999,
    mc_samples: int = 1,
    hessian: HessianEstimator = "price",
    clip_radius: float = math.inf,
    rescale_lr: bool = True,
    debias: bool = True,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> DiagonalGaussian:
    r"""Train a model by IVON: the diagonal variational posterior
    $\mathcal N(m, \mathrm{diag}(\lambda(h+\delta))^{-1})$, at about the cost of AdamW.

    - `target`: ℓ, summed over N examples; IVON sees ℓ/N.
    - `prior`: p_0 = N(θ_0, H_0⁻¹), isotropic or diagonal: δ = H_0/λ, decaying towards θ_0. `None`
      for that of the target, or else a flat one.
    - `key`: of all randomness.
    - `num_steps`: how many steps.
    - `start`: θ to start from (a random initialisation of a network), or a `DiagonalGaussian`, a
      posterior to fine-tune; by default θ_0.
    - `ess`: λ; by default N. Another makes the posterior one of N·(λ/N) examples' worth.
    - `weight_decay`: δ in the place of a prior: N(0, 1/(λδ)).
    - `mc_samples`: Monte-Carlo samples a step.
    - `learning_rate`, `hess_init`, `beta1`, `beta2`, `hessian`, `clip_radius`, `rescale_lr`,
      `debias`: as in `ivon_optimiser`. β_2 remembers about 1/(1 − β_2) steps: h needs as many, so
      lower it for short runs.
    - `batch_size`: examples a step; by default all.
    - `checkpoint`, `progress`: as in `bayesmerge.fit.run`.

    **Returns** a `DiagonalGaussian`, the prior in it, as merging wants it.

    **Warns** where `ess` is not the number of examples, with both.

    **Raises** `ValueError` for options out of range, or both a prior and a weight decay;
    `bayesmerge.fit.DivergenceError` where a step is not finite.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> x, y = jnp.array([[1.0], [2.0], [-1.0]]), jnp.array([1, 1, 0])
    >>> target = bm.Target.supervised(lambda w, x: x @ w, "bernoulli", (x, y))
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(1), 1.0)
    >>> q = bm.ivon(target, prior, key=jax.random.key(0), num_steps=10_000, learning_rate=0.005,
    ...             beta2=0.999, progress=False)
    >>> q.mean().round(1), (10 * q.precision).round()
    (Array([1.], dtype=float32), Array([18.], dtype=float32))

    ```

    Source: Shen et al. (2024); FP §3.5 (IVON-Hess).
    """
    method = _for_target(
        target,
        prior,
        ess,
        weight_decay,
        learning_rate=learning_rate,
        hess_init=hess_init,
        beta1=beta1,
        beta2=beta2,
        mc_samples=mc_samples,
        hessian=hessian,
        clip_radius=clip_radius,
        rescale_lr=rescale_lr,
        debias=debias,
    )
    first = method.init(starting_point(target, prior, start))
    target.check(first.params)
    return run(
        method,
        target,
        first,
        num_steps=num_steps,
        key=key,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    ).posterior


def multi_ivon(
    target: AbstractTarget,
    prior: AbstractGaussian | None = None,
    *,
    key: PRNGKeyArray,
    num_runs: int,
    stops: Sequence[int],
    start: Any = None,
    ess: float | int | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    progress: bool | str = True,
    **options: Any,
) -> Mixture:
    r"""A mixture of diagonal Gaussians from several runs of IVON, each taken at several stopping
    points: K = runs × stops components of equal weight. All runs are one compiled program.

    - `target`, `prior`, `ess`, `weight_decay`, `batch_size`, `progress`: as in `ivon`.
    - `key`: split among the runs, which differ in their noise and in the order of the data.
    - `num_runs`: how many.
    - `stops`: numbers of steps after which every run gives a component, ascending.
    - `start`: as in `ivon`, common to all runs, or a function from a key to such a start.
    - `options`: any others of `ivon`, but for `checkpoint`.

    **Returns** a `Mixture` of `DiagonalGaussian`s.

    **Warns** and **raises** as `ivon`, and `ValueError` for stops that do not ascend.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import multi_ivon
    >>> target = bm.Target(lambda theta, y: (theta**2 - y) ** 2, 4 * jnp.ones(50))  # ±2
    >>> q = multi_ivon(target, key=jax.random.key(0), num_runs=6, stops=(200, 300),
    ...                start=jax.random.normal, learning_rate=0.1, beta2=0.99, progress=False)
    >>> q.num_components, bool(jnp.all(abs(abs(q.means) - 2) < 0.3))
    (12, True)

    ```

    Source: FP §3.5 (MultiIVON-Hess).
    """
    if num_runs < 1 or not stops or list(stops) != sorted(set(stops)) or stops[0] < 1:
        raise ValueError(
            f"num_runs is {num_runs} and stops are {tuple(stops)}: there must be at least one run, "
            "and numbers of steps in ascending order."
        )
    method = _for_target(target, prior, ess, weight_decay, **options)
    keys, start_keys = jax.random.split(key, (2, num_runs))
    start = starting_point(target, prior, start)
    starts = [method.init(start(k) if callable(start) else start) for k in start_keys]
    target.check(starts[0].params)
    first: Any = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    found: list[Run] = []
    for stop in stops:
        state = found[-1].state if found else None
        found.append(
            run(
                method,
                target,
                first,
                num_steps=stop,
                key=keys,
                batch_size=batch_size,
                state=state,
                progress=progress,
            )
        )
    gaussians = [fit.posterior for fit in found]
    components = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *gaussians)
    return Mixture(jnp.ones(components.batch_shape), components)


def _for_target(
    target: AbstractTarget,
    prior: AbstractGaussian | None,
    ess: float | int | None,
    weight_decay: float | None,
    **options: Any,
) -> IVON:
    require_kinds(target, prior)
    prior = target.prior if prior is None else prior
    count = target.num_examples
    if ess is not None and ess != count:
        warnings.warn(
            f"ess is {ess:g}, and the target has {count} examples: the posterior will be that of "
            f"{ess / count:.3g} times the data. Leave ess out for the posterior itself.",
            UserWarning,
            stacklevel=3,
        )
    effective = float(count if ess is None else ess)
    _require_options(ess=effective)
    if prior is None:
        return IVON(count, effective, weight_decay or 0.0, None, **options)
    if weight_decay is not None:
        raise ValueError(
            f"weight_decay is {weight_decay} and there is a prior, which is the same thing: the "
            f"prior N(0, 1/(ess·weight_decay)) has precision {effective * weight_decay:.6g}. Give "
            "one of them."
        )
    if prior.breadth > DiagonalGaussian.breadth:
        raise TypeError(
            f"prior is a {type(prior).__name__}, and IVON's posterior is diagonal: use an "
            "`IsotropicGaussian` or a `DiagonalGaussian`, or `von` for full posteriors."
        )
    decay = jax.tree.map(lambda precision: precision / effective, prior.precision)
    return IVON(count, effective, decay, prior.mode(), **options)


def starting_point(target: AbstractTarget, prior: AbstractGaussian | None, start: Any) -> Any:
    prior = target.prior if prior is None else prior
    if start is not None:
        return start
    if prior is None:
        raise ValueError("without a prior there is nothing to start from: pass `start`.")
    return prior.mode()


def _own(state: Any) -> IVONState:
    """The state of IVON within that of a chain of transformations."""
    is_own = lambda x: isinstance(x, IVONState)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_own) if is_own(x)]
    if len(found) != 1:
        raise TypeError(
            f"state holds {len(found)} states of `ivon_optimiser`, and there must be one: pass "
            "what `optimiser.init(params)` or `optimiser.update` returned."
        )
    return found[0]


def _like(tree: PyTree, params: PyTree) -> PyTree:
    """`tree`, or where it is a number (or none, for zero) that number for every leaf."""
    if tree is None:
        return jax.tree.map(lambda _: 0.0, params)
    if jax.tree_util.all_leaves([tree]):
        return jax.tree.map(lambda _: tree, params)
    return tree


def _require_options(
    ess: float | int = 1.0,
    hess_init: float = 1.0,
    beta1: float = 0.0,
    beta2: float = 0.0,
    weight_decay: Any = 0.0,
    clip_radius: float = math.inf,
) -> None:
    def require_that(holds: bool, name: str, value: Any, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {value}, and it must be {rule}.")

    require_that(0 < ess < math.inf, "ess", ess, "positive: the number of examples")
    require_that(0 < hess_init < math.inf, "hess_init", hess_init, "positive")
    require_that(0 <= beta1 < 1, "beta1", beta1, "in [0, 1)")
    require_that(0 <= beta2 < 1, "beta2", beta2, "in [0, 1)")
    require_that(clip_radius > 0, "clip_radius", clip_radius, "positive")
    if is_concrete(weight_decay):
        smallest = min(float(np.min(x)) for x in jax.tree.leaves(weight_decay))
        require_that(smallest >= 0, "weight_decay", smallest, "at least 0")
