r"""Solving Λx = b by products with Λ alone, whatever the units of θ.

Conjugate gradients on Λ scaled to about a unit diagonal. What is missing of x is measured in
posterior standard deviations, √(eᵀΛe), from the steps taken last: each adds α_j‖r_j‖² to the
squared length of x, and so the last ones are what was missing before them (Strakoš & Tichý 2002).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bayesmerge.families.gaussian import AbstractGaussian
from bayesmerge.families.layout import Layout
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind, curvature

Multiply = Callable[[Float[Array, " P"]], Float[Array, " P"]]

LAST = 5
"""Steps that tell what was missing before them."""

CORRECTIONS = 4
"""Solutions for what the rounding of products left."""

FEW = 4096
"""Parameters for which P Hessian-vector products are no burden."""


class Solution(NamedTuple):
    """x = Λ⁻¹b, as far as it got.

    - `length`: √(xᵀΛx), in posterior standard deviations.
    - `missing`: the same of what is missing of x, about.
    - `determined`: whether Λ is positive along x and all directions met, beyond rounding errors.
    """

    x: Float[Array, " P"]
    length: Float[Array, ""]
    missing: Float[Array, ""]
    determined: Bool[Array, ""]


class _State(NamedTuple):
    x: Float[Array, " P"]
    residual: Float[Array, " P"]
    direction: Float[Array, " P"]
    squared: Float[Array, ""]
    energy: Float[Array, ""]
    gains: Float[Array, " L"]
    weakest: Float[Array, ""]
    steps: Int[Array, ""]


def solved(
    multiply: Multiply,
    diagonal: Float[Array, " P"],
    b: Float[Array, " P"],
    *,
    tolerance: float,
    enough: float = 0.0,
    max_steps: int,
    repeat: Any = jax.lax.while_loop,
) -> Solution:
    """Λ⁻¹b.

    - `multiply`: v ↦ Λv.
    - `diagonal`: that of Λ, about.
    - `tolerance`: of what is missing, relative to the length of x; or `enough`, absolutely.
    - `repeat`: a loop, compiled or not.
    """
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    size = jnp.linalg.norm(scale * b)
    unit = scale * b / jnp.where(size > 0, size, 1)

    def scaled(v: Array) -> Array:
        return scale * multiply(scale * v)

    def short(missing: Array, length: Array) -> Array:
        return (missing > tolerance * length) & (missing * size > enough)

    def corrected(state: tuple[Array, Array, Array, Array, Array]) -> Any:
        x, _, weakest, steps, count = state
        residual = unit - scaled(x)
        part, missing, weak, taken = _solve(scaled, residual, short, max_steps - steps, repeat)
        moved = jnp.sqrt(jnp.maximum(part @ scaled(part), 0))
        missing = jnp.where(count > 0, jnp.maximum(moved, missing), missing)
        return x + part, missing, jnp.minimum(weakest, weak), steps + taken, count + 1

    def unfinished(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        x, missing, weakest, steps, count = state
        length = jnp.sqrt(jnp.maximum(unit @ x, 0))
        going = (count < 2) | short(missing, length)
        return going & (count < CORRECTIONS) & (steps < max_steps) & (weakest > 0)

    zero, infinity = jnp.zeros_like(unit), jnp.asarray(jnp.inf, unit.dtype)
    first = (zero, infinity, infinity, jnp.array(0), jnp.array(0))
    x, missing, weakest, _, _ = repeat(unfinished, corrected, first)
    length = jnp.sqrt(jnp.maximum(unit @ x, 0))
    rounding = 20 * len(b) ** 0.5 * float(jnp.finfo(b.dtype).eps)
    determined = (length**2 > rounding * (x @ x)) | ~jnp.any(x != 0)
    determined &= (weakest > -rounding) & jnp.all(jnp.isfinite(x))
    return Solution(size * scale * x, size * length, size * missing, determined)


def _solve(
    scaled: Multiply, b: Array, short: Callable[[Array, Array], Array], most: Array, repeat: Any
) -> tuple[Array, Array, Array, Array]:
    """Conjugate gradients for one right-hand side: x, what is missing, the weakest curvature met,
    and how many steps that took."""

    def step(s: _State) -> _State:
        product = scaled(s.direction)
        along = s.direction @ product
        curvature = along / (s.direction @ s.direction)
        alpha = jnp.where(along > 0, s.squared / jnp.where(along > 0, along, 1), 0)
        residual = s.residual - alpha * product
        squared = residual @ residual
        gain = alpha * s.squared
        return _State(
            s.x + alpha * s.direction,
            residual,
            residual + squared / s.squared * s.direction,
            squared,
            s.energy + gain,
            jnp.roll(s.gains, 1).at[0].set(gain),
            jnp.minimum(s.weakest, curvature),
            s.steps + 1,
        )

    def unfinished(s: _State) -> Array:
        going = (s.steps < LAST) | short(jnp.sqrt(jnp.sum(s.gains)), jnp.sqrt(s.energy))
        return going & (s.steps < most) & (s.squared > 0) & (s.weakest > 0)

    squared = b @ b
    zero, one = jnp.zeros((), b.dtype), jnp.ones((), b.dtype)
    first = _State(
        jnp.zeros_like(b), b, b, squared, zero, jnp.zeros(LAST, b.dtype), one, jnp.array(0)
    )
    last = repeat(unfinished, step, first)
    missing = jnp.where(last.squared > 0, jnp.sqrt(jnp.sum(last.gains)), 0)
    return last.x, missing, last.weakest, last.steps


def diagonal_of(
    target: AbstractTarget, prior: AbstractGaussian | None, params: PyTree, kind: Kind
) -> Float[Array, " P"]:
    """The diagonal of H + H_0, or one in its units where that of the Hessian costs too much."""
    layout = Layout.of(params)
    if kind == "hessian" and layout.size > FEW:
        kind = "ggn" if target.has_model else "squared_gradients"
    diagonal = jnp.abs(layout.ravel(curvature(target, params, kind, "diagonal")))
    if prior is None:
        return diagonal
    return diagonal + jnp.abs(layout.ravel(prior.precision.diagonal()))
