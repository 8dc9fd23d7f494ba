"""Files that are written whole or not at all, and paths that are checked before the work."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REMEDY = "Free space or get permission there, or give another path"


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new file in the folder of `path`, which takes its place once it is written, and is removed
    otherwise. So a reader finds the old content or the new, and of several writers the last wins.

    A link stays one: what it points to is replaced. The permissions are those of the file that is
    replaced, or those of any new file.

    **Raises** `OSError` that names `path` where it cannot be written, with the cause's `errno`.
    """
    target, unfinished = _target_and_unfinished(path)
    try:
        _require_replaceable(target)
        unfinished.touch(exist_ok=False)
        permissions = (target if target.exists() else unfinished).stat().st_mode
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        if unfinished.stat().st_mode != permissions:
            unfinished.chmod(permissions)
        unfinished.replace(target)
    except OSError as error:
        raise _unwritten(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def writable(path: Any, suffixes: tuple[str, ...], name: str = "path") -> Path:
    """`path`, or an error that tells why no file with one of these suffixes can be written there.

    **Raises** `TypeError` for what is no path, `ValueError` for another suffix, a folder, or a
    folder that does not exist, and `OSError` where the folder takes no new file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} is a {type(path).__name__}, and it must be text or a Path.")
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"{name} is '{path}', and it must end in {_either(suffixes)}.")
    folder = path.parent
    if not os.path.isdir(folder):
        home = " Path.expanduser() writes out '~'." if path.parts[0].startswith("~") else ""
        raise ValueError(
            f"{name} is '{path}', and there is no folder '{folder}': make it first.{home}"
        )
    if os.path.isdir(path):
        raise ValueError(
            f"{name} is '{path}', and that is a folder, which cannot be written: give another name."
        )
    target, trial = _target_and_unfinished(path)
    try:
        _require_replaceable(target)
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise _unwritten(error, path) from error
    return path


def _either(suffixes: tuple[str, ...]) -> str:
    return suffixes[0] if len(suffixes) == 1 else f"one of {', '.join(suffixes)}"


def _target_and_unfinished(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The file that `path` is or points to, and one of no other writer beside it."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(f".{secrets.token_hex(8)}.part")


def _require_replaceable(target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):
            raise OSError(errno.EINVAL, "There is something that is no file")
        if not os.access(target, os.W_OK):
            raise OSError(errno.EACCES, "The file is write-protected")


def _unwritten(error: OSError, path: Any) -> OSError:
    """`error` as one of writing `path`."""
    cause = (error.strerror or str(error)).rstrip(".")
    return OSError(error.errno, f"{cause}. Nothing was written. {REMEDY}", os.fspath(path))


def readable(path: Any, name: str = "path") -> Path:
    """`path`, or an error that tells why no file can be read there."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} is a {type(path).__name__}, and it must be text or a Path.")
    path = Path(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is '{path}', and that is a folder: name a file in it.")
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{name} is '{path}', and there is no such file in '{path.absolute().parent}'."
        )
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{name} is '{path}', and you have no permission to read it.")
    return path


KINDS = (
    (8, b"{", "it is safetensors; `bayesmerge.checkpoints.load` reads saved posteriors"),
    (0, b"CDF", "it is netCDF 3; `bayesmerge.Preview.load` reads saved previews"),
    (
        0,
        b"PK\x03\x04",
        "it is a zip archive, as torch.save, numpy.savez and checkpoints of fits are",
    ),
    (0, b"\x80", "it is a pickle, which can run any code and is never read here"),
    (0, b"\x93NUMPY", "it is an array of numpy.save"),
    (0, b"\x89HDF", "it is HDF5, as netCDF 4, Keras and h5py write"),
    (0, b"\x1f\x8b", "it is compressed by gzip"),
    (0, b"version https://git-lfs", "it is a pointer of Git LFS: run `git lfs pull`"),
    (0, b"<", "it is a web page, perhaps of a failed download"),
)


def other_kind(path: Path, own: bytes) -> str:
    """What `path` seems to be, or nothing where that is unknown or begins with `own`."""
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        return "it is empty"
    found = ((magic, text) for at, magic, text in KINDS if head[at:].startswith(magic))
    magic, text = next(found, (own, ""))
    return "" if magic == own else text
