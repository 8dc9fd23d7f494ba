"""Where ℓ(θ) + ½‖θ − θ_0‖²_{H_0} is smallest: L-BFGS, then Newton steps, by conjugate gradients as
far as posterior standard deviations count, or by factorisation to machine precision.

Data in arrays: optimistix, inside one compiled program. Data in minibatches: scipy on the host.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bayesmerge.families.checks import (
    ConvergenceWarning,
    all_finite,
    is_concrete,
    require,
    require_finite,
    tell,
)
from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout, as_arrays
from bayesmerge.families.trees import tree_dot
from bayesmerge.fit.absorb import absorb
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.conjugate_gradients import diagonal_of, solved
from bayesmerge.fit.curvature import Kind, curvature, curvature_product
from bayesmerge.linear_algebra import cho_solve, cholesky
from bayesmerge.priors import AbstractPrior, Prior, as_prior

Method = Literal["lbfgs", "newton"]
"""`newton` adds to L-BFGS what a P×P factorisation can: the mode to machine precision."""

State = TypeVar("State")
NewtonState: TypeAlias = tuple[PyTree, PyTree, Array, Array, Array, Array]
PolishState: TypeAlias = tuple[PyTree, Array, Array, Array, Array]

HISTORY = 20
NEWTON_STEPS = 30
HALVINGS = 12
POLISHING_PRODUCTS = 60
NEGLIGIBLE = 0.01
"""Distance from the mode, in posterior standard deviations, that goes without saying."""
CLOSE = 0.1 * NEGLIGIBLE
"""Distance at which L-BFGS's result is left as it is."""


class Mode(eqx.Module):
    """Where an optimiser stopped.

    - `params`: θ.
    - `loss`: ℓ(θ) + ½‖θ − θ_0‖²_{H_0}.
    - `gradient`: its gradient there, shaped as θ.
    - `steps`: how many steps were taken.
    - `converged`: whether it stopped because steps no longer changed anything.
    - `distance`: √(∇ᵀ(H + H_0)⁻¹∇ / P), how far from the mode that is in posterior standard
      deviations (root mean square); NaN where it has not been measured.
    """

    params: PyTree
    loss: Float[Array, ""]
    gradient: PyTree
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    distance: Float[Array, ""]

    @property
    def gradient_norm(self) -> Float[Array, ""]:
        """‖∇‖, Euclidean."""
        return jnp.sqrt(tree_dot(self.gradient, self.gradient))


def find_mode(
    target: AbstractTarget,
    prior: Prior = None,
    *,
    start: PyTree | None = None,
    method: Method = "lbfgs",
    max_steps: int = 2000,
) -> Mode:
    r"""The maximum-a-posteriori parameters,
    $\theta_t = \arg\min_\theta \ell_t(\theta) + \tfrac12\|\theta - \theta_0\|^2_{H_0}$.

    Deterministic. With data in arrays it is one compiled program in which data are arguments: new
    data of the same shape cost no new compilation, and `equinox.filter_vmap` fits many at once.

    - `target`: ℓ_t.
    - `prior`: p_0 = N(θ_0, H_0⁻¹), or an `ExactPrior`; `None` for the minimiser of ℓ_t alone.
    - `start`: θ to start from; by default that of a NumPyro model, or else of the prior, θ_0. A
      neural network needs one: zero weights are a saddle point.
    - `method`: `"lbfgs"`, or `"newton"` to polish with Newton steps (GGN steps for a supervised
      target), each of which factorises a P×P matrix.
    - `max_steps`: of L-BFGS.

    **Returns** a `Mode`, with its distance from the mode in posterior standard deviations.

    **Warns** when `max_steps` were not enough, when it stopped more than 0.01 posterior standard
    deviations from the mode, and says how far, and when parameters have not moved at all from θ_0,
    as those of a network do that starts at zero.

    **Raises** `ValueError` without a start, or for a loss that is not finite or not per example.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> target = bm.Target(lambda theta, y: 0.5 * (y - theta) ** 2, jnp.array([1.0, 3.0]))
    >>> prior = bm.IsotropicGaussian.from_mean_precision(jnp.array(0.0), 2.0)
    >>> bm.find_mode(target, prior).params
    Array(1., dtype=float32)

    ```

    Source: GM equation 6.
    """
    mode = search(target, prior, start, method, max_steps)
    told = (mode.converged, mode.steps, mode.distance)
    tell(_warn_if_stopped, told, method=method, dtypes=Layout.of(mode.params).dtypes)
    return mode


