"""What a model is made of, seen by running it once, and what of it cannot be merged."""

import dataclasses
import math
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import ImproperUniform, MaskedDistribution, biject_to, constraints
from numpyro.primitives import Messenger

Trace: TypeAlias = dict[str, dict[str, Any]]


class ModelError(ValueError):
    """A model that cannot be merged, or fails with its data."""


JACOBIAN = "_log_jacobian_of_{}"

TRACED_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where values are looked at while a program is made."""


@dataclasses.dataclass(frozen=True)
class Sites:
    """The names of a model's sites, by what they are.

    - `latent`: parameters, with the shapes of their unconstrained coordinates.
    - `observed`: what the likelihood is made of, with the shapes of their log-probabilities.
    - `minibatched`: the plate that subsamples and holds no latent site, with its size.
    - `repeated`: which sites count their observations several times, in words.
    """

    latent: dict[str, tuple[int, ...]]
    observed: dict[str, tuple[int, ...]]
    minibatched: tuple[str, int] | None
    repeated: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((*self.latent.items(), *self.observed.items(), self.minibatched))

    @classmethod
    def of(cls, trace: Trace) -> "Sites":
        """The sites of a trace, or an error that names one which has no place in a merge."""
        for name, site in trace.items():
            _require_mergeable(name, site)
        latent = {name: _coordinates(site) for name, site in trace.items() if is_latent(site)}
        observed = {
            name: _shape_of_log_prob(site) for name, site in trace.items() if is_likelihood(site)
        }
        if not latent:
            raise ModelError(
                f"the model has no latent sites among {tuple(trace)}, so there is nothing to infer."
            )
        if not observed:
            raise ModelError(
                f"the model has no observed sites: its latent sites are {tuple(latent)}. Data must "
                "enter by `obs=` (or `numpyro.factor`); a site whose `obs` is None is a parameter."
            )
        repeated = (_repetition(trace[name], shape) for name, shape in observed.items())
        return cls(latent, observed, _minibatched(trace), tuple(filter(None, repeated)))


def is_latent(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def is_prior(site: dict[str, Any]) -> bool:
    """Latent sites, their Jacobians, and factors with `infer={"prior": True}`."""
    return site["type"] == "sample" and (
        not site["is_observed"] or site["name"].startswith(JACOBIAN.format("")) or _marked(site)
    )


def is_likelihood(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not is_prior(site)


def log_prob(site: dict[str, Any]) -> Array:
    """log p(value | parents) of a site, entry by entry: what is reported."""
    fn, value = site["fn"], site["value"]
    if site["intermediates"]:
        return fn.log_prob(value, site["intermediates"])
    return fn.log_prob(value)


def weighted_log_prob(site: dict[str, Any]) -> Array:
    """What a site adds to the log-density, entry by entry: its log-probability, times the scale of
    its plates and handlers. It is what fits maximise."""
    log_p = log_prob(site)
    return log_p if site["scale"] is None else site["scale"] * log_p


def in_support(site: dict[str, Any]) -> Array | None:
    """Whether each observation of a site can be one; `None` where that is not known, or the site
    masked."""
    fn = site["fn"]
    while fn is not None:
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            return None
        fn = getattr(fn, "base_dist", None)
    try:
        return jnp.asarray(site["fn"].support(site["value"]))
    except NotImplementedError:
        return None


def unconstrain(site: dict[str, Any]) -> Array:
    return biject_to(site["fn"].support).inv(site["value"])


class WholePlates(Messenger):
    """Plates that subsample read all their rows, or those of `rows`; improper priors are refused
    before anything is drawn from them."""

    def __init__(self, fn: Callable[..., Any], rows: dict[str, Array]):
        super().__init__(fn)
        self.rows = rows

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and not msg["is_observed"]:
            _require_proper(msg["name"], msg["fn"])
        if msg["type"] == "plate" and msg["value"] is None:
            size = msg["args"][0]
            rows = self.rows.get(msg["name"], jnp.arange(size))
            msg["value"], msg["args"] = rows, (size, len(rows))
            msg["subsampled"] = True


def place(theta: dict[str, Array], site: dict[str, Any]) -> Array | None:
    """The value of a latent site at unconstrained coordinates θ, and the log of its Jacobian as a
    factor of its own."""
    if site["type"] != "sample" or site["name"] not in theta or site["is_observed"]:
        return None
    transform, z = biject_to(site["fn"].support), theta[site["name"]]
    step = site["infer"].get("_scan_current_index")
    if step is not None and jnp.ndim(z) > len(transform.inverse_shape(site["fn"].shape())):
        z = z[step]
    value = transform(z)
    log_det = transform.log_abs_det_jacobian(z, value)
    if not _is_real(site["fn"].support):
        over = jnp.ndim(log_det) - jnp.ndim(value) + site["fn"].event_dim
        log_det = jnp.sum(log_det, axis=tuple(range(jnp.ndim(log_det) - over, jnp.ndim(log_det))))
        numpyro.factor(JACOBIAN.format(site["name"]), log_det)
    return value


def _is_real(support: Any) -> bool:
    base = getattr(support, "base_constraint", support)
    return support is constraints.real or base is constraints.real


def _coordinates(site: dict[str, Any]) -> tuple[int, ...]:
    support = site["fn"].support
    try:
        transform = biject_to(support)
    except NotImplementedError:
        raise ModelError(
            f"site '{site['name']}' has the support {support}, for which NumPyro knows no "
            "unconstrained coordinates. Write it in terms of sites that have some."
        ) from None
    return tuple(transform.inverse_shape(jnp.shape(site["value"])))


def _shape_of_log_prob(site: dict[str, Any]) -> tuple[int, ...]:
    try:
        return jnp.shape(weighted_log_prob(site))
    except TRACED_VALUES:
        raise
    except Exception as error:
        fn, value = site["fn"], site["value"]
        raise ModelError(
            f"site '{site['name']}' is observed with a {type(value).__name__} of shape "
            f"{np.shape(value)}, which does not go with its {kind_of(site)} of batch "
            f"shape {fn.batch_shape} and event shape {fn.event_shape} ({_first_line(error)}): data "
            "must be an array, `jnp.asarray(x)`, with as many rows as what predicts them"
        ) from error


def _repetition(site: dict[str, Any], shape: tuple[int, ...]) -> str:
    """What is said of a site whose observations and distribution broadcast each other."""
    fn, value = site["fn"], np.shape(site["value"])
    batch = tuple(fn.batch_shape)
    if shape in (batch, value[: len(value) - fn.event_dim]):
        return ""
    return (
        f"site '{site['name']}' has observations of shape {value} and a distribution of batch "
        f"shape {batch}, which make {math.prod(shape)} log-probabilities of shape {shape}: every "
        "observation counts several times. Give both one shape (`y[:, 0]` or `jnp.ravel(y)` for a "
        "column), or where that is meant `jnp.broadcast_to(y, …)`"
    )


def _marked(site: dict[str, Any]) -> bool:
    return bool((site["infer"] or {}).get("prior"))


def _minibatched(trace: Trace) -> tuple[str, int] | None:
    """The one plate over which estimates from minibatches are possible."""
    subsampled = {
        name: site["args"][0]
        for name, site in trace.items()
        if site["type"] == "plate" and site.get("subsampled")
    }
    local = {
        frame.name
        for site in trace.values()
        if is_latent(site)
        for frame in site["cond_indep_stack"]
    }
    free = [(name, size) for name, size in subsampled.items() if name not in local]
    return free[0] if len(subsampled) == 1 and free else None


def _require_mergeable(name: str, site: dict[str, Any]) -> None:
    if site["type"] == "param":
        raise ModelError(
            f"site '{name}' is a `numpyro.param`, which has no prior and so no posterior. Give it "
            f"one: numpyro.sample('{name}', …), wide where little is known."
        )
    if site["type"] == "mutable":
        raise ModelError(f"site '{name}' is a `numpyro.mutable`: its state cannot be merged.")
    if not is_latent(site):
        return
    fn = site["fn"]
    if fn.support.is_discrete:
        raise ModelError(
            f"site '{name}' is a discrete latent variable ({kind_of(site)}), and a "
            "posterior is merged as a density. Sum it out: write the likelihood as a "
            "`MixtureSameFamily` or a `numpyro.factor` with logsumexp, or enumerate it with "
            "`numpyro.contrib.funsor.config_enumerate` and wrap that log-density in a "
            "`bm.Target`."
        )


def _require_proper(name: str, fn: Any) -> None:
    if isinstance(fn, MaskedDistribution) and fn._mask is not True:
        raise ModelError(
            f"site '{name}' is masked, and where a latent site is masked its prior is flat, which "
            "is improper. Mask observed sites only; instead of `obs_mask` leave missing "
            "observations out, or mask them with `handlers.mask`."
        )
    if isinstance(_base(fn), ImproperUniform):
        raise ModelError(
            f"site '{name}' has an improper prior (ImproperUniform), which cannot be multiplied "
            "and divided as p_0 is here. Give it a proper one, wide where little is known: "
            f"numpyro.sample('{name}', dist.Normal(0, 100)), or dist.LogNormal for a scale."
        )


def kind_of(site: dict[str, Any]) -> str:
    return type(_base(site["fn"])).__name__


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and type(fn).__name__ in (
        "ExpandedDistribution",
        "Independent",
        "MaskedDistribution",
    ):
        fn = fn.base_dist
    return fn


def run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    theta: dict[str, Array] | None = None,
    values: dict[str, Array] | None = None,
    rows: dict[str, Array] | None = None,
    seed: Array | None = None,
) -> Trace:
    """The trace of a model at unconstrained coordinates `theta`, at constrained `values`, or at
    draws of its prior."""
    key = jax.random.key(0) if seed is None else seed
    fn: Any = WholePlates(function, rows or {})
    if theta is not None:
        fn = handlers.substitute(fn, substitute_fn=lambda site: place(theta, site))
    if values is not None:
        fn = handlers.substitute(fn, data=values)
    try:
        return handlers.trace(handlers.seed(fn, key)).get_trace(*args, **kwargs)
    except (ModelError, Warning, *TRACED_VALUES):
        raise
    except Exception as error:
        name = _site_of(error)
        raise ModelError(
            f"the model stops {f'at site {name!r} ' if name else ''}with {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _site_of(error: Exception) -> str | None:
    """The site in whose making an error was raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [
        frame.f_locals.get("name")
        for frame in frames
        if frame.f_globals.get("__name__") == "numpyro.primitives"
        and frame.f_code.co_name in ("sample", "deterministic", "factor")
    ]
    return names[-1] if names else None
