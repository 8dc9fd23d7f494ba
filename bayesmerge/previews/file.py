"""A preview on disk, in netCDF: whole, or as far as an interrupted one has come."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bayesmerge import files
from bayesmerge.fingerprint import digest

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".nc"
FORMAT = 1
MAGIC = b"CDF"


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
    return files.writable(path, (SUFFIX,), "the file")


def require_storable(names: Iterable[str]) -> None:
    """An error that tells a name which would not come back from a file as it is."""
    for name in names:
        try:
            is_storable = not name.encode().endswith(b"\0")
        except UnicodeEncodeError:
            is_storable = False
        if not is_storable:
            raise ValueError(
                f"the name {name!r} cannot be kept in a file: it is not valid Unicode, or it ends "
                "in a null character. Rename it."
            )


def write(table: Table, path: Path) -> None:
    """All of it, or the file stays as it was."""
    require_storable((*table.tasks, *table.metrics, *table.details))
    content = bytes(_as_dataset(table).to_netcdf(engine="scipy"))
    with files.whole(path) as unfinished:
        unfinished.write_bytes(content)


def read(path: Path) -> Table:
    """**Raises** `FileNotFoundError`, and `ValueError` for a file of another kind."""
    import xarray as xr

    content = io.BytesIO(files.readable(path).read_bytes())
    try:
        with xr.open_dataset(content, engine="scipy") as dataset:
            dataset.load()
            if int(dataset.attrs["format"]) <= FORMAT:
                return _as_table(dataset)
    except (LookupError, TypeError, ValueError, AttributeError, EOFError, OSError) as error:
        raise ValueError(
            f"'{path}' is no saved preview, or a damaged one: "
            f"{files.other_kind(path, MAGIC) or error}. Give another name, or delete it."
        ) from error
    raise ValueError(
        f"'{path}' has version {dataset.attrs['format']} of the format, and up to {FORMAT} is read "
        "here: it needs a newer bayesmerge."
    )


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
    return digest(*numbers, table.weights, table.found, words=(*words, *names))