def search(
    target: AbstractTarget,
    prior: Any,
    start: PyTree | None,
    method: Method,
    max_steps: int,
) -> Mode:
    """`find_mode`, but for the warning that it has not converged."""
    prior = as_fitted_prior(target, prior)
    loss, gaussian = absorb(target, prior)
    given, start = start is not None, _start(loss, prior, start)
    loss.check(start)
    fit = _find_mode if loss.is_streamed else _find_mode_compiled
    mode = fit(loss, gaussian, start, method, max_steps)
    if not given:
        tell(_warn_if_unmoved, _unmoved(start, mode), names=Layout.of(start).names)
    message = (
        "the loss is not finite where the optimiser stopped. Look for NaN in the data, and for "
        "log(0) or overflow in the loss; start elsewhere, or scale the inputs."
    )
    return require(mode, all_finite((mode.loss, mode.params)), message)


def _warn_if_stopped(
    converged: Any, steps: Any, distance: Any, method: Method, dtypes: tuple[str, ...]
) -> None:
    if converged and not distance > NEGLIGIBLE:
        return
    far = f"about {float(distance):.2g} posterior standard deviations (root mean square)"
    where = f"{far} from the mode" if np.isfinite(distance) else "at an unknown distance"
    remedies = ["centre the inputs"]
    if "float32" in dtypes:
        remedies.append("use float64")
    if method == "lbfgs":
        remedies.append("use method='newton'")
    if not converged:
        remedies = ["allow more `max_steps`", "start closer", *remedies]
    early = "" if converged else ", before it converged"
    warnings.warn(
        f"the optimiser stopped after {int(steps)} steps{early}, {where}. To get closer: "
        f"{', or '.join(remedies)}.",
        ConvergenceWarning,
        stacklevel=4,
    )


def _unmoved(start: PyTree, mode: Mode) -> tuple[Array, ...]:
    """For every leaf whether the optimiser was content to leave all of it where it was."""
    pairs = zip(jax.tree.leaves(start), jax.tree.leaves(mode.params), strict=True)
    return tuple(jnp.all(x == y) & mode.converged & (x.size > 0) for x, y in pairs)


def _warn_if_unmoved(*unmoved: Any, names: tuple[str, ...]) -> None:
    still = [name or "theta" for name, at_rest in zip(names, unmoved, strict=True) if at_rest]
    if still:
        warnings.warn(
            f"parameters {still} have not moved from the prior mean, where the search started: "
            "their gradient is zero there. Zero weights are a saddle point of a neural network: "
            "pass `start`, e.g. a random initialisation.",
            ConvergenceWarning,
            stacklevel=4,
        )


def require_target(target: Any) -> None:
    if not isinstance(target, AbstractTarget):
        raise TypeError(
            f"target is a {type(target).__name__}, and it must be a `Target`, which holds a "
            "per-example loss and its data."
        )


def as_fitted_prior(target: Any, prior: Any) -> AbstractPrior:
    """The prior, for a target and with what fits Gaussians: a Gaussian, an exact one, or none."""
    require_target(target)
    found = as_prior(prior)
    if found.gaussian is not None and is_concrete(found.gaussian):
        require_finite(found.gaussian, "prior")
    if found.is_closed and not found.is_flat and found.gaussian is None:
        raise TypeError(
            f"prior is a {type(prior).__name__}, and it must be a Gaussian over the parameters, "
            "e.g. `IsotropicGaussian.from_mean_precision(params, 1.0)`, an `ExactPrior`, or None. "
            "`natural_gradient_vi` fits in the families of other priors."
        )
    return found


def _start(target: AbstractTarget, prior: AbstractPrior, start: PyTree | None) -> PyTree:
    start = target.start if start is None else start
    start = prior.start if start is None else start
    if start is None:
        raise ValueError(
            "without a prior there is nothing to start from: pass `start`, or a prior."
        )
    start, layout = as_arrays(start, "start")
    prior.require_layout(layout, "start")
    return require_finite(start, "start")


