"""Posteriors as people read them: draws by site, predictions, and ArviZ data."""

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpyro.infer import Predictive

from bayesmerge.numpyro import sites


def draws_by_site(
    model: Any, posterior: Any, key: PRNGKeyArray, num_samples: int, deterministic: bool = True
) -> dict[str, Array]:
    """What `Model.draws` returns."""
    _require_draws(model, posterior, num_samples)
    values = _constrained(model, posterior.sample(key, (num_samples,)))
    if deterministic:
        return values
    return {name: values[name] for name in model.site_names}


def _require_draws(model: Any, posterior: Any, num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, and it must be at least 1.")
    model.layout.require_same(posterior.layout, "the model and the posterior")
    batch_shape = getattr(posterior, "batch_shape", ())
    if batch_shape:
        raise ValueError(f"posterior is a batch of shape {batch_shape}: draw from one at a time.")


@eqx.filter_jit
def _constrained(model: Any, theta: PyTree) -> dict[str, Array]:
    return jax.vmap(model.constrain)(theta)


@eqx.filter_jit
def _log_likelihoods(model: Any, theta: PyTree) -> dict[str, Array]:
    return jax.lax.map(model.log_likelihoods, theta)


def predictive(model: Any, posterior: Any, key: PRNGKeyArray, num_samples: int) -> Any:
    """What `Model.predictive` returns."""
    draws = draws_by_site(model, posterior, key, num_samples, deterministic=False)
    function = sites.WholePlates(model.function, {})
    return Predictive(functools.wraps(model.function)(function), posterior_samples=draws)


def arviz_data(
    model: Any,
    posterior: Any,
    key: PRNGKeyArray,
    num_samples: int,
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]] | None,
) -> Any:
    """What `Model.to_arviz` returns."""
    _require_draws(model, posterior, num_samples)
    draw_key, predict_key = jax.random.split(key)
    theta = posterior.sample(draw_key, (num_samples,))
    values = _constrained(model, theta)
    trace = model.trace(jax.tree.map(lambda x: x[0], theta))
    likely = _log_likelihoods(model, theta)
    measured = {name: x for name, x in likely.items() if not _is_factor(trace[name])}
    predicted = _predicted(model, {n: values[n] for n in model.site_names}, predict_key)
    named = _Names(trace, dict(coords or {}), dict(dims or {}))
    observed = {name: trace[name]["value"] for name in measured}
    groups = {
        "posterior": named.dataset(values, drawn=True),
        "posterior_predictive": named.dataset({n: predicted[n] for n in measured}, drawn=True),
        "log_likelihood": named.dataset(measured, drawn=True),
        "observed_data": named.dataset(observed, drawn=False),
    }
    groups = {name: group for name, group in groups.items() if group.data_vars}
    if _arviz_version() < 1:
        import arviz

        return arviz.InferenceData(**groups)
    return xr.DataTree.from_dict(groups)


@eqx.filter_jit
def _predicted(model: Any, latent: dict[str, Array], key: PRNGKeyArray) -> dict[str, Array]:
    """Data drawn anew at every draw of the latent sites."""
    count = len(next(iter(latent.values())))

    def one(values: dict[str, Array], key: PRNGKeyArray) -> dict[str, Array]:
        trace = model._run(values=values)
        names = [name for name in model.sites.observed if not _is_factor(trace[name])]
        keys = jax.random.split(key, max(1, len(names)))
        return {n: trace[n]["fn"].sample(k) for n, k in zip(names, keys, strict=False)}

    return jax.lax.map(lambda pair: one(*pair), (latent, jax.random.split(key, count)))


class _Names:
    """Names of axes: the user's, those of plates, or `site_dim_0`, `site_dim_1`, …"""

    def __init__(self, trace: sites.Trace, coords: dict[str, Any], dims: dict[str, Any]):
        self.trace, self.coords, self.dims = trace, coords, dims
        unknown = [name for name in dims if name not in trace]
        if unknown:
            raise ValueError(f"dims name {unknown}, which are no sites; these are {list(trace)}.")
        self.dims = {n: [d] if isinstance(d, str) else list(d) for n, d in dims.items()}
        plates = {f.name for s in trace.values() for f in s.get("cond_indep_stack") or ()}
        unknown = sorted(set(coords) - plates - {d for ds in self.dims.values() for d in ds})
        if unknown:
            raise ValueError(
                f"coords name {unknown}, which are no axes: those of plates are {sorted(plates)}, "
                "and others get names by `dims`."
            )

    def dataset(self, arrays: dict[str, Array], drawn: bool) -> Any:
        lead = ("chain", "draw") if drawn else ()
        variables = {}
        for name, array in arrays.items():
            values = np.asarray(array)[None] if drawn else np.asarray(array)
            axes = self.axes(name, values.shape[len(lead) :])
            variables[name] = xr.DataArray(values, dims=(*lead, *axes))
        used: dict[Any, int] = {d: n for x in variables.values() for d, n in x.sizes.items()}
        coords: dict[Any, Any] = {d: self.coords.get(d, np.arange(n)) for d, n in used.items()}
        for d, n in used.items():
            if len(coords[d]) != n:
                raise ValueError(f"coords['{d}'] has {len(coords[d])} entries, and the axis {n}.")
        return xr.Dataset(variables, coords=coords)

    def axes(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """The names of a site's axes."""
        given = self.dims.get(name)
        if given is not None and len(given) == len(shape):
            return list(given)
        if given is not None and len(given) > len(shape):
            raise ValueError(f"dims['{name}'] are {list(given)}, and the site has shape {shape}.")
        site = self.trace[name]
        event = len(site["fn"].event_shape) if site["type"] == "sample" else 0
        event = min(event, len(shape)) if jnp.ndim(site["value"]) == len(shape) else 0
        plates = {frame.dim: frame.name for frame in site.get("cond_indep_stack") or ()}
        batch = len(shape) - event
        names = [plates.get(i - batch, f"{name}_dim_{i}") for i in range(batch)]
        names += [f"{name}_dim_{i}" for i in range(batch, len(shape))]
        if given is not None:
            names[len(shape) - len(given) :] = given
        return names


def _is_factor(site: dict[str, Any]) -> bool:
    return type(site["fn"]).__name__ == "Unit"


def _arviz_version() -> float:
    try:
        return float(importlib.metadata.version("arviz").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 1.0
