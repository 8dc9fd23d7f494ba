"""Mixtures, and products of them with anything: densities, modes, draws."""

from bayesmerge.mixtures.maxima import Maxima
from bayesmerge.mixtures.mixture import Mixture
from bayesmerge.mixtures.product import Product

__all__ = ["Maxima", "Mixture", "Product"]
