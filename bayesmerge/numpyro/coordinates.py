"""What the unconstrained coordinates of sites are called, and their values in their own units."""

from typing import Any

import numpy as np
from jaxtyping import PyTree
from numpyro.distributions import biject_to, transforms

from bayesmerge.numpyro import sites


def coordinates(model: Any, theta: PyTree) -> dict[str, tuple[str, np.ndarray | None]]:
    """For every latent site of a model the name of its coordinates, such as `log sigma`, and where
    these are transformed one by one its value at θ, otherwise `None`."""
    found = {}
    for name, site in model.trace(theta).items():
        if not sites.is_latent(site) or name not in theta:
            continue
        label = _label(name, biject_to(site["fn"].support))
        value = np.asarray(site["value"], float)
        by_entry = not label.endswith(OTHER) and value.shape == np.shape(theta[name])
        found[name] = label, value if by_entry else None
    return found


OTHER = " (unconstrained)"


def _label(name: str, transform: Any) -> str:
    while isinstance(transform, transforms.IndependentTransform):
        transform = transform.base_transform
    parts = transform.parts if isinstance(transform, transforms.ComposeTransform) else [transform]
    first = type(parts[0])
    if first is transforms.IdentityTransform and len(parts) == 1:
        return name
    simple = all(isinstance(part, transforms.AffineTransform) for part in parts[1:])
    if simple and first in (transforms.ExpTransform, transforms.SigmoidTransform):
        word = "log" if first is transforms.ExpTransform else "logit"
        return f"{word} {name}" if len(parts) == 1 else f"{word} {name} (shifted or scaled)"
    return name + OTHER
