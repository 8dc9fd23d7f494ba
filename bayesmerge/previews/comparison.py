"""How well a preview predicts a reference."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bayesmerge.previews.pareto import best_row, front, hypervolume

TOP = 0.1
"""The share of weightings that counts as the best."""


class Comparison(NamedTuple):
    """How a preview differs from a reference over the same weightings.

    - `mse`: mean (preview − reference)² (FP Table 1).
    - `rank_correlation`: Spearman's, of the two metrics over weightings.
    - `top_overlap`: how many of the reference's best tenth of weightings are also in the preview's,
      as a share; of equal values any may count, and the share is expected.
    - `regret`: the reference's best value minus its value where the preview is best: what is lost
      by trusting the preview, of whose equally best weightings the first counts. Never negative.
    - `front_share`: of the hypervolume below the reference's Pareto front over all metrics, the
      share below its values where the preview has its own front; `None` without several metrics.
    - `compared`: the number of weightings at which both are finite, which these are taken over.
    """

    mse: float
    rank_correlation: float
    top_overlap: float
    regret: float
    front_share: float | None
    compared: int


def compared(
    values: Float[np.ndarray, " A"],
    truth: Float[np.ndarray, " A"],
    higher_is_better: bool,
    metrics: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None,
) -> Comparison:
    """Of one metric of a preview and of a reference; and of the fronts of all `metrics` of both."""
    from scipy.stats import spearmanr

    both = np.isfinite(values) & np.isfinite(truth)
    if not both.any():
        raise ValueError("preview and reference are never both a number: nothing to compare.")
    values, truth = values[both], truth[both]
    spread = np.ptp(values) > 0 and np.ptp(truth) > 0
    rank_correlation = spearmanr(values, truth).statistic if spread else np.nan
    lost = truth[best_row(truth, higher_is_better)] - truth[best_row(values, higher_is_better)]
    return Comparison(
        mse=float(np.mean((values - truth) ** 2)),
        rank_correlation=float(rank_correlation),
        top_overlap=_top_overlap(values, truth, higher_is_better),
        regret=float(lost if higher_is_better else -lost),
        front_share=None if metrics is None else _front_share(*metrics, higher_is_better),
        compared=int(both.sum()),
    )


def _top_overlap(values: np.ndarray, truth: np.ndarray, higher_is_better: bool) -> float:
    """Expected, where which of equal values come first is left to chance."""
    sign = 1 if higher_is_better else -1
    count = max(1, round(TOP * len(values)))
    return float(_in_top(sign * values, count) @ _in_top(sign * truth, count)) / count


def _in_top(values: Float[np.ndarray, " A"], count: int) -> Float[np.ndarray, " A"]:
    """The probability that each is among the `count` largest."""
    threshold = np.sort(values)[-count]
    above, equal = values > threshold, values == threshold
    return above + equal * (count - above.sum()) / equal.sum()


def _front_share(
    seen: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray], higher_is_better: bool
) -> float | None:
    if set(seen) != set(true):
        return None
    of_preview, of_reference = (np.stack([x[n] for n in seen], axis=1) for x in (seen, true))
    nothing = np.nanmin if higher_is_better else np.nanmax
    beyond = nothing(of_reference, axis=0)
    whole = front(of_reference, higher_is_better)
    trusted = front(of_preview, higher_is_better)
    volume = hypervolume(of_reference[whole], beyond, higher_is_better)
    attained = hypervolume(of_reference[trusted], beyond, higher_is_better)
    return attained / volume if volume > 0 else None
