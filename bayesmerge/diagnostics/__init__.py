"""What a careful person asks of a merged posterior before using it."""

from bayesmerge.diagnostics.diagnose import Diagnosis, MergeWarning, diagnose
from bayesmerge.diagnostics.difference import Difference, as_gaussian, difference
from bayesmerge.diagnostics.overlap import Overlap, overlap
from bayesmerge.diagnostics.reweighting import Reweighted, reweighted

__all__ = [
    "Diagnosis",
    "Difference",
    "MergeWarning",
    "Overlap",
    "Reweighted",
    "as_gaussian",
    "diagnose",
    "difference",
    "overlap",
    "reweighted",
]
