"""Training by IVON: one posterior, or a mixture of several runs. The update is `ivon_optimiser`."""

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import require_finite
from bayesmerge.families.diagonal import DiagonalGaussian
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.precision import Diagonal, DiagonalPrecision, holds
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.convergence import compared, fresh_draws, settled
from bayesmerge.fit.curvature import require_known
from bayesmerge.fit.ivon_optimiser import (
    HessianEstimator,
    ivon_noise,
    ivon_optimiser,
    ivon_posterior,
    like,
    require_options,
)
from bayesmerge.fit.optimise import as_fitted_prior
from bayesmerge.fit.run import AbstractMethod, Run, Schedule, run
from bayesmerge.fit.target import JointTarget
from bayesmerge.keys import as_key
from bayesmerge.mixtures.mixture import Mixture
from bayesmerge.origins import Origin, remember
from bayesmerge.priors import Prior, as_prior


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
        if not holds(Diagonal(), start.precision.structure):
            raise TypeError(
                f"start is a {type(start).__name__}, and IVON's posterior is diagonal: start from "
                "a `DiagonalGaussian`, or from its `mode()`."
            )
        start = start.structured(Diagonal())
        params = start.mode()
        state = self.optimiser.init(params)
        h = jax.tree.map(
            lambda precision, d: (precision / self.ess - d).astype(jnp.float32),
            start.precision.value,
            like(self.weight_decay, params),
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

    def prior_of(self, like_: DiagonalGaussian) -> DiagonalGaussian | None:
        """N(centre, 1/(λδ)), or `None` where δ is 0 everywhere."""
        mean = like_.mode()
        delta = like(self.weight_decay, mean)
        if not any(np.any(x) for x in jax.tree.leaves(delta)):
            return None
        centre = jax.tree.map(jnp.zeros_like, mean) if self.centre is None else self.centre
        precision = jax.tree.map(lambda d, m: (self.ess * d).astype(m.dtype), delta, mean)
        linear = jax.tree.map(jnp.multiply, precision, centre)
        return DiagonalGaussian(linear, DiagonalPrecision(precision, like_.layout))

    def posterior(self, inner: Trained) -> DiagonalGaussian:
        """q."""
        if inner.optimiser.steps.ndim:
            return jax.vmap(lambda i: ivon_posterior(*i))(inner)
        return ivon_posterior(*inner)


def ivon(
    target: AbstractTarget,
    prior: Prior = None,
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
      for a flat one.
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

    **Returns** a `DiagonalGaussian`, the prior in it, as merging wants it; the one that the start
    stands for, where that has the higher evidence lower bound.

    **Warns** where `ess` is not the number of examples, with both; and with a `ConvergenceWarning`
    as `von`, where the mean or h has not converged.

    **Raises** `ValueError` for options out of range, or both a prior and a weight decay;
    `bayesmerge.fit.DivergenceError` where a step is not finite.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> x, y = jnp.array([[1.0], [2.0], [-1.0]]), jnp.array([1, 1, 0])
    >>> target = bm.Target.supervised(lambda w, x: x @ w, "bernoulli", (x, y))
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.zeros(1), 1.0)
    >>> q = bm.ivon(target, prior, key=jax.random.key(0), num_steps=10_000, learning_rate=0.005,
    ...             beta2=0.999, progress=False)
    >>> q.mean().round(1), q.precision.value.round()
    (Array([1.], dtype=float32), Array([2.], dtype=float32))

    ```

    Source: Shen et al. (2024); FP §3.5 (IVON-Hess).
    """
    key = as_key(key)
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
    last = run(
        method,
        target,
        first,
        num_steps=num_steps,
        key=key,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    ).posterior
    began = method.posterior(first)
    objective = JointTarget([target], [method.ess / method.num_examples])
    draws = fresh_draws(key, 1, target.is_streamed or batch_size is not None)
    posterior = settled(
        last,
        began,
        *compared(objective, method.prior_of(last), last, began, draws),
        num_steps=num_steps,
        left=beta2**num_steps,
        by_price=hessian == "price",
        step_name="learning_rate (for standard deviations a smaller beta2)",
    )
    if weight_decay is not None:
        return posterior
    return remember(posterior, Origin(prior))


def multi_ivon(
    target: AbstractTarget,
    prior: Prior = None,
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

    **Returns** a `Mixture` with diagonal components.

    **Warns** and **raises** as `ivon`, and `ValueError` for stops that do not ascend.

    ```python
    >>> import jax, jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import multi_ivon
    >>> target = bm.Target(lambda theta, y: (theta**2 - y) ** 2, 4 * jnp.ones(50))  # ±2
    >>> q = multi_ivon(target, key=jax.random.key(0), num_runs=6, stops=(600, 800),
    ...                start=jax.random.normal, learning_rate=0.02, beta2=0.99,
    ...                progress=False)
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
    keys, start_keys = jax.random.split(as_key(key), (2, num_runs))
    start = starting_point(target, prior, start)
    starts = [method.init(start(k) if _is_function(start) else start) for k in start_keys]
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
    prior: Prior,
    ess: float | int | None,
    weight_decay: float | None,
    **options: Any,
) -> IVON:
    held = as_fitted_prior(target, prior)
    count = target.num_examples
    if ess is not None and ess != count:
        warnings.warn(
            f"ess is {ess:g}, and the target has {count} examples: the posterior will be that of "
            f"{ess / count:.3g} times the data. Leave ess out for the posterior itself.",
            UserWarning,
            stacklevel=3,
        )
    effective = float(count if ess is None else ess)
    require_options(ess=effective)
    if held.is_flat:
        return IVON(count, effective, weight_decay or 0.0, None, **options)
    if weight_decay is not None:
        raise ValueError(
            f"weight_decay is {weight_decay} and there is a prior, which is the same thing: the "
            f"prior N(0, 1/(ess·weight_decay)) has precision {effective * weight_decay:.6g}. Give "
            "one of them."
        )
    gaussian = held.gaussian
    if gaussian is None or not holds(Diagonal(), gaussian.precision.structure):
        raise TypeError(
            f"prior is a {type(prior).__name__}, and IVON's posterior is diagonal: use an "
            "`IsotropicGaussian` or a `DiagonalGaussian`, or `von` for full posteriors."
        )
    decay = jax.tree.map(lambda precision: precision / effective, gaussian.precision.value)
    return IVON(count, effective, decay, gaussian.mode(), **options)


def starting_point(target: AbstractTarget, prior: Any, start: Any) -> Any:
    held = as_prior(prior)
    start = target.start if start is None else start
    if start is None:
        start = held.start
    elif not _is_function(start):
        layout = start.layout if isinstance(start, AbstractGaussian) else Layout.of(start)
        held.require_layout(layout, "start")
    if start is None:
        raise ValueError("without a prior there is nothing to start from: pass `start`.")
    return start


def _is_function(start: Any) -> bool:
    """Whether `start` makes parameters from a key: a model that can be called has arrays in it."""
    return callable(start) and not jax.tree.leaves(eqx.filter(start, eqx.is_array))
