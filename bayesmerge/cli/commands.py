"""The two commands, and what they are told."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from bayesmerge import demo as example
from bayesmerge.cli import inputs, outputs, tables
from bayesmerge.cli.metric import imported, reporting
from bayesmerge.grid import simplex_grid
from bayesmerge.previews import Basis, Climbs, Compute, Each, Fastest, Line, Uncompiled
from bayesmerge.previews import preview as sweep

Modes = Literal["fastest", "each", "basis", "line", "climbs"]
WAYS = dict(zip(get_args(Modes), (Fastest(), Each(), Basis(), Line(), Climbs()), strict=True))

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


@app.callback()
def main() -> None:
    """Merge models by multiplying their Bayesian posteriors."""


@app.command()
def demo(
    output: Annotated[
        Path,
        typer.Option(
            help=f"Where to write the figure ({', '.join(outputs.FIGURES)}); the explorer, a web "
            "page, goes next to it."
        ),
    ] = Path("bayesmerge-demo.png"),
    spacing: Annotated[
        float, typer.Option(help="Spacing of the weightings; it must divide 1.")
    ] = 0.05,
) -> None:
    """Preview task weightings of a classifier of real digits, next to joint training."""
    page = output.with_suffix(outputs.PAGE)
    outputs.require_writable(output, outputs.FIGURES)
    outputs.require_writable(page, (outputs.PAGE,))
    inputs.require_spacing(spacing)
    columns = example.demo(spacing)
    tables.print_columns(columns)
    example.draw(columns, output)
    typer.echo(f"\nFigure: {output}")
    try:
        example.explore(columns, page)
        typer.echo(f"Explorer, to open in a browser: {page}")
    except ImportError as error:
        typer.echo(f"No explorer: {error}")


@app.command()
def preview(
    posteriors: Annotated[
        Path,
        typer.Argument(help="A .safetensors file, of `bayesmerge.checkpoints.save`."),
    ],
    metric: Annotated[
        str,
        typer.Argument(
            help="`module:function`, imported from the current folder or from what is installed; "
            "function(params) returns a number, or a dict of numbers by name."
        ),
    ],
    spacing: Annotated[
        float, typer.Option(help="Spacing of the weightings; it must divide 1.")
    ] = 0.1,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            help=f"A file to write ({', '.join(outputs.FORMATS)}); may be given several times."
        ),
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="For a metric such as a loss.")
    ] = False,
    modes: Annotated[Modes, typer.Option(help="How the modes of merges are found.")] = "fastest",
    weightings_at_once: Annotated[
        int | None,
        typer.Option(min=1, help="By default as many as fit into 256 MB."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="A .nc file that is written while the sweep runs; with the same posteriors, "
            "spacing and metric an interrupted one goes on from it."
        ),
    ] = None,
    uncompiled: Annotated[
        bool,
        typer.Option("--uncompiled", help="For a metric not written in JAX (NumPy, scikit-learn)."),
    ] = False,
) -> None:
    """Preview task weightings of saved posteriors: merge, take the mode, measure."""
    files = outputs.checked(output or [], save)
    inputs.require_spacing(spacing)
    with _plain_warnings():
        function = imported(metric)
        saved = inputs.loaded(posteriors)
        inputs.require_feasible(spacing, len(saved.posteriors))
        measure = reporting(function, metric, saved.posteriors)
        try:
            surface = sweep(
                saved.posteriors,
                simplex_grid(len(saved.posteriors), spacing),
                Uncompiled(measure) if uncompiled else measure,
                saved.prior,
                modes=WAYS[modes],
                compute=Compute(weightings_at_once=weightings_at_once),
                higher_is_better=not lower_is_better,
                save=save,
            )
        except (OSError, TypeError, ValueError) as error:
            raise typer.BadParameter(str(error)) from error
    tables.print_best(surface)
    written = [outputs.written(surface, path, posteriors.stem) for path in files]
    if not all(written):
        raise typer.Exit(1)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings in one line, without the code that gave them."""

    def show(message: Any, *_: Any, **__: Any) -> None:
        typer.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = show
        yield
