"""FP Figs. 8 and 9 and the MNIST rows of FP Tables 1 and 2, with the papers' numbers beside ours.

Full size is the default; `--pool 2 --count 20000 --spacing 0.1` takes minutes. Posteriors, previews
and joint training are kept in `--folder`: an interrupted run goes on where it was. Posteriors found
there are used whatever the other options are, so give each setting of them a folder.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from mnist import CLASSES, FOLDER, Tasks, mnist, tasks

import bayesmerge as bm
from bayesmerge.fit.curvature import Structure
from bayesmerge.previews import Basis, Climbs, Compute, Each, Fastest, Line, Refinement

TOWARDS, JOINT = "towards prior", "joint training"
MOST_GRADIENTS, MISMATCH = 200, 0.01
MODES = Fastest((Climbs(), Line(), Basis(tolerance=0.01, largest=0.25), Each()))
STEPS, STEP_SIZE, SAMPLES = 25, 0.1, 4
MIXTURE_STEP_SIZE, WEIGHT_STEP_SIZE = 0.02, 3e-6


class Printed(NamedTuple):
    """MSE to joint (FP Table 1), and the best accuracy in the preview and there (FP Table 2)."""

    mse: float
    best: float
    joint_there: float


PAPER = {
    "imbalanced": {
        "averaging": Printed(0.2067, 76.8, 90.0),
        "full Gaussian": Printed(0.1528, 80.3, 89.4),
        "mixture": Printed(0.0463, 87.2, 90.4),
    },
    "balanced": {
        "averaging": Printed(0.2015, 71.3, 90.7),
        "full Gaussian": Printed(0.1191, 78.5, 90.5),
        "mixture": Printed(0.0809, 83.2, 90.2),
    },
}


def averaging(problem: Tasks, options: argparse.Namespace) -> dict[str, Any]:
    """Modes under one precision: their merge is Σ_t α_tθ_t."""
    modes = {t: bm.find_mode(target, problem.prior).params for t, target in problem.targets.items()}
    return {t: bm.IsotropicGaussian.from_mean_precision(mode, 1.0) for t, mode in modes.items()}


def full_gaussian(problem: Tasks, options: argparse.Namespace) -> dict[str, Any]:
    return von(problem, "full", batch_size=options.batch_size, progress=True)


def von(
    problem: Tasks, structure: Structure, batch_size: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Variational online Newton from the prior, as many steps as FP B.2 takes."""
    return {
        t: bm.von(
            target,
            problem.prior,
            start=_wide(problem, structure),
            structure=structure,
            step_size=STEP_SIZE,
            num_steps=STEPS,
            num_samples=SAMPLES,
            batch_size=batch_size,
            key=jax.random.key(0),
            progress=progress and f"{structure} Gaussian, {t}",
        )
        for t, target in problem.targets.items()
    }


def mixture(problem: Tasks, options: argparse.Namespace) -> dict[str, Any]:
    """A variational mixture, its components around the prior's mean at first."""
    return {
        t: bm.mixture_von(
            target,
            problem.prior,
            start=_wide(problem, "full"),
            num_components=options.components,
            spread=options.spread,
            step_size=options.mixture_step_size,
            weight_step_size=WEIGHT_STEP_SIZE,
            num_steps=STEPS,
            num_samples=SAMPLES,
            batch_size=options.batch_size,
            key=jax.random.key(0),
            progress=f"mixture, {t}",
        )
        for t, target in problem.targets.items()
    }


def towards_prior(problem: Tasks, options: Any = None) -> dict[str, Any]:
    """Laplace with the curvature on the way from every mode to the prior's: not in FP."""
    to = problem.prior.mode()
    modes = {t: bm.find_mode(target, problem.prior).params for t, target in problem.targets.items()}
    return {
        t: bm.laplace(problem.targets[t], problem.prior, params=mode, towards=to)
        for t, mode in modes.items()
    }


POSTERIORS: dict[str, Callable[[Tasks, argparse.Namespace], dict[str, Any]]] = {
    "averaging": averaging,
    "full Gaussian": full_gaussian,
    "mixture": mixture,
    TOWARDS: towards_prior,
}


def _wide(problem: Tasks, structure: Structure) -> Any:
    """The prior as a Gaussian of this structure."""
    return problem.prior.structured(structure)


def _fitted(setting: str, name: str, problem: Tasks, options: argparse.Namespace) -> dict[str, Any]:
    file = options.folder / f"{setting}, {name}.safetensors"
    if not file.exists():
        start = time.perf_counter()
        bm.checkpoints.save(file, POSTERIORS[name](problem, options))
        print(f"{name}: fitted in {time.perf_counter() - start:.0f} s", flush=True)
    return bm.checkpoints.load(file).posteriors


