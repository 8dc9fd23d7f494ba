"""The search for the modes of a product from many starts, and what it found."""

import warnings
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bayesmerge.families.checks import ConvergenceWarning, require
from bayesmerge.families.layout import Layout
from bayesmerge.families.show import safely, table
from bayesmerge.mixtures import starts as places
from bayesmerge.mixtures.climb import Ridge, climbs, default_tolerance, is_single

Starts: TypeAlias = Literal["blend", "means", "merged", "highest"]

MAX_STEPS = 1000


class Maxima(eqx.Module):
    r"""Where the climbs from several starts ended, one on each entry of the leading axis S, the
    highest first. (A product with many weightings has their axis in front of it.)

    - `product`: what was climbed.
    - `responsibilities`: r, shape (S, R), the components of all factors after one another. A mode
      is known by them: $\theta = \arg\max \prod_{t,k} q_{tk}^{\alpha_t r_{tk}}$.
    - `log_density`: Σ_t α_t log q_t(θ), shape (S,).
    - `gradient`: √(∇ᵀΛ⁻¹∇/P), shape (S,), the gradient of `log_density` in posterior standard
      deviations (Λ of the minorizer): 0 at a stationary point.
    - `steps`: evaluations of the density, shape (S,).
    - `converged`: whether `gradient` is at most the tolerance, shape (S,). A start without any
      density has `log_density` −∞ and has not converged.
    """

    __repr__ = safely(lambda found: _show(found))

    product: Any
    responsibilities: Float[Array, "*S R"]
    log_density: Float[Array, "*S"]
    gradient: Float[Array, "*S"]
    steps: Int[Array, "*S"]
    converged: Bool[Array, "*S"]

    @property
    def params(self) -> PyTree:
        """θ, with the leading axes of `log_density`."""
        return self.product.on_ridge(self.responsibilities)

    def best(self) -> "Maxima":
        """The highest, without the axis S."""
        r = self.responsibilities[..., 0, :]
        return Maxima(self.product, r, *(x[..., 0] for x in self._per_climb()))

    def distinct(self, apart: float = 0.01) -> "Maxima":
        """Those that have converged, one of each: two are the same within `apart` posterior
        standard deviations, √(‖θ − θ'‖²_Λ/P).

        **Raises** `ValueError` for a product with many weightings.
        """
        if self.log_density.ndim != 1:
            raise ValueError(
                f"log_density has shape {self.log_density.shape}, and distinct modes are those of "
                "one weighting, shape (S,): take the product of one weighting."
            )
        left = np.asarray(self.converged)
        kept: list[int] = []
        while left.any():
            kept.append(int(np.argmax(left)))
            left = left & np.asarray(_distances(self, jnp.asarray(kept[-1])) > apart)
        index = np.asarray(kept, int)
        r = self.responsibilities[index]
        return Maxima(self.product, r, *(x[index] for x in self._per_climb()))

    def __len__(self) -> int:
        return len(self.log_density)

    def _per_climb(self) -> tuple[Array, ...]:
        return self.log_density, self.gradient, self.steps, self.converged


def _show(found: Maxima) -> str:
    density, gradient, steps, converged = (np.atleast_1d(np.asarray(x)) for x in found._per_climb())
    head = f"Maxima: {converged.sum()} of {converged.size} climbs converged, shape {density.shape}"
    if density.ndim > 1:
        return head
    columns = {
        "log density": density,
        "gradient": gradient,
        "steps": steps,
        "converged": ["yes" if x else "no" for x in converged],
    }
    return f"{head}\n{table(columns, [str(i) for i in range(len(density))])}"


@eqx.filter_jit
def _distances(found: Maxima, s: Int[Array, ""]) -> Float[Array, " S"]:
    """From mode s to all."""
    ridge, r = Ridge.of(found.product.factors), found.responsibilities
    return jax.lax.map(lambda other: ridge.distance(found.product.exponents, r[s], other), r)


