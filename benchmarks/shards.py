"""Models cut into shards: merged Laplace and variational posteriors against the Laplace posterior
of all data and against NUTS, before and after refinement. Not a timing.

For every model the largest distance of the merged mode over all parameters, in posterior standard
deviations, and the range of ratios of standard deviations, both in unconstrained coordinates.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

import bayesmerge as bm
from bayesmerge.diagnostics import MergeWarning, difference
from bayesmerge.fit import fit_shards

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from model_zoo import ZOO, Example

STEPS = (1, 2, 3, 5, 10, 30)


def nuts(example: Example, target: Any, draws: int) -> dict[str, Any]:
    """Draws in unconstrained coordinates, and how well the chains mixed."""
    kernel = NUTS(example.model, target_accept_prob=0.95)
    chains = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=draws, num_samples=draws, **chains)
    mcmc.run(jax.random.key(0), *example.whole(), extra_fields=("diverging",))
    samples = {name: x for name, x in mcmc.get_samples().items() if name in target.model.site_names}
    return {
        "theta": target.model.unconstrain(samples),
        "diverging": int(mcmc.get_extra_fields()["diverging"].sum()),
    }


def against_draws(posterior: Any, draws: Any) -> tuple[float, float, float]:
    """The largest |mean − mean| in standard deviations of the draws, and the range of sd ratios."""
    layout = posterior.layout
    rows = np.asarray(jax.vmap(layout.ravel)(draws))
    mean, sd = rows.mean(0), rows.std(0)
    mode = np.asarray(layout.ravel(posterior.mode()))
    ratio = np.sqrt(np.asarray(layout.ravel(posterior.variance()))) / sd
    return float(np.max(np.abs(mode - mean) / sd)), float(ratio.min()), float(ratio.max())


def against(posterior: Any, reference: Any) -> tuple[float, float, float]:
    found = difference(posterior, reference)
    ratio = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found.spread)])
    return abs(found.largest[1]), float(ratio.min()), float(ratio.max())


def shown(numbers: tuple[float, float, float]) -> str:
    return f"{numbers[0]:9.2g} {numbers[1]:5.2f}–{numbers[2]:5.2f}"


def variational(target: Any, prior: Any, start: Any) -> Any:
    return bm.von(
        target,
        prior,
        start=start,
        key=jax.random.key(0),
        num_samples=64,
        resample=False,
        num_steps=300,
        progress=False,
    )


def refinements(shards: Any, start: Any, weights: Any, prior: Any, reference: Any) -> None:
    for steps in STEPS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                refined = bm.refine(shards, start, weights, prior, steps=steps)
            refined = refined.laplace() if hasattr(refined, "laplace") else refined
            print(f"  refined {steps:2d} to Laplace  {shown(against(refined, reference))}")
        except (ValueError, RuntimeError) as error:
            print(f"  refined {steps:2d}: {reason(error)}")


def reason(error: Exception) -> str:
    text = str(error)
    return (
        text[text.find("the ") :][:110].replace("\n", " ")
        if "Above is" not in text
        else next(
            (line for line in text.splitlines() if line.startswith(("the ", "these ", "start "))),
            text[:80],
        )[:110]
    )


def study(name: str, example: Example, draws: int) -> None:
    shards = [bm.numpyro.target(example.model, *part) for part in example.parts()]
    full = bm.numpyro.target(example.model, *example.whole())
    prior = bm.numpyro.prior(shards)
    weights = np.ones(len(shards))
    size = full.model.layout.size
    print(
        f"\n{name}: {len(shards)} shards of {shards[0].num_examples}, {size} parameters, prior "
        f"{'exact' if isinstance(prior, bm.ExactPrior) else 'Gaussian'}",
        flush=True,
    )
    sampled = nuts(example, full, draws)
    try:
        reference = bm.laplace(full, prior)
        print(f"  full Laplace to NUTS   {shown(against_draws(reference, sampled['theta']))}")
    except ValueError as error:
        print("  no full Laplace:", str(error)[:90])
        reference = None
    print(f"  NUTS: {sampled['diverging']} divergences")
    try:
        posteriors = list(fit_shards(shards, prior).values())
        merged = bm.merge(posteriors, weights, prior)
        gaussian = merged.laplace() if hasattr(merged, "laplace") else merged
    except (ValueError, RuntimeError) as error:
        print("  no merge of shards:", reason(error))
        if reference is not None:
            refinements(shards, shards[0].start, weights, prior, reference)
        return
    if reference is not None:
        print(
            f"  merged to full Laplace {shown(against(gaussian, reference))}"
            f"  worst {difference(gaussian, reference).largest[0]}"
        )
    print(f"  merged to NUTS         {shown(against_draws(gaussian, sampled['theta']))}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = bm.diagnose(shards, posteriors, weights, prior, key=jax.random.key(1))
    fired = [str(w.message) for w in caught if issubclass(w.category, MergeWarning)]
    shift = "none" if found.refined is None else "{1:.2g} in {0}".format(*found.refined.largest)
    print(f"  diagnose: shift {shift}, k {found.reweighted.k:.2f}, warnings {len(fired)}")
    for concern in found.concerns:
        print("    !", concern[:100])
    if reference is not None:
        refinements(shards, gaussian, weights, prior, reference)
    try:
        fitted = [variational(t, prior, q) for t, q in zip(shards, posteriors, strict=True)]
        merged = bm.merge(fitted, weights, prior)
        gaussian = merged.laplace() if hasattr(merged, "laplace") else merged
        print(f"  merged VON to NUTS     {shown(against_draws(gaussian, sampled['theta']))}")
        joint = variational(full, prior, None if reference is None else reference)
        print(f"  full VON to NUTS       {shown(against_draws(joint, sampled['theta']))}")
    except (ValueError, RuntimeError, bm.fit.DivergenceError) as error:
        print("  VON:", str(error)[:90])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for name, example in ZOO.items():
        if options.only in name:
            try:
                study(name, example, options.draws)
            except Exception as error:
                print("FAILED", name, type(error).__name__, str(error)[:300])
            jax.clear_caches()


if __name__ == "__main__":
    main()
