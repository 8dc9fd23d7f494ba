"""Laplace's approximation: N(θ_t, (H_0 + H_t)⁻¹) at the mode θ_t, with the curvature there or, for
merging, on the way to where merged models are."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bayesmerge.families.checks import (
    ConvergenceWarning,
    all_finite,
    require,
    require_finite,
    tell,
)
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays, as_point
from bayesmerge.families.precision import (
    AbstractPrecision,
    AbstractStructure,
    Full,
    Structure,
    as_structure,
)
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.absorb import absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind, precision_of
from bayesmerge.fit.expand import quadratic
from bayesmerge.fit.optimise import (
    NEGLIGIBLE,
    Method,
    Mode,
    Objective,
    as_fitted_prior,
    search,
)
from bayesmerge.fit.undetermined import explained
from bayesmerge.origins import Origin, remember
from bayesmerge.priors import AbstractPrior, Prior

FAR = 1e4
"""Distance of `towards` from the mode, in posterior standard deviations, that is a mistake."""

NODES, NODE_WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(3))
"""Of the integral over s ∈ [0, 1] by Gauss and Legendre: s − ½, and the weights."""


def laplace(
    target: AbstractTarget,
    prior: Prior = None,
    *,
    structure: Structure = "full",
    curvature: Kind | None = None,
    params: PyTree | None = None,
    towards: PyTree | None = None,
    start: PyTree | None = None,
    include_prior: bool = True,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
    block_size: int | None = None,
    max_steps: int = 2000,
) -> AbstractGaussian:
    r"""The Laplace posterior of a task,
    $q_t = \mathcal N(\theta_t, (H_0 + H_t)^{-1})$ with
    $\theta_t = \arg\min_\theta \ell_t(\theta) + \tfrac12\|\theta-\theta_0\|^2_{H_0}$.

    - `target`: ℓ_t, with per-example losses that are summed.
    - `prior`: p_0 = N(θ_0, H_0⁻¹), or an `ExactPrior`, whose Hessian at θ_t is then H_0; `None` for
      a flat one, with which data that leave θ undetermined (separable classes) have no mode: the
      search drifts until the loss is flat, and the variance found is as large as the drift.
    - `structure`: of H_t, `"full"`, `"diagonal"`, `"isotropic"`, or `Blocks()` for a matrix for
      each leaf of θ. The posterior is of the smallest family that also holds the prior.
    - `curvature`: H_t, `"hessian"`, `"ggn"`, `"fisher"` or `"squared_gradients"` (see
      `bayesmerge.curvature`). By default the GGN for supervised targets, which is never
      indefinite, and the Hessian for others.
    - `params`: θ_t, where you have trained already; it is then taken as the mode. Of models that
      were stopped early merge `prior * expand(target, params)` instead, which keeps the gradient.
    - `towards`: θ̄, for merging: H_t is then the curvature averaged over the way to it,
      $H_t = \int_0^1 \nabla^2\ell_t(\theta_t + s(\bar\theta - \theta_t))\,ds$, from three
      curvatures. By default that at θ_t.
    - `start`: where to start the search for θ_t otherwise; by default as `find_mode`.
    - `include_prior`: `False` for the likelihood factor alone, q_t/p_0, with precision H_t and
      linear term H_tθ_t + H_0(θ_t − θ_0) = H_tθ_t − ∇ℓ_t(θ_t), which is not H_tθ_t (misprint 5).
    - `num_samples`, `key`, `block_size`: as in `bayesmerge.curvature`.
    - `max_steps`: of the optimiser.

    **Which curvature.** At θ_t it describes the posterior near its mode, which is what removal,
    uncertainty and tasks that agree need. Tasks that do not agree, such as classifiers of other
    classes, are merged far from every θ_t, where the loss has long left its parabola. By GM-8 a
    merge is exact where H_t(θ* − θ_t) is the change of ∇ℓ_t from θ_t to the jointly trained θ*, as
    it is for the Hessian averaged over that way (and so for the GGN of models that are linear in θ,
    with the likelihoods that have names). θ* is not known, but the mode of the prior,
    `towards=prior.mode()`, or an average of all θ_t is often near enough to make previews by full
    matrices several times better. Diagonals can get worse (docs/results.md).

    **Returns** a Gaussian: `IsotropicGaussian`, `DiagonalGaussian`, `BlockGaussian` or
    `FullGaussian`.

    Not differentiable: gradients through the search for θ_t are not defined.

    **Warns** when θ_t is further than 0.01 posterior standard deviations (root mean square over the
    parameters, by the curvature used) from the mode, and says how far; and when `towards` is
    further than 10⁴.

    **Raises** `ValueError` for a loss that is not per example, data or parameters that are not
    finite, `towards` of another shape than θ, and a curvature that with the prior is not positive
    definite.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> def loss(theta, batch):
    ...     x, y = batch
    ...     return 0.5 * (x @ theta - y) ** 2
    >>> target = bm.Target(loss, (jnp.array([[1.0], [2.0]]), jnp.array([1.0, 3.0])))
    >>> prior = bm.FullGaussian.from_mean_precision(jnp.zeros(1), jnp.eye(1))
    >>> q = bm.laplace(target, prior)
    >>> f"{q.mode()[0]:.4f}", q.precision.value
    ('1.1667', Array([[6.]], dtype=float32))

    ```

    Source: GM equations 6 and 9; GMA Theorem 1; FP §3; GM equation 8 for `towards`.
    """
    held = as_fitted_prior(target, prior)
    loss, gaussian = absorb(target, held)
    entries = as_structure(structure)
    kind: Kind = curvature or ("ggn" if target.has_model else "hessian")
    if params is None:
        method: Method = "newton" if isinstance(entries, Full) else "lbfgs"
        found = search(target, held, start, method, max_steps)
    else:
        found = _trained(loss, held, gaussian, params)
    if towards is not None:
        towards = as_point(towards, Layout.of(found.params), "towards")
        towards = require_finite(towards, "towards")
    fit = _posterior_at if loss.is_streamed else _posterior_at_compiled
    posterior, likelihood, proper, distance = fit(
        target, held, found, towards, kind, entries, num_samples, key, block_size
    )
    failure = _Failure(target, found.params, kind, held, posterior, towards is not None)
    posterior, likelihood = require(
        (posterior, likelihood), proper, failure.message(), failure.detail
    )
    tell(_warn_if_far, (distance, found.steps), is_given=params is not None)
    if towards is not None:
        apart = jax.tree.map(jnp.subtract, towards, found.params)
        length = jnp.sqrt(tree_dot(apart, posterior.multiply(apart)) / posterior.layout.size)
        tell(_warn_if_beyond, (length,))
    if include_prior:
        return remember(posterior, Origin(prior))
    return remember(likelihood, Origin(None))


class _Failure(NamedTuple):
    """Why there is no Laplace approximation, and what helps."""

    target: AbstractTarget
    params: PyTree
    kind: Kind
    prior: AbstractPrior
    posterior: AbstractGaussian
    is_averaged: bool

    def message(self) -> str:
        where = "on average from the mode to `towards`" if self.is_averaged else "at the mode"
        elsewhere = (
            "Look without `towards` first: if that works, the curvature on the way there is "
            "indefinite or overflows, so bring `towards` nearer. "
        )
        return (
            f"the posterior precision, {self.kind} plus prior, is not positive definite {where}, "
            "so there is no Laplace approximation. "
            f"{elsewhere if self.is_averaged else ''}{self._remedy()}"
        )

    def _remedy(self) -> str:
        more = "a prior" if self.prior.is_flat else "a more informative prior"
        needed = f"Directions the data do not determine need {more}"
        if self.kind != "hessian":
            return (
                f"A curvature of kind '{self.kind}' is never indefinite, so it is singular but for "
                f"rounding. {needed}: there are more parameters than data, columns are collinear, "
                "or classes are separated, so that the curvature vanishes where the labels are "
                "certain."
            )
        others = "'ggn', 'fisher' or " if self.target.has_model else ""
        supervised = "" if self.target.has_model else " (or 'ggn', with Target.supervised)"
        return (
            "The Hessian of a trained network often is not, and an indefinite one also means that "
            f"this is not a minimum: train further, or use curvature={others}'squared_gradients', "
            f"which cannot be indefinite{supervised}. {needed}, such as the scale of a single "
            "observation. A hierarchical model in centred coordinates has no such maximum: write "
            "it non-centred, or use `von`."
        )

    def detail(self) -> str:
        precision = self.posterior.precision
        least, direction = precision.weakest()
        told = f"The smallest eigenvalue or entry is {least:.6g}"
        if precision.structure.is_entrywise or not all_finite(precision):
            return f"{told}."
        sizes = [jnp.max(jnp.abs(x), initial=0).item() for x in jax.tree.leaves(direction)]
        name = precision.layout.names[sizes.index(max(sizes))] or "theta"
        told = f"{told}, in a direction of mostly {name}"
        if self.kind == "hessian":
            return f"{told}."
        has_prior = not self.prior.is_flat
        why = explained(self.target, self.params, self.kind, precision.dense(), has_prior)
        return f"{told}. {why}"


def _warn_if_far(distance: Any, steps: Any, is_given: bool) -> None:
    """Of trained parameters the same words for tasks alike, so that Python shows them once for all
    fits of one line."""
    if not distance > NEGLIGIBLE:
        return
    if is_given:
        message = (
            f"params are more than {_rounded_down(float(distance)):g} posterior standard "
            "deviations (root mean square) from the mode, as those of models that were stopped "
            "early are. The posterior is centred on them all the same, and leaves out the gradient "
            "there: a merge of such posteriors is off by as much or more. For merging keep the "
            "gradient, `prior * expand(target, params)`, whose mode is a Newton step ahead; or "
            "train to a minimum of the summed loss plus prior, as by `find_mode(target, prior, "
            "start=params)`."
        )
    else:
        message = (
            f"these parameters are {float(distance):.2g} posterior standard deviations (root mean "
            f"square) from the mode, after {int(steps)} steps. The posterior is centred on them "
            "all the same. Allow more `max_steps`, start closer, or centre the inputs."
        )
    warnings.warn(message, ConvergenceWarning, stacklevel=4)


