"""Training by any optax optimiser, and the cheapest posterior after it (FP's AdamW-SG)."""

import os
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.checks import require_finite
from bayesmerge.families.layout import as_arrays
from bayesmerge.families.precision import Structure
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind
from bayesmerge.fit.ivon import Trained, starting_point
from bayesmerge.fit.laplace import laplace
from bayesmerge.fit.optimise import as_fitted_prior
from bayesmerge.fit.run import AbstractMethod, run
from bayesmerge.priors import AbstractPrior, Prior


class Training(AbstractMethod):
    """Gradient descent on (ℓ(θ) + R_0(θ))/N as a method of `run`, which calls its
    posterior what are bare parameters.

    - `optimiser`: an optax gradient transformation.
    - `prior`: p_0.
    - `num_examples`: N.
    """

    shown: ClassVar[str] = "loss"
    optimiser: Any
    prior: AbstractPrior
    num_examples: int

    def init(self, start: PyTree) -> Trained:
        """From parameters θ."""
        return Trained(start, self.optimiser.init(start))

    def step(
        self, inner: Trained, target: AbstractTarget, t: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Trained, dict[str, Float[Array, ""]]]:
        """Parameters after a step, and the mean loss per example before it."""
        params, state = inner
        value, gradient = target.value_and_gradient(params)
        pull = self.prior.gradient(params)
        gradient = jax.tree.map(lambda g, r: (g + r) / self.num_examples, gradient, pull)
        updates, state = self.optimiser.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return Trained(params, state), {"loss": value / self.num_examples}

    def posterior(self, inner: Trained) -> PyTree:
        """θ."""
        return inner.params


def adamw_sg(
    target: AbstractTarget,
    prior: Prior = None,
    *,
    key: PRNGKeyArray,
    num_steps: int,
    optimiser: Any = None,
    start: PyTree | None = None,
    structure: Structure = "diagonal",
    curvature: Kind = "squared_gradients",
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
) -> Any:
    r"""Train by any optimiser, then one pass over the data for squared gradients:
    $q_t = \mathcal N(\theta_t, (H_0 + \mathrm{diag}\sum_i(\nabla\ell_i(\theta_t))^2)^{-1})$.

    - `target`: ℓ_t.
    - `prior`: p_0, a Gaussian or an `ExactPrior`; `None` for a flat one. Its gradient is part of
      what is minimised, so leave the optimiser's own weight decay at zero.
    - `key`: of the order of the data.
    - `num_steps`, `batch_size`, `checkpoint`, `progress`: as in `bayesmerge.fit.run`.
    - `optimiser`: an optax gradient transformation for the mean loss per example; by default
      `optax.adamw(1e-3, weight_decay=0.0)`.
    - `start`: θ to start from; by default θ_0.
    - `structure`, `curvature`: as in `laplace`, which makes the posterior.

    **Returns** a Gaussian, with the prior in it.

    **Warns** as `laplace`, with the distance from the mode, where training stopped short.

    ```python
    >>> import jax, jax.numpy as jnp, optax, bayesmerge as bm
    >>> from bayesmerge.fit import adamw_sg
    >>> target = bm.Target(lambda theta, y: 0.5 * (theta - y) ** 2, jnp.array([0.0, 4.0]))
    >>> q = adamw_sg(target, key=jax.random.key(0), num_steps=500, start=jnp.array(0.0),
    ...              optimiser=optax.adam(0.05), progress=False)
    >>> q.mode().round(3), q.precision.value.round(2)  # Σ(2 − y)²
    (Array(2., dtype=float32), Array(8., dtype=float32))

    ```

    Source: FP §3.5 (AdamW-SG).
    """
    import optax

    held = as_fitted_prior(target, prior)
    optimiser = optax.adamw(1e-3, weight_decay=0.0) if optimiser is None else optimiser
    start = require_finite(as_arrays(starting_point(target, prior, start), "start")[0], "start")
    target.check(start)
    method = Training(optimiser, held, target.num_examples)
    params = run(
        method,
        target,
        method.init(start),
        num_steps=num_steps,
        key=key,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    ).posterior
    return laplace(target, prior, params=params, structure=structure, curvature=curvature)
