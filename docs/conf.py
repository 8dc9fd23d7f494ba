"""Sphinx: Markdown pages, executed notebooks, and docstrings in the same dialect."""

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "bayesmerge"
author = copyright = "The bayesmerge authors"
version = release = importlib.metadata.version("bayesmerge")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.doctest"]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "attrs_inline"]
html_theme = "furo"
html_title = "bayesmerge"
html_theme_options = {
    "light_css_variables": {"code-font-size": "72%"},
    "dark_css_variables": {"code-font-size": "72%"},
}
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "separated"
exclude_patterns = ["_build"]
nb_execution_mode = "off"
nb_merge_streams = True


def copy_tutorials(app: Any, config: Any) -> None:
    """The executed notebooks, as they are."""
    here = Path(app.srcdir)
    (here / "tutorials").mkdir(exist_ok=True)
    for notebook in (here.parent / "tutorials").glob("*.ipynb"):
        shutil.copy(notebook, here / "tutorials")


def as_rest(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Fences around examples go, and dollar signs become math."""
    text = "\n".join(line for line in lines if line.strip() not in ("```", "```python"))

    def display(match: re.Match[str]) -> str:
        formula = " ".join(match[1].split())
        return f"\n\n.. math:: {formula}\n\n"

    text = re.sub(r"\$\$(.+?)\$\$", display, text, flags=re.DOTALL)
    text = re.sub(
        r"\$(.+?)\$", lambda m: f":math:`{' '.join(m[1].split())}`", text, flags=re.DOTALL
    )
    lines[:] = text.split("\n")


def mathml(formula: str, display: str) -> str:
    """Formulas as MathML, which browsers draw themselves: pages need no network."""
    formula = formula.replace(r"\arg", r"\operatorname{arg}").replace(r"\setminus", r"\backslash")
    return convert(formula, display=display)


def inline_math(translator: Any, node: Any) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def display_math(translator: Any, node: Any) -> None:
    translator.body.append(f'<p class="math">{mathml(node.astext(), "block")}</p>')
    raise SkipNode


def setup(app: Any) -> None:
    app.connect("config-inited", copy_tutorials)
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("autodoc-process-docstring", as_rest)
