"""Why data and prior leave parameters undetermined, and what helps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.layout import Layout
from bayesmerge.fit.abstract_target import AbstractTarget
from bayesmerge.fit.curvature import Kind

NEARLY_CERTAIN = 0.02
"""A loss below which a label counts as predicted with certainty, in nats."""

SHOWN = 6


def weakest_direction(precision: Float[Array, "P P"]) -> Float[np.ndarray, " P"]:
    """The direction in which a precision, scaled to a unit diagonal, is weakest: its entries in
    units of 1/√Λ_pp, the largest ±1."""
    matrix = np.asarray(precision, float)
    if not np.isfinite(matrix).all():
        return np.zeros(len(matrix))
    diagonal = np.abs(np.diagonal(matrix))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1))
    vector = np.linalg.eigh(matrix / np.outer(scale, scale))[1][:, 0]
    return vector / vector[np.argmax(np.abs(vector))]


def entries(layout: Layout, direction: Float[np.ndarray, " P"]) -> str:
    """The entries of θ that a direction moves, by name: those within a factor 100 of the most."""
    names = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        names += [f"{name or 'theta'}{list(i) if i else ''}" for i in np.ndindex(*shape)]
    order = np.argsort(-np.abs(direction), kind="stable")
    moved = [p for p in order if abs(direction[p]) > 0.01 and direction[p] != 0]
    more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
    return ", ".join(names[p] for p in sorted(moved[:SHOWN])) + more


def explained(
    target: AbstractTarget,
    params: PyTree,
    kind: Kind,
    precision: Any,
    has_prior: bool,
) -> str:
    """Which parameters are undetermined, the likely cause, and a remedy that is not in use yet."""
    layout = Layout.of(params)
    direction = weakest_direction(precision)
    moved = np.flatnonzero(np.abs(direction) > 0.01)
    told = []
    if len(moved) == 1:
        told.append(f"Nothing determines {entries(layout, direction)}.")
    elif len(moved):
        told.append(
            f"Undetermined is a combination of {entries(layout, direction)}, as where their "
            "columns are collinear: leave one of them out."
        )
    if is_separated(target, params):
        told.append(
            "The classes are separated: all labels are predicted with near certainty, so that the "
            "likelihood has no maximum and its curvature vanishes."
        )
    told.append("Use a stronger prior." if has_prior else "Give a prior.")
    if kind == "hessian" and target.has_model:
        told.append("Or use curvature='ggn', which is never indefinite.")
    dtypes = {jnp.result_type(x).name for x in jax.tree.leaves(params)}
    if "float32" in dtypes and len(moved) > 1:
        told.append("Where columns are nearly collinear, float64 or centred inputs help.")
    return " ".join(told)


def is_separated(target: AbstractTarget, params: PyTree) -> bool:
    """Whether a classifier predicts every label with near certainty."""
    loss, batch = target.first_batch()
    if getattr(getattr(loss, "likelihood", None), "name", "") not in ("bernoulli", "categorical"):
        return False
    return bool(jnp.max(loss(params, batch)) < NEARLY_CERTAIN)