class Objective(eqx.Module):
    """ℓ(θ) + ½‖θ − θ_0‖²_{H_0}, or where H_0 has no inverse the same up to a constant, with any
    centre c for θ_0 and what that leaves of the prior's slope, −(η_0 − H_0c)ᵀ(θ − c)."""

    target: AbstractTarget
    prior: AbstractGaussian | None
    centre: PyTree
    slope: PyTree

    def __init__(
        self, target: AbstractTarget, prior: AbstractGaussian | None, near: PyTree | None = None
    ):
        self.target = target
        self.prior = prior
        self.centre = self.slope = None
        if prior is not None:
            proper = prior.is_proper()
            solved = prior.mode() if near is None else prior.solve(prior.linear)
            near = solved if near is None else near
            self.centre = jax.tree.map(lambda x, y: jnp.where(proper, x, y), solved, near)
            rest = jax.tree.map(jnp.subtract, prior.linear, prior.multiply(self.centre))
            self.slope = jax.tree.map(lambda x: jnp.where(proper, 0, x), rest)

    def value_and_gradient(self, theta: PyTree) -> tuple[Float[Array, ""], PyTree]:
        value, gradient = self.target.value_and_gradient(theta)
        if self.prior is None:
            return value, gradient
        offset = jax.tree.map(jnp.subtract, theta, self.centre)
        pull = jax.tree.map(jnp.subtract, self.prior.multiply(offset), self.slope)
        value = value + 0.5 * tree_dot(offset, jax.tree.map(jnp.subtract, pull, self.slope))
        return value, jax.tree.map(jnp.add, gradient, pull)

    def value(self, theta: PyTree) -> Float[Array, ""]:
        loss = self.target.total(theta)
        if self.prior is None:
            return loss
        offset = jax.tree.map(jnp.subtract, theta, self.centre)
        pull = self.prior.multiply(offset)
        return loss + tree_dot(offset, jax.tree.map(lambda p, s: 0.5 * p - s, pull, self.slope))

    def precision(self, theta: PyTree, kind: Kind) -> Float[Array, "P P"]:
        """H + H_0."""
        H = curvature(self.target, theta, kind)
        return H if self.prior is None else H + self.prior.precision.dense()


def _find_mode(
    target: AbstractTarget,
    prior: AbstractGaussian | None,
    start: PyTree,
    method: Method,
    max_steps: int,
) -> Mode:
    objective = Objective(target, prior, start)
    lbfgs = _scipy_lbfgs if target.is_streamed else _lbfgs
    params, steps, converged = lbfgs(objective, start, max_steps)
    kinds: tuple[Kind, ...] = ("ggn", "hessian") if target.has_model else ("hessian",)
    if method == "newton":
        converged, level = jnp.array(False), jnp.asarray(jnp.nan)
        for kind in kinds:
            params, taken, converged, level = _newton(objective, kind, params, converged, level)
            steps = steps + taken
        distance = jnp.sqrt(level / Layout.of(params).size)
    else:
        params, taken, distance = _polished(objective, kinds[0], params, converged)
        steps = steps + taken
    value, gradient = objective.value_and_gradient(params)
    return Mode(params, value, gradient, steps, converged, distance)


_find_mode_compiled = eqx.filter_jit(_find_mode)


def _lbfgs(objective: Objective, start: PyTree, max_steps: int) -> tuple[PyTree, Any, Any]:
    import optimistix as optx

    tolerance = _epsilon(start) ** (2 / 3)
    solver: Any = optx.LBFGS(rtol=tolerance, atol=tolerance, history_length=HISTORY)
    # The solver's own state is of jax's default float type, and so must be what it steps.
    default_float = jax.tree.map(lambda x: x.astype(float), start)
    solution: Any = optx.minimise(
        lambda theta, _: objective.value(_cast_like(theta, start)).astype(float),
        solver,
        default_float,
        max_steps=max_steps,
        throw=False,
    )
    converged = solution.result == optx.RESULTS.successful
    return _cast_like(solution.value, start), solution.stats["num_steps"], converged


def _scipy_lbfgs(objective: Objective, start: PyTree, max_steps: int) -> tuple[PyTree, Any, Any]:
    from scipy.optimize import minimize

    layout = Layout.of(start)
    dtype = jnp.result_type(*layout.dtypes)

    def value_and_gradient(vector: Any) -> tuple[float, Any]:
        theta = layout.unravel(jnp.asarray(vector, dtype))
        value, gradient = objective.value_and_gradient(theta)
        return float(value), np.asarray(layout.ravel(gradient), float)

    options = {"maxiter": max_steps, "maxcor": HISTORY, "ftol": 0.0, "gtol": 0.0}
    first = np.asarray(layout.ravel(start), float)
    found = minimize(value_and_gradient, first, jac=True, method="L-BFGS-B", options=options)
    converged = jnp.asarray(found.nit < max_steps)
    return layout.unravel(jnp.asarray(found.x, dtype)), jnp.asarray(found.nit), converged