def surfaces(
    setting: str, problem: Tasks, options: argparse.Namespace
) -> Iterator[tuple[str, bm.Preview]]:
    """Previews by name, the last one joint training."""
    weights = bm.simplex_grid(3, options.spacing)
    refine = Refinement(problem.targets, options.refine) if options.refine else None
    for name in options.posteriors:
        posteriors = _fitted(setting, name, problem, options)
        start = time.perf_counter()
        prior = None if name == "averaging" else problem.prior
        file = options.folder / f"{setting}, {name}{_suffix(options)}.nc"
        seen = bm.preview(
            posteriors, weights, problem.accuracy, prior, modes=MODES, refine=refine, save=file,
            progress=name,
        )  # fmt: skip
        print(f"{name}: swept in {time.perf_counter() - start:.0f} s", flush=True)
        yield name, seen
    start = time.perf_counter()
    joint = _jointly_trained(setting, problem, options)
    print(f"{JOINT}: {time.perf_counter() - start:.0f} s", flush=True)
    yield JOINT, joint


def _jointly_trained(setting: str, problem: Tasks, options: argparse.Namespace) -> bm.Preview:
    """From the merge of TOWARDS until the mismatch is small; where that is not among the posteriors
    from zero, by L-BFGS."""
    weights = bm.simplex_grid(3, options.spacing)
    if TOWARDS not in options.posteriors:
        file = options.folder / f"{setting}, {JOINT} from zero.nc"
        return bm.joint_training(
            problem.targets,
            weights,
            problem.accuracy,
            problem.prior,
            compute=Compute(None, 8),
            save=file,
        )
    posteriors = _fitted(setting, TOWARDS, problem, options)
    file = options.folder / f"{setting}, {JOINT}.nc"
    found = bm.preview(
        posteriors, weights, problem.accuracy, problem.prior, modes=MODES,
        refine=Refinement(problem.targets, MOST_GRADIENTS, until=MISMATCH), save=file,
        progress=JOINT,
    )  # fmt: skip
    gradients, mismatch = found.values("gradients"), found.values("last mismatch")
    print(
        f"{gradients.mean():.1f} gradients each until {MISMATCH:g}; mismatch at most "
        f"{mismatch.max():.3f} posterior standard deviations",
        flush=True,
    )
    return found


def _suffix(options: argparse.Namespace) -> str:
    return f", {options.refine} gradients" if options.refine else ""


def table(setting: str, seen: dict[str, bm.Preview]) -> str:
    """MSE, best accuracy in the preview and of joint training there: ours, and FP's."""
    joint = seen[JOINT]
    head = f"{'':16}{'MSE':>8}{'FP':>8}" + 2 * f"{'best':>8}{'(joint)':>9}" + "  (FP's last)"
    lines = [f"{setting}: joint training at best {100 * joint.best().value:.1f} %", head]
    for name, preview in seen.items():
        if preview is not joint:
            best, there = preview.best(), 100 * joint.values()[preview.best().row]
            paper = PAPER[setting].get(name)
            mse, value, of_joint = ("", "", "") if paper is None else (
                f"{paper.mse:.4f}", f"{paper.best:.1f}", f"({paper.joint_there})"
            )  # fmt: skip
            lines.append(
                f"{name:16}{preview.compare(joint).mse:8.4f}{mse:>8}"
                f"{100 * best.value:8.1f}{f'({there:.1f})':>9}{value:>8}{of_joint:>9}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER, help="a folder of IDX files")
    parser.add_argument("--openml", action="store_true", help="download MNIST instead")
    parser.add_argument("--setting", choices=[*CLASSES, "both"], default="both")
    parser.add_argument("--posteriors", nargs="*", choices=[*POSTERIORS], default=[*POSTERIORS])
    parser.add_argument("--pool", type=int, default=1)
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--spacing", type=float, default=0.02)
    parser.add_argument("--components", type=int, default=20)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--mixture-step-size", type=float, default=MIXTURE_STEP_SIZE)
    parser.add_argument("--batch-size", type=int, help="examples a step of VON and the mixture")
    parser.add_argument("--refine", type=int, default=0, help="gradients for every weighting")
    parser.add_argument("--folder", type=Path, default=Path("fast-previews"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    images = mnist(None if options.openml else options.data, pool=options.pool, count=options.count)
    for setting in CLASSES if options.setting == "both" else [options.setting]:
        seen = dict(surfaces(setting, tasks(setting, images), options))
        print(table(setting, seen), flush=True)
        axes = bm.plots.ternaries(seen, reference=JOINT, label="test accuracy")
        axes[0].figure.savefig(options.folder / f"{setting}{_suffix(options)}.png", dpi=150)
        page = options.folder / f"{setting}{_suffix(options)}.html"
        bm.plots.explore(seen, page, reference=JOINT)


if __name__ == "__main__":
    main()
