"""Spacings and files of posteriors, with errors that name the argument."""

import math
from pathlib import Path

import typer

from bayesmerge.checkpoints import Saved, load
from bayesmerge.grid import simplex_grid

MOST_WEIGHTINGS = 1_000_000


def require_spacing(spacing: float) -> None:
    """An error where `spacing` does not divide 1."""
    try:
        simplex_grid(2, spacing)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--spacing") from error


def require_feasible(spacing: float, num_tasks: int) -> None:
    """An error where `spacing` makes more than `MOST_WEIGHTINGS`."""
    count = math.comb(round(1 / spacing) + num_tasks - 1, num_tasks - 1)
    if count > MOST_WEIGHTINGS:
        raise typer.BadParameter(
            f"{spacing} makes {count:,} weightings of {num_tasks} tasks, more than "
            f"{MOST_WEIGHTINGS:,}: take a larger one, or `bayesmerge.preview` with weightings of "
            "your own.",
            param_hint="--spacing",
        )


def loaded(path: Path) -> Saved:
    """The posteriors in a file, or an error that names the argument."""
    try:
        return load(path)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="POSTERIORS") from error
