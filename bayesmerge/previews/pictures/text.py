"""Names of users in pictures, as they are written: `$`, a leading `_` and TeX mean nothing."""

import textwrap
from typing import TYPE_CHECKING, Any

from bayesmerge.families.show import one_line

if TYPE_CHECKING:
    from matplotlib.colorbar import Colorbar
    from matplotlib.legend import Legend

VERBATIM: dict[str, Any] = {"parse_math": False, "usetex": False}
"""Properties of a matplotlib text that holds what a user wrote."""

MARK = "\N{ZERO WIDTH SPACE}"


def wrapped(text: str, width: int = 16, most: int = 3) -> str:
    """A long name in at most so many lines, the rest of it left out."""
    width = max(width, min(max(map(len, one_line(text).split())), 24))
    lines = textwrap.wrap(one_line(text), width, max_lines=most, placeholder=" …")
    return "\n".join(lines)


def artist_label(text: str) -> str:
    """The label of a line or patch that a legend, also one made later, shows as `text`."""
    text = wrapped(text, 40)
    if "$" not in text and not text.startswith("_"):
        return text
    return MARK + text.replace("$", r"\$")


def as_written(legend: "Legend") -> "Legend":
    """`legend`, whose texts are no markup where `artist_label` made them."""
    for text in legend.get_texts():
        if text.get_text().startswith(MARK):
            text.set(text=text.get_text().removeprefix(MARK).replace(r"\$", "$"), **VERBATIM)
    return legend


def colour_bar(figure: Any, mappable: Any, label: str, **options: Any) -> "Colorbar":
    """`figure.colorbar` with a label of a user."""
    bar = figure.colorbar(mappable, **options)
    bar.set_label(label, **VERBATIM)
    return bar
