"""The shape of the house: which way imports point, what is public, what it costs to import."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bayesmerge as bm

PACKAGE = Path(bm.__file__).parent
FLOORS = (
    ("arrays", "keys", "linear_algebra"),
    ("families",),
    ("mixtures",),
    ("tasks", "fingerprint", "files", "lora", "points", "origins"),
    ("priors",),
    ("fit",),
    ("numpyro",),
    ("merging", "removal", "grid"),
    ("schemes", "gradient_mismatch", "leverages", "refinement"),
    ("previews", "diagnostics", "checkpoints"),
    ("demo",),
    ("cli",),
)
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imports_of(path):
    """The project's own modules that a file imports, as dotted names below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bayesmerge"):
            parts = node.module.split(".")[1:]
            found |= {".".join(parts)} if parts else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {
                ".".join(alias.name.split(".")[1:])
                for alias in node.names
                if alias.name.startswith("bayesmerge.")
            }
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in HEIGHT, f"{own} has no floor in this test"
    for imported in imports_of(path):
        floor = imported.split(".")[0]
        assert HEIGHT[floor] < HEIGHT[own] or floor == own, (
            f"{own} imports {imported}, which lies above it"
        )


def test_there_is_no_cycle():
    graph = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports_of(path)
        for path in modules()
    }
    done, active = set(), []

    def visit(module):
        assert module not in active, f"cycle: {[*active, module]}"
        if module in done:
            return
        active.append(module)
        for imported in graph.get(module, ()):
            visit(imported)
        active.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_few_names_are_public():
    assert len(bm.__all__) <= 35
    assert all(hasattr(bm, name) for name in bm.__all__)


@pytest.mark.parametrize("name", bm.__all__)
def test_public_names_are_documented(name):
    documentation = inspect.getdoc(getattr(bm, name)) or ""
    if inspect.ismodule(getattr(bm, name)):
        return
    assert len(documentation) > 40
    if name not in ("ConvergenceWarning", "Preview"):
        assert ">>>" in documentation, f"{name} has no example"
    if inspect.isfunction(getattr(bm, name)):
        assert "Source:" in documentation, f"{name} names no source"


@pytest.mark.parametrize("name", [n for n in bm.__all__ if inspect.isfunction(getattr(bm, n))])
def test_no_module_has_the_name_of_a_public_function(name):
    assert not (PACKAGE / f"{name}.py").exists()


def test_importing_is_light():
    code = (
        "import sys, bayesmerge, jax\n"
        "heavy = {'xarray', 'pandas', 'matplotlib', 'sklearn', 'numpyro', 'typer', 'tqdm',"
        " 'optimistix', 'optax', 'safetensors', 'plotly', 'moocore'}\n"
        "print(sorted(heavy & set(sys.modules)), jax.config.jax_enable_x64)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