def _polished(
    objective: Objective, kind: Kind, start: PyTree, converged: Bool[Array, ""]
) -> tuple[PyTree, Array, Array]:
    """θ, after Newton steps by conjugate gradients as long as these bring it closer to the mode,
    how many, and the distance left: a criterion of L-BFGS knows neither units nor rounding."""
    target, prior, layout = objective.target, objective.prior, Layout.of(start)
    repeat = _python_while if target.is_streamed else jax.lax.while_loop

    def look(theta: PyTree) -> tuple[Array, Array]:
        """Newton's step from θ, and its length."""

        def multiply(vector: Array) -> Array:
            v = layout.unravel(vector)
            product = layout.ravel(curvature_product(target, theta, v, kind))
            return product if prior is None else product + layout.ravel(prior.multiply(v))

        found = solved(
            multiply,
            diagonal_of(target, prior, theta, kind),
            layout.ravel(objective.value_and_gradient(theta)[1]),
            tolerance=0.03,
            enough=CLOSE * layout.size**0.5,
            max_steps=POLISHING_PRODUCTS,
            repeat=repeat,
        )
        distance = found.length / layout.size**0.5
        return found.x, jnp.where(found.determined, distance, jnp.nan)

    def step(state: PolishState) -> PolishState:
        theta, down, distance, scale, looks = state
        moved = jax.tree.map(
            lambda x, d: x - scale.astype(x.dtype) * d, theta, layout.unravel(down)
        )
        new_down, new_distance = look(moved)
        better = new_distance < distance
        keep = lambda new, old: jax.tree.map(lambda x, y: jnp.where(better, x, y), new, old)  # noqa: E731
        theta, down = keep(moved, theta), keep(new_down, down)
        scale = jnp.where(better, 1.0, scale / 2)
        return theta, down, keep(new_distance, distance), scale, looks + 1

    def unfinished(state: PolishState) -> Array:
        _, _, distance, scale, looks = state
        far = jnp.isfinite(distance) & (distance > CLOSE) & (scale > 0.1)
        return (looks == 0) | (converged & far & (looks <= NEWTON_STEPS))

    nowhere = jnp.zeros(layout.size, jnp.result_type(*layout.dtypes))
    unseen = jnp.full((), jnp.inf, nowhere.dtype)
    state = (start, nowhere, unseen, jnp.ones_like(unseen), jnp.array(0))
    theta, _, distance, _, looks = repeat(unfinished, step, state)
    return theta, looks - 1, jnp.where(jnp.isfinite(distance), distance, jnp.nan)


def _newton(
    objective: Objective,
    kind: Kind,
    start: PyTree,
    converged: Bool[Array, ""],
    level: Float[Array, ""],
) -> tuple[PyTree, Any, Any, Any]:
    """θ ← θ − s(H + H_0)⁻¹∇, s halved until ‖∇‖ falls in the metric (H + H_0)⁻¹: a criterion that
    rounding errors of the loss do not disturb. The GGN is never indefinite, but for a network its
    steps converge linearly; exact Hessians finish what it leaves."""
    layout = Layout.of(start)
    repeat = _python_while if objective.target.is_streamed else jax.lax.while_loop
    floor = layout.size * (10 * _epsilon(start) ** 0.75) ** 2

    def step(state: NewtonState) -> NewtonState:
        theta, gradient, steps, _, _, _ = state
        factor = cholesky(objective.precision(theta, kind))
        direction = layout.unravel(cho_solve(factor, layout.ravel(gradient)))
        level = tree_dot(gradient, direction)

        def trial(scale: Float[Array, ""]) -> tuple[Array, PyTree, PyTree, Array]:
            moved = jax.tree.map(lambda x, d: x - scale.astype(x.dtype) * d, theta, direction)
            _, g = objective.value_and_gradient(moved)
            return scale, moved, g, jnp.dot(layout.ravel(g), cho_solve(factor, layout.ravel(g)))

        def too_long(tried: tuple[Array, PyTree, PyTree, Array]) -> Array:
            scale, _, _, new_level = tried
            return (new_level >= level) & (scale > 0.5**HALVINGS)

        tried = repeat(too_long, lambda t: trial(t[0] / 2), trial(jnp.ones_like(level)))
        _, moved, new_gradient, new_level = tried
        better = new_level < level
        keep = lambda new, old: jax.tree.map(lambda x, y: jnp.where(better, x, y), new, old)  # noqa: E731
        converged = jnp.isfinite(level) & (~better | (new_level <= floor))
        stuck = ~better & ~converged
        left = jnp.where(better, new_level, level)
        steps = jnp.where(better, steps + 1, steps)
        return keep(moved, theta), keep(new_gradient, gradient), steps, converged, stuck, left

    def unfinished(state: NewtonState) -> Array:
        _, _, steps, converged, stuck, _ = state
        return ~converged & ~stuck & (steps < NEWTON_STEPS)

    _, gradient = objective.value_and_gradient(start)
    level = level.astype(jnp.result_type(*jax.tree.leaves(gradient)))
    state = (start, gradient, jnp.array(0), converged, jnp.array(False), level)
    theta, _, steps, converged, _, level = repeat(unfinished, step, state)
    return theta, steps, converged, level


def _python_while(
    condition: Callable[[State], Any], body: Callable[[State], State], state: State
) -> State:
    while condition(state):
        state = body(state)
    return state


def _cast_like(theta: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), theta, like)


def _epsilon(theta: PyTree) -> float:
    return float(jnp.finfo(jnp.result_type(*jax.tree.leaves(theta))).eps)