def _rounded_down(value: float) -> float:
    """The next of …, 0.1, 0.2, 0.5, 1, 2, 5, … below."""
    if not np.isfinite(value):
        return value
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-9)) * power)


def _warn_if_beyond(length: Any) -> None:
    if not length <= FAR:
        warnings.warn(
            f"towards is {float(length):.2g} posterior standard deviations (root mean square) from "
            "the mode: no merged model is there, and a curvature averaged on the way describes "
            "neither end. Is it in the units of the parameters? `prior.mode()`, or an average of "
            "the tasks' modes, is near enough.",
            stacklevel=4,
        )


def _trained(
    loss: AbstractTarget, prior: AbstractPrior, gaussian: AbstractGaussian | None, params: PyTree
) -> Mode:
    params, layout = as_arrays(params, "params")
    prior.require_layout(layout, "params")
    params = require_finite(params, "params")
    loss.check(params)
    value, gradient = Objective(loss, gaussian).value_and_gradient(params)
    unknown = jnp.full((), jnp.nan, value.dtype)
    return Mode(params, value, gradient, jnp.array(0), jnp.array(True), unknown)


def _posterior_at(
    target: AbstractTarget,
    prior: AbstractPrior,
    mode: Mode,
    towards: PyTree | None,
    kind: Kind,
    structure: AbstractStructure,
    num_samples: int | None,
    key: PRNGKeyArray | None,
    block_size: int | None,
) -> tuple[AbstractGaussian, AbstractGaussian, Bool[Array, ""], Float[Array, ""]]:
    """q_t, q_t/p_0, whether q_t is proper, and √(∇ᵀ(H_0 + H_t)⁻¹∇ / P)."""
    theta, layout = mode.params, Layout.of(mode.params)

    def at(loss: AbstractTarget, theta: PyTree) -> AbstractPrecision:
        return precision_of(
            loss, theta, kind, structure, num_samples=num_samples, key=key, block_size=block_size
        )

    H = at(target, theta) if towards is None else _average(at, target, theta, towards)
    uphill = jax.tree.map(jnp.negative, prior.gradient(theta))
    likelihood = quadratic(theta, uphill, H)
    posterior: Any = likelihood * prior.site(theta, structure)
    distance = jnp.sqrt(posterior.squared_length(mode.gradient) / layout.size)
    return posterior, likelihood, posterior.is_proper(), distance


def _average(
    at: Callable[[AbstractTarget, PyTree], Any],
    target: AbstractTarget,
    theta: PyTree,
    towards: PyTree,
) -> Any:
    """∫₀¹ at(θ + s(θ̄ − θ)) ds."""

    def part(node: tuple[Array, Array]) -> Any:
        s, weight = node
        there = jax.tree.map(lambda x, y: x + s.astype(x.dtype) * (y - x), theta, towards)
        return jax.tree.map(lambda x: weight.astype(x.dtype) * x, at(target, there))

    nodes = (jnp.asarray(0.5 + NODES), jnp.asarray(NODE_WEIGHTS))
    if target.is_streamed:
        parts = [part(node) for node in zip(*nodes, strict=True)]
        return jax.tree.map(lambda *x: sum(x), *parts)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(functools.partial(at, target), theta))
    add = lambda total, node: (jax.tree.map(jnp.add, total, part(node)), None)  # noqa: E731
    return jax.lax.scan(add, zero, nodes)[0]


_posterior_at_compiled = eqx.filter_jit(_posterior_at)
