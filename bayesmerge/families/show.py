"""How objects print: their numbers, in few lines, at little cost and never with an error."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from bayesmerge.families.checks import is_concrete
from bayesmerge.families.layout import Layout

ENTRIES = 4
ROWS = 12
IMPROPER = "improper"


def one_line(text: Any) -> str:
    """A name without line breaks and control characters."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) or "''"


def number(x: Any) -> str:
    """Four digits."""
    return f"{float(x):.4g}"


def numbers(values: Any) -> str:
    """The first entries of an array."""
    flat = np.asarray(values).reshape(-1)
    shown = ", ".join(number(x) for x in flat[:ENTRIES])
    return f"{shown}, …" if flat.size > ENTRIES else shown


def first(leaf: Any) -> np.ndarray:
    """As many entries as are printed, and one more where there are more."""
    return np.asarray(leaf).reshape(-1)[: ENTRIES + 1].astype(float)


def safely(show: Callable[[Any], str]) -> Callable[[Any], str]:
    """A `__repr__` that shows shapes where numbers cannot be had: in `jax.jit`, in a pytree whose
    leaves are something else."""

    def __repr__(self: Any) -> str:
        try:
            with np.errstate(all="ignore"):
                return show(self) if is_concrete(self) else f"{show_shapes(self)}, traced"
        except Exception:
            return eqx.tree_pformat(self)

    return __repr__


def over(layout: Layout) -> str:
    """`over {"b": (), "w": (30,)}`, or `over (30,)` where θ is one array."""
    if layout.names == ("",):
        return f"over {layout.shapes[0]}"
    names = [one_line(leaf_name(name)) for name in layout.names]
    shown = [f'"{n}": {s}' for n, s in zip(names, layout.shapes, strict=True)]
    more = [f"… {len(shown) - ENTRIES} more"] if len(shown) > ENTRIES + 1 else []
    return f"over {{{', '.join((shown[:ENTRIES] if more else shown) + more)}}}"


def leaf_name(path: str) -> str:
    """`['layer'][0].w` as `layer.0.w`."""
    return re.sub(r"\[(['\"]?)(.*?)\1\]", r".\2", path).removeprefix(".") if path else "theta"


def show_shapes(posterior: Any) -> str:
    batch = getattr(posterior, "batch_shape", ())
    shape = f", a batch of {batch}" if batch else ""
    return f"{type(posterior).__name__} {over(posterior.layout)}{shape}"


def show_family(posterior: Any) -> str:
    """An exponential family: one line for one leaf, a row a leaf for more."""
    layout, batch = posterior.layout, posterior.batch_shape
    columns, note = _columns(posterior)
    if layout.names == ("",) and not batch and _is_short(columns, layout):
        inside = ", ".join(
            numbers(x[0]) if len(name) == 1 else f"{name}={numbers(x[0])}"
            for name, x in columns.items()
        )
        return f"{type(posterior).__name__}({inside}){note}"
    head = show_shapes(posterior) + (", the first of which is" if batch else "") + note
    if len(layout.names) == 1:
        return f"{head}: {_cells(columns)}"
    return "\n".join([f"{head}:", *_rows(columns, layout)])


def show_mixture(mixture: Any) -> str:
    """Weights, and the first components."""
    weights = np.exp(np.asarray(mixture.log_weights, float))
    kind = type(mixture.components).__name__
    head = f"Mixture of {len(weights)} {kind} {over(mixture.layout)}: weights {numbers(weights)}"
    rows: list[str] = []
    for k in range(min(len(weights), ENTRIES)):
        member = jax.tree.map(lambda x, k=k: np.asarray(x)[k], mixture.components)
        columns, _ = _columns(member)
        one = len(mixture.layout.names) == 1
        for row in [f"  {_cells(columns)}"] if one else _rows(columns, mixture.layout):
            rows.append(f"  weight {number(weights[k]):<6}{row}")
    if len(weights) > ENTRIES:
        rows.append(f"  … and {len(weights) - ENTRIES} more components")
    return "\n".join([head, *_at_most(rows)])


