"""Guides of variational inference as posterior objects."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, PyTree
from numpyro import handlers
from numpyro.infer import autoguide

from bayesmerge.families.checks import require
from bayesmerge.families.diagonal import DiagonalGaussian
from bayesmerge.families.full import FullGaussian
from bayesmerge.families.recognise import gaussian_of
from bayesmerge.linear_algebra import solve
from bayesmerge.numpyro import sites

DRAWS_REMEDY = "draw from it, and match moments: `bm.fit.moment_matched(model.unconstrain(draws))`"


def guide_posterior(model: Any, guide: Any, params: dict[str, Any]) -> Any:
    """What `Model.from_guide` returns."""
    if not callable(guide):
        raise TypeError(f"guide is a {type(guide).__name__}, and it must be a guide of NumPyro.")
    if isinstance(guide, autoguide.AutoDelta):
        raise TypeError(
            "an AutoDelta guide is a point, which has no precision to merge by: use "
            "`bm.laplace(target, params=model.unconstrain(guide.median(params)))` for the Gaussian "
            "at that point."
        )
    if _mixes_coordinates(guide):
        raise TypeError(
            f"a {type(guide).__name__} guide of this kind is not read by site: {DRAWS_REMEDY}, "
            "with `draws = guide.sample_posterior(key, params, sample_shape=(5000,))`."
        )
    if isinstance(guide, autoguide.AutoContinuous):
        return _of_flat(model, guide, params)
    return _of_sites(model, guide, params)


def _mixes_coordinates(guide: Any) -> bool:
    """Whether a guide has auxiliary sites beside those of the model."""
    if isinstance(guide, autoguide.AutoGuideList):
        return any(isinstance(part, autoguide.AutoContinuous) for part in guide)
    return isinstance(guide, autoguide.AutoSemiDAIS)


def _of_flat(model: Any, guide: Any, params: dict[str, Any]) -> Any:
    """A guide with one normal distribution over a flat vector of all unconstrained sites, in an
    order that the guide alone knows."""
    if guide.prototype_trace is None:
        _guide_trace(model, guide, params, {})
    is_batched = isinstance(guide, autoguide.AutoBatchedMixin)
    try:
        flat = (
            handlers.substitute(guide._get_batched_posterior, data=params)()
            if is_batched
            else guide.get_posterior(params)
        )
    except NotImplementedError:
        flat = None
    except KeyError as error:
        raise ValueError(
            f"params lack {error} of the guide; they have {sorted(params)}: pass "
            f"`svi_result.params`."
        ) from None
    flat = flat.base_dist if isinstance(flat, dist.Independent) else flat
    stock = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal)
    if not isinstance(flat, stock):
        raise TypeError(
            f"a {type(guide).__name__} guide is not Gaussian in unconstrained coordinates: "
            f"{DRAWS_REMEDY}."
        )
    layout, order = model.layout, _order(model, guide)
    mean = jnp.ravel(flat.mean)[order]
    if isinstance(flat, dist.Normal):
        precision = jnp.ravel(jnp.broadcast_to(flat.scale, flat.mean.shape))[order] ** -2.0
        return DiagonalGaussian.from_mean_precision(layout.unravel(mean), layout.unravel(precision))
    if isinstance(flat, dist.LowRankMultivariateNormal):
        each = jnp.vectorize(_low_rank_precision, signature="(p,r),(p)->(p,p)")
        precision, positive = each(flat.cov_factor, flat.cov_diag), jnp.array(True)
    else:
        precision = flat.precision_matrix
        positive = jnp.all(jnp.diagonal(flat.scale_tril, axis1=-2, axis2=-1) > 0)
    message = (
        "the guide has no variance in some direction, which AutoLaplaceApproximation does where "
        "the Hessian at its optimum is not positive definite. Train it longer, or use `bm.laplace`."
    )
    blocks = require(precision, positive, message).reshape(-1, *precision.shape[-2:])
    precision = jax.scipy.linalg.block_diag(*blocks)[jnp.ix_(order, order)]
    return FullGaussian.from_mean_precision(layout.unravel(mean), precision)


def _order(model: Any, guide: Any) -> Int[Array, " P"]:
    """Which entry of the guide's flat vector every entry of the model's flat θ is."""
    numbers = np.arange(guide.latent_dim)
    unpacked = guide._unpack_latent(jnp.asarray(numbers))
    shapes = {name: jnp.shape(x) for name, x in unpacked.items()}
    if shapes != model.sites.latent:
        raise ValueError(
            f"the guide has {len(numbers)} unconstrained parameters and the model "
            f"{model.layout.size}, with sites of shapes {shapes} and {model.sites.latent}: the "
            "guide is of another model."
        )
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(unpacked)])


def _low_rank_precision(W: Float[Array, "P R"], d: Float[Array, " P"]) -> Float[Array, "P P"]:
    """(WWᵀ + diag d)⁻¹, by Woodbury's identity."""
    V = W / d[:, None]
    inner = jnp.eye(W.shape[1], dtype=W.dtype) + W.T @ V
    return jnp.diag(1 / d) - V @ solve(inner, V.T)


def _of_sites(model: Any, guide: Callable[..., Any], params: dict[str, Any]) -> Any:
    """A guide with a site for every latent site of the model."""
    trace = _guide_trace(model, guide, params, {})
    _require_params({name for name, site in trace.items() if site["type"] == "param"}, params)
    named = {name for name, site in trace.items() if sites.is_latent(site)}
    missing, extra = set(model.site_names) - named, named - set(model.site_names)
    if missing or extra:
        raise ValueError(
            f"the guide and the model must have the same latent sites: the guide lacks "
            f"{sorted(missing)} and has {sorted(extra)} besides."
        )
    found = gaussian_of(eqx.Partial(_log_density, model, guide, params), model.layout)
    if found is None:
        kinds = {name: type(trace[name]["fn"]).__name__ for name in model.site_names}
        raise TypeError(
            f"the guide, with sites {kinds}, is not Gaussian in the model's unconstrained "
            f"coordinates (Normal for real sites, LogNormal for positive ones): {DRAWS_REMEDY}."
        )
    return found


def _require_params(names: set[str], params: dict[str, Any]) -> None:
    missing = sorted(names - set(params))
    if missing:
        raise ValueError(
            f"params lack {missing} of the guide, whose initial values would be used; they have "
            f"{sorted(params)}: pass `svi_result.params`."
        )


def _log_density(
    model: Any, guide: Callable[..., Any], params: dict[str, Any], theta: PyTree
) -> Float[Array, ""]:
    """log q(θ), the guide's density of the constrained values with the model's Jacobians."""
    trace = model.trace(theta)
    values = {name: trace[name]["value"] for name in model.site_names}
    jacobians = [trace.get(sites.JACOBIAN.format(name)) for name in model.site_names]
    drawn = _guide_trace(model, guide, params, values)
    densities = [sites.log_prob(site) for site in drawn.values() if site["type"] == "sample"]
    factors = [sites.log_prob(site) for site in jacobians if site is not None]
    return sum((jnp.sum(x) for x in (*densities, *factors)), start=jnp.zeros(()))


def _guide_trace(
    model: Any, guide: Callable[..., Any], params: dict[str, Any], values: dict[str, Array]
) -> sites.Trace:
    whole = sites.WholePlates(guide, model.rows)
    placed = handlers.substitute(whole, data={**params, **values})
    seeded = handlers.seed(placed, jax.random.key(0))
    return handlers.trace(seeded).get_trace(*model.args, **model.kwargs)
