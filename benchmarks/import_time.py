"""What `import bayesmerge` costs next to the libraries it stands on, in fresh interpreters."""

import argparse
import json
import statistics
import subprocess
import sys

MODULES = ("jax", "equinox", "bayesmerge")
HEAVY = (
    "matplotlib",
    "numpyro",
    "optax",
    "optimistix",
    "pandas",
    "scipy.optimize",
    "sklearn",
    "tqdm",
    "typer",
    "xarray",
)

IMPORT = """
import json, sys, time
start = time.perf_counter()
import {module}
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""


def fresh_import(module: str) -> tuple[float, list[str]]:
    """Seconds of the import in a new interpreter, and all modules it then holds."""
    command = [sys.executable, "-c", IMPORT.format(module=module)]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    seconds, loaded = json.loads(output)
    return seconds, loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    loaded = {module: fresh_import(module)[1] for module in MODULES}
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(repeats):
        for module in MODULES:
            times[module].append(fresh_import(module)[0])
    unit = statistics.median(times["jax"])
    print(f"{'import':14}{'median':>12}{'of jax':>10}{'modules':>10}   heavy ones among them")
    for module in MODULES:
        median = statistics.median(times[module])
        heavy = ", ".join(name for name in HEAVY if name in loaded[module]) or "none"
        print(
            f"{module:14}{1e3 * median:9.0f} ms{median / unit:10.2f}"
            f"{len(loaded[module]):10}   {heavy}"
        )


if __name__ == "__main__":
    main()