def show_product(product: Any) -> str:
    """Exponents and factors."""
    exponents = np.asarray(product.exponents, float)
    batch = exponents.shape[:-1]
    weightings = f", {batch} weightings, the first of which is" if batch else ""
    factors = [repr(factor).splitlines()[0].rstrip(":") for factor in product.factors]
    powers = exponents.reshape(-1, len(factors))[0]
    head = f"Product of {len(factors)} factors {over(product.layout)}{weightings}:"
    rows = [f"  exponent {number(a)}: {f}" for a, f in zip(powers, factors, strict=True)]
    return "\n".join([head, *_at_most(rows)])


def show_precision(precision: Any) -> str:
    """The entries as NumPy prints them, in short."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(precision.value):
        array = np.asarray(leaf)
        shown = np.array2string(array, precision=4, threshold=4 * ENTRIES, edgeitems=2)
        name = one_line(leaf_name(jax.tree_util.keystr(path))) if path else "value"
        rows.append(f"  {name} {array.shape}: {' '.join(shown.split())}")
    head = f"{type(precision).__name__} {over(precision.layout)}:"
    return "\n".join([head, *_at_most(rows)])


def table(columns: Mapping[str, Any], rows: Sequence[str], most: int | None = ROWS) -> str:
    """Aligned columns of numbers, with a name in front of every row."""
    count = len(rows) if most is None else min(len(rows), most)
    names = [one_line(name) for name in rows[:count]]
    cells = {
        one_line(title): [x if isinstance(x, str) else number(x) for x in column[:count]]
        for title, column in columns.items()
    }
    width = max(map(len, names), default=0)
    widths = [max(len(title), *map(len, column), 0) for title, column in cells.items()]
    lines = [[" " * width, *(t.rjust(w) for t, w in zip(cells, widths, strict=True))]]
    for i, name in enumerate(names):
        row = [column[i].rjust(w) for column, w in zip(cells.values(), widths, strict=True)]
        lines.append([name.ljust(width), *row])
    more = [f"… and {len(rows) - count} more"] if count < len(rows) else []
    return "\n".join(["  ".join(line).rstrip() for line in lines] + more)


def _columns(posterior: Any) -> tuple[dict[str, list[np.ndarray]], str]:
    """Numbers by name, leaf by leaf, of a posterior or of the first of a batch; and what to say."""
    place = (0,) * len(posterior.batch_shape)
    member = jax.tree.map(lambda x: np.asarray(x)[place], posterior)
    columns: dict[str, list[np.ndarray]]
    columns, note = member._numbers()
    return columns, f", {note}" if note else ""


def _is_short(columns: Mapping[str, list[np.ndarray]], layout: Layout) -> bool:
    """Whether θ is a scalar, or the posterior has one number for every entry."""
    return layout.shapes == ((),) or (
        len(columns) == 1 and len(layout.shapes[0]) == 1 and layout.size <= ENTRIES
    )


def _cells(columns: Mapping[str, list[np.ndarray]]) -> str:
    return ", ".join(f"{title} {numbers(leaves[0])}" for title, leaves in columns.items())


def _rows(columns: Mapping[str, list[np.ndarray]], layout: Layout) -> list[str]:
    names = [one_line(leaf_name(name)) for name in layout.names[:ROWS]]
    texts = {
        title: [f"{title} {numbers(x)}" for x in leaves[:ROWS]] for title, leaves in columns.items()
    }
    widths = [max(map(len, column)) for column in texts.values()]
    width = max(map(len, names))
    rows = []
    for i, name in enumerate(names):
        cells = [t[i].ljust(w) for t, w in zip(texts.values(), widths, strict=True)]
        rows.append("  ".join([f"  {name.ljust(width)}", *cells]).rstrip())
    return _at_most([*rows, *[""] * (len(layout.names) - len(rows))])


def _at_most(rows: list[str]) -> list[str]:
    return (
        rows if len(rows) <= ROWS else [*rows[: ROWS - 1], f"  … and {len(rows) - ROWS + 1} more"]
    )
