"""Previews: metrics of the merged models of many weightings, and of their joint training."""

from bayesmerge.previews.comparison import Comparison
from bayesmerge.previews.joint import joint_training
from bayesmerge.previews.pareto import Front
from bayesmerge.previews.preview import preview
from bayesmerge.previews.result import Best, Preview

__all__ = ["Best", "Comparison", "Front", "Preview", "joint_training", "preview"]
