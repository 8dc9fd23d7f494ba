"""Files of a preview: checked before the work, written after it."""

import csv
import importlib.util
import os
from pathlib import Path

import typer

from bayesmerge.files import whole, writable
from bayesmerge.previews import Preview

FIGURES = (".png", ".pdf", ".svg")
PAGE = ".html"
FORMATS = (".nc", ".csv", *FIGURES, PAGE)


def checked(paths: list[Path], save: Path | None = None) -> list[Path]:
    """The paths, data first, or an error where one, or `save`, cannot be written."""
    if save is not None:
        require_writable(save, (".nc",), "--save")
    for path in paths:
        require_writable(path, FORMATS)
        if save is not None and os.path.realpath(path) == os.path.realpath(save):
            raise typer.BadParameter(
                f"{path} is the file of --save, too, which holds the whole preview: leave one out.",
                param_hint="--output",
            )
        if path.suffix == PAGE and importlib.util.find_spec("plotly") is None:
            raise typer.BadParameter(
                f"{path.name} needs plotly: pip install 'bayesmerge[explorer]'",
                param_hint="--output",
            )
    return sorted(paths, key=lambda path: FORMATS.index(path.suffix))


def require_writable(path: Path, formats: tuple[str, ...], option: str = "--output") -> None:
    """An error where no file of one of the formats can be written to `path`."""
    try:
        writable(path, formats, "the file")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def written(surface: Preview, path: Path, title: str) -> bool:
    """Whether `surface` could be written to `path`: if not, it is said, and other files follow."""
    try:
        if path.suffix == ".nc":
            surface.save(path)
        elif path.suffix == PAGE:
            from bayesmerge.previews.explorer import explore

            explore({title: surface}, path)
        else:
            with whole(path) as unfinished:
                write = _write_table if path.suffix == ".csv" else _draw
                write(surface, unfinished, path.suffix)
    except (OSError, ValueError) as error:
        typer.echo(f"Not written: {path}: {error}", err=True)
        return False
    typer.echo(f"Written: {path}")
    return True


def _write_table(surface: Preview, path: Path, suffix: str) -> None:
    titles = [f"weight of {task}" for task in surface.tasks]
    titles += [*surface.metrics, *surface.details]
    columns = [*surface.weights.T, *surface.metrics.values(), *surface.details.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))


def _draw(surface: Preview, path: Path, suffix: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(layout="constrained")
    try:
        surface.plot(ax=axes)
        figure.savefig(path, dpi=150, format=suffix.removeprefix("."))
    finally:
        plt.close(figure)
