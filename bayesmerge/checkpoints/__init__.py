"""Posteriors on disk."""

from bayesmerge.checkpoints.posteriors import Saved, load, save

__all__ = ["Saved", "load", "save"]
