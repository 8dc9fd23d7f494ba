"""The command line, thin."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayesmerge.grid import simplex_grid

if TYPE_CHECKING:
    from bayesmerge.demo import Column

FIGURE_FORMATS = (".png", ".pdf", ".svg")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


@app.callback()
def main() -> None:
    """Merge models by multiplying their Bayesian posteriors."""


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Where to write the figure (.png, .pdf or .svg).")
    ] = Path("bayesmerge-demo.png"),
    spacing: Annotated[
        float, typer.Option(help="Spacing of the weightings; it must divide 1.")
    ] = 0.05,
) -> None:
    """Preview task weightings of a classifier of real digits, next to joint training."""
    from bayesmerge import demo as example

    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}.", param_hint="--output")
    if output.suffix not in FIGURE_FORMATS:
        raise typer.BadParameter(
            f"{output.name} must end in one of {', '.join(FIGURE_FORMATS)}.", param_hint="--output"
        )
    try:
        simplex_grid(2, spacing)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--spacing") from error
    columns = example.demo(spacing)
    _print_table(columns)
    example.draw(columns, output)
    typer.echo(f"\nFigure: {output}")


def _print_table(columns: "list[Column]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    joint = columns[-1].surface
    best = [column.surface.best() for column in columns]
    against = [column.surface.compare(joint) for column in columns]
    table = Table(
        title=f"Test accuracy over {len(joint.weights)} weightings of {len(joint.tasks)} tasks",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("")
    for column in columns:
        table.add_column(column.name, justify="right")
    for t, task in enumerate(joint.tasks):
        weights = [list(b.weights.values())[t] for b in best]
        table.add_row(f"best weight of digits {task}", *(f"{w:.2f}" for w in weights))
    table.add_row("accuracy there", *(f"{b.value:.3f}" for b in best))
    table.add_row("joint accuracy there", *(f"{joint.values()[b.row]:.3f}" for b in best))
    table.add_row("regret", *(f"{a.regret:.3f}" for a in against))
    table.add_row("rank correlation with joint", *(f"{a.rank_correlation:.2f}" for a in against))
    table.add_row("MSE to joint", *(f"{a.mse:.4f}" for a in against))
    table.add_row("seconds to fit posteriors", *(f"{c.fit_seconds:.1f}" for c in columns))
    table.add_row("seconds for all weightings", *(f"{c.sweep_seconds:.1f}" for c in columns))
    Console().print(table)
    typer.echo("Seconds include compilation, which the first posterior fitted pays most of.")
