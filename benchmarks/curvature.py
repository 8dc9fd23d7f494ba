"""Full and diagonal GGN of a small network: bayesmerge, laplax, laplace-torch and bare JAX."""

import argparse
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from ggn import (
    Data,
    bare_diagonal,
    bare_full,
    bayesmerge_curvature,
    laplace_torch_curvature,
    laplax_curvature,
    load,
)
from jaxtyping import PyTree
from timing import Contestants, race, show

BLOCK_SIZES = {"full": (1, 8, 32, 64, 256), "diagonal": (1, 16, 64, 256, 1797)}


def contestants(structure: str, params: PyTree, data: Data, slow: bool) -> Contestants:
    compiled = eqx.filter_jit(bayesmerge_curvature(structure))
    bare = bare_full if structure == "full" else bare_diagonal
    field: dict[str, Callable[[], Any]] = {}
    field |= {"bayesmerge": lambda: compiled(params, data), "bare JAX": lambda: bare(params, data)}
    others = {
        "laplax": lambda: laplax_curvature(structure, params, data),
        "laplace-torch": lambda: laplace_torch_curvature(structure, params, data, slow),
    }
    for package, prepared in others.items():
        try:
            field |= prepared()
        except ImportError as error:
            print(f"{package} left out: {error}")
    return field


def difference(result: Any, reference: Any) -> float:
    """The largest difference of entries, relative to the largest entry."""
    x, y = (np.concatenate([np.ravel(a) for a in jax.tree.leaves(r)]) for r in (result, reference))
    return float(np.max(np.abs(x - y)) / np.max(np.abs(y)))


def show_memory(structure: str, params: PyTree, data: Data) -> None:
    """What the compiled program allocates beside its arguments and its result."""
    print("memory beyond the result, bayesmerge")
    for block_size in (None, *BLOCK_SIZES[structure]):
        compute = jax.jit(bayesmerge_curvature(structure, block_size))
        memory = compute.lower(params, data).compile().memory_analysis()
        print(f"block_size={block_size!s:21}{memory.temp_size_in_bytes / 2**20:8.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--curvlinops", action="store_true", help="its slower backend as well")
    options = parser.parse_args()
    params, data = load()
    for structure in BLOCK_SIZES:
        field = contestants(structure, params, data, options.curvlinops)
        show(f"{structure} GGN", race(field, options.repeats))
        reference = field["bare JAX"]()
        print("largest difference from bare JAX, relative to the largest entry")
        for name, compute in field.items():
            print(f"{name:32}{difference(compute(), reference):10.1e}")
        show_memory(structure, params, data)


if __name__ == "__main__":
    main()
