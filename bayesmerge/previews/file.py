"""A preview on disk, in netCDF: whole, or as far as an interrupted one has come."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bayesmerge.files import whole
from bayesmerge.fingerprint import fingerprint

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".nc"
FORMAT = 1


class Table(NamedTuple):
    """Numbers by name over A weightings, and at which of them they have been found."""

    metrics: dict[str, Float[np.ndarray, " A"]]
    details: dict[str, Float[np.ndarray, " A"]]
    weights: Float[np.ndarray, "A T"]
    tasks: tuple[str, ...]
    higher_is_better: bool
    found: Bool[np.ndarray, " A"]
    fingerprint: str = ""


def writable(path: Any) -> Path:
    """`path`, or an error where no preview can be written there."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"the file is '{path}', and its name must end in {SUFFIX} (netCDF).")
    if path.is_dir():
        raise ValueError(f"the file is '{path}', and that is a folder: give another name.")
    if not path.parent.is_dir():
        raise ValueError(f"the file is '{path}', and there is no folder '{path.parent}'.")
    return path


def require_storable(names: Iterable[str]) -> None:
    """Nothing, or an error for a name that netCDF changes or cannot hold."""
    for name in names:
        if "\0" in name or name != name.encode("utf-8", "replace").decode("utf-8"):
            raise ValueError(
                f"the name {name!r} holds a character that is no text, and a netCDF file cannot "
                "hold it: give the task or metric another name."
            )


def write(table: Table, path: Path) -> None:
    """All of it, or the file stays as it was."""
    require_storable((*table.tasks, *table.metrics, *table.details))
    with whole(path) as unfinished:
        _as_dataset(table).to_netcdf(unfinished, engine="scipy")


def read(path: Path) -> Table:
    """**Raises** `ValueError` for a file of another kind."""
    import xarray as xr

    try:
        with xr.open_dataset(path, engine="scipy") as dataset:
            return _as_table(dataset.load())
    except (LookupError, TypeError, ValueError, AttributeError, EOFError) as error:
        raise ValueError(
            f"'{path}' is no saved preview, or a damaged one ({error}): give another name, or "
            "delete it."
        ) from error


def _as_dataset(table: Table) -> "xr.Dataset":
    import xarray as xr

    kinds = {"metric": table.metrics, "detail": table.details}
    columns = {
        f"{kind}s": (("weighting", kind), np.stack([*named.values()], axis=1))
        for kind, named in kinds.items()
        if named
    }
    return xr.Dataset(
        {
            "weights": (("weighting", "task"), table.weights),
            "found": ("weighting", table.found.astype("int8")),
            **columns,
        },
        coords={"task": list(table.tasks)} | {k: [*v] for k, v in kinds.items() if v},
        attrs={
            "format": FORMAT,
            "higher_is_better": int(table.higher_is_better),
            "fingerprint": table.fingerprint,
            "checksum": _checksum(table),
        },
    )


def _as_table(dataset: "xr.Dataset") -> Table:
    if dataset.attrs["format"] != FORMAT:
        raise ValueError(f"format {dataset.attrs['format']}, and {FORMAT} is read here")
    named = {
        kind: {
            str(name): dataset[f"{kind}s"].sel({kind: name}).values for name in dataset[kind].values
        }
        if kind in dataset.coords
        else {}
        for kind in ("metric", "detail")
    }
    table = Table(
        named["metric"],
        named["detail"],
        dataset.weights.values,
        tuple(str(t) for t in dataset.task.values),
        bool(dataset.attrs["higher_is_better"]),
        dataset.found.values.astype(bool),
        str(dataset.attrs["fingerprint"]),
    )
    if dataset.attrs["checksum"] != _checksum(table):
        raise ValueError("its checksum is not that of its content")
    return table


def _checksum(table: Table) -> str:
    words = table.tasks, bool(table.higher_is_better), table.fingerprint
    numbers = [np.asarray(x, float) for x in (*table.metrics.values(), *table.details.values())]
    names = *table.metrics, *table.details
    return fingerprint(numbers, table.weights, table.found, words=(*words, *names))
