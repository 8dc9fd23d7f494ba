"""What is printed: the best weightings of a preview, and the columns of the demo."""

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bayesmerge.demo import OVERALL, Column
from bayesmerge.previews import Preview


def print_best(surface: Preview) -> None:
    """The best weighting by each metric, and by their mean."""
    better = "higher" if surface.higher_is_better else "lower"
    console = _console()
    console.print(f"Best of {len(surface.weights)} weightings ({better} is better)")
    table = Table(box=box.SIMPLE_HEAD)
    columns: dict[str, str | None] = {name: name for name in surface.metrics}
    if len(columns) > 1:
        columns["mean" if "mean" not in columns else "mean of all"] = None
    found = [
        None if np.isnan(surface.values(m)).all() else surface.best(m) for m in columns.values()
    ]
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for task in surface.tasks:
        table.add_row(f"weight of {task}", *(f"{b.weights[task]:.4g}" if b else "–" for b in found))
    table.add_row("value there", *(f"{b.value:.4g}" if b else "NaN" for b in found))
    console.print(table)


def print_columns(columns: list[Column]) -> None:
    """The demo's previews against joint training, its last column."""
    joint = columns[-1].surface
    best = [column.surface.best(OVERALL) for column in columns]
    against = [column.surface.compare(joint, OVERALL) for column in columns]
    table = Table(
        title=f"Test accuracy over {len(joint.weights)} weightings of {len(joint.tasks)} tasks",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.name, justify="right")
    for t, task in enumerate(joint.tasks):
        weights = [list(b.weights.values())[t] for b in best]
        table.add_row(f"best weight of {task}", *(f"{w:.2f}" for w in weights))
    there = [joint.values(OVERALL)[b.row] for b in best]
    table.add_row("accuracy there", *(f"{b.value:.3f}" for b in best))
    table.add_row("joint accuracy there", *(f"{value:.3f}" for value in there))
    table.add_row("regret", *(f"{a.regret:.3f}" for a in against))
    table.add_row("rank correlation", *(f"{a.rank_correlation:.2f}" for a in against))
    table.add_row("MSE to joint", *(f"{a.mse:.4f}" for a in against))
    table.add_row("seconds to fit", *(f"{c.fit_seconds:.1f}" for c in columns))
    table.add_row("seconds to preview", *(f"{c.sweep_seconds:.1f}" for c in columns))
    _console().print(table)
    typer.echo("Seconds include compilation, which the first posterior fitted pays most of.")


def _console() -> Console:
    """Names are printed as they are written: `[red]` and `:star:` mean nothing."""
    return Console(markup=False, emoji=False, highlight=False)