def find_maxima(
    product: Any,
    starts: Starts | PyTree | None,
    tolerance: float | None,
    max_steps: int,
    accelerate: bool,
) -> Maxima:
    """`Product.maxima`."""
    if not product.has_mixtures():
        raise ValueError("no factor is a mixture, and the only mode is `mode()`.")
    tolerance = default_tolerance(product.layout) if tolerance is None else tolerance
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}, and it must be a number ≥ 0.")
    if max_steps < 1 or max_steps != int(max_steps):
        raise ValueError(f"max_steps is {max_steps}, and it must be 1, 2, 3 …")
    if starts is not None and not isinstance(starts, str):
        _require_starts(starts, product.layout)
    allowed = jnp.asarray(tolerance, float)
    found = _climbs_sorted(product, starts, allowed, jnp.asarray(max_steps), accelerate)
    message = (
        "every climb met a density that is not finite: starts lie where no component has any "
        "density, or exponents subtract more than the posteriors have."
    )

    def which() -> str:
        lost = np.argwhere(~np.isfinite(np.asarray(found[1][..., 0])))[0]
        exponents = np.asarray(product.exponents)[tuple(lost)].round(6).tolist()
        return f"It happened with the exponents {exponents} (that of a prior comes first)."

    return Maxima(product, *require(found, jnp.all(jnp.isfinite(found[1][..., 0])), message, which))


@eqx.filter_jit
def _climbs_sorted(
    product: Any,
    starts: Starts | PyTree | None,
    allowed: Float[Array, ""],
    max_steps: Int[Array, ""],
    accelerate: bool,
) -> tuple[Array, ...]:
    ridge = Ridge.of(product.factors)
    weightings = product.exponents.shape[:-1]
    alphas = product.exponents.reshape(-1, len(product.factors))
    r = jax.lax.map(lambda a: places.tilted(ridge, _starting_points(ridge, a, starts)), alphas)
    count = r.shape[1]
    climbers = jnp.repeat(alphas, count, axis=0), r.reshape(-1, r.shape[-1])
    ends = climbs(ridge, *climbers, 0.1 * allowed, max_steps, accelerate)
    value = jnp.where(jnp.isfinite(ends.value), ends.value, -jnp.inf).reshape(-1, count)
    order = jnp.argsort(-value, axis=-1)
    density = value + _at_centre(ridge, alphas)[:, None]

    def sort(x: Array) -> Array:
        rows = x.reshape(-1, count, *x.shape[1:])
        rows = jax.vmap(lambda row, index: row[index])(rows, order)
        return rows.reshape(*weightings, *rows.shape[1:])

    converged = (ends.gradient <= allowed) & jnp.isfinite(ends.value)
    return tuple(
        map(sort, (ends.responsibilities, density.ravel(), ends.gradient, ends.steps, converged))
    )


def _require_starts(starts: PyTree, layout: Layout) -> None:
    shapes = [jnp.shape(x) for x in jax.tree.leaves(starts)]
    expected = [(shape[:1] + own) for shape, own in zip(shapes, layout.shapes, strict=False)]
    same = jax.tree.structure(starts) == layout.structure and shapes == expected
    if not same or {shape[:1] for shape in shapes} & {(), (0,)} or len({s[0] for s in shapes}) != 1:
        raise ValueError(
            f"starts have leaves of shapes {shapes}, and they must be shaped as θ, "
            f"{list(layout.shapes)}, with a leading axis of starts, of length 1 or more, in front."
        )


def _starting_points(
    ridge: Ridge, exponents: Float[Array, " T"], starts: Starts | PyTree | None
) -> Float[Array, "S R"]:
    if starts is None:
        return places.every(ridge, exponents)
    if not isinstance(starts, str):
        return places.points(ridge, starts)
    match starts:
        case "blend":
            return places.blend(ridge)
        case "means":
            return places.means(ridge)
        case "merged":
            return places.merged(ridge, exponents)
        case "highest":
            return places.highest(ridge, exponents)
    raise ValueError(
        f"starts is '{starts}', and it must be 'blend', 'means', 'merged', 'highest', or a pytree "
        "of θ with a leading axis."
    )


def _at_centre(ridge: Ridge, alphas: Float[Array, "A T"]) -> Float[Array, " A"]:
    """Σ_t α_t log q_t(centre) over exponential families, which the ridge leaves out."""
    logs = [q.log_density(ridge.centre) if is_single(q) else jnp.zeros(()) for q in ridge.factors]
    return alphas @ jnp.stack(logs).astype(alphas.dtype)


def warn_if_short(converged: Any, gradient: Any, steps: Any) -> None:
    short = ~np.atleast_1d(np.asarray(converged))
    if short.any():
        worst = float(np.max(np.atleast_1d(np.asarray(gradient))[short]))
        warnings.warn(
            f"{int(short.sum())} of {short.size} climbs to a mode have not converged in "
            f"{int(np.max(np.asarray(steps)))} steps: the gradient is up to {worst:.3g} posterior "
            "standard deviations. Use more max_steps, or look at `maxima()`.",
            ConvergenceWarning,
            stacklevel=2,
        )
