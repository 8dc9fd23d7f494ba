"""Posteriors as people read them: draws by site, predictions, and ArviZ data."""

import functools
import importlib.metadata
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpyro.infer import Predictive

from bayesmerge.families.show import table
from bayesmerge.keys import as_key
from bayesmerge.numpyro import sites

MOST_ROWS = 20
"""Entries of a site that a summary prints."""


def draws_by_site(
    model: Any, posterior: Any, key: PRNGKeyArray, num_samples: int, deterministic: bool = True
) -> dict[str, Array]:
    """What `Model.draws` returns."""
    _require_draws(model, posterior, num_samples)
    values = _constrained(model, posterior.sample(as_key(key), (num_samples,)))
    if deterministic:
        return values
    return {name: values[name] for name in model.site_names}


def chains(num_samples: int) -> int:
    """Into how many chains independent draws are put: the most, up to 4, that divide them and have
    4 draws each, which convergence statistics need."""
    return next((n for n in (4, 3, 2) if num_samples % n == 0 and num_samples >= 4 * n), 1)


class Summary(eqx.Module):
    """A posterior by site, in the sites' own supports; printed as a table.

    - `mean`, `sd`, `low`, `high`: of every site the mean, the standard deviation, and the quantiles
      5 % and 95 %, arrays of the site's shape.
    """

    mean: dict[str, Array]
    sd: dict[str, Array]
    low: dict[str, Array]
    high: dict[str, Array]

    def __repr__(self) -> str:
        titles = {"mean": self.mean, "sd": self.sd, "5 %": self.low, "95 %": self.high}
        names: list[str] = []
        columns: dict[str, list[Any]] = {title: [] for title in titles}
        for name, mean in self.mean.items():
            for index in itertools.islice(np.ndindex(mean.shape), MOST_ROWS):
                names.append(f"{name}[{', '.join(map(str, index))}]" if index else name)
                for title, values in titles.items():
                    columns[title].append(values[name][index])
            if mean.size > MOST_ROWS:
                names.append(f"{name}: {mean.size - MOST_ROWS} more")
                for column in columns.values():
                    column.append("")
        return table(columns, names, most=None)


def summary(
    model: Any, posterior: Any, key: PRNGKeyArray, num_samples: int, deterministic: bool
) -> Summary:
    """What `Model.summary` returns."""
    drawn = draws_by_site(model, posterior, key, num_samples, deterministic)
    return Summary(*_moments(drawn))


@jax.jit
def _moments(drawn: dict[str, Array]) -> tuple[dict[str, Array], ...]:
    functions = (
        lambda x: jnp.mean(x, axis=0),
        lambda x: jnp.std(x, axis=0),
        lambda x: jnp.quantile(x, 0.05, axis=0),
        lambda x: jnp.quantile(x, 0.95, axis=0),
    )
    return tuple(jax.tree.map(f, drawn) for f in functions)


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
    draw_key, predict_key = jax.random.split(as_key(key))
    theta = posterior.sample(draw_key, (num_samples,))
    values = _constrained(model, theta)
    trace = model.trace(jax.tree.map(lambda x: x[0], theta))
    likely = _log_likelihoods(model, theta)
    measured = [name for name in likely if not _is_factor(trace[name])]
    predicted = _predicted(model, {n: values[n] for n in model.site_names}, predict_key)
    named = _Names(trace, dict(coords or {}), dict(dims or {}))
    groups = {
        "posterior": named.dataset(values, drawn=True),
        "posterior_predictive": named.dataset({n: predicted[n] for n in measured}, drawn=True),
        "log_likelihood": named.dataset({n: likely[n] for n in measured}, drawn=True, events=False),
        "observed_data": named.dataset({n: _observed(trace[n]) for n in measured}, drawn=False),
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

    def dataset(self, arrays: dict[str, Array], drawn: bool, events: bool = True) -> Any:
        """Arrays by site; log-likelihoods lack the axes of events."""
        lead = ("chain", "draw") if drawn else ()
        variables: dict[str, Any] = {}
        used: dict[Any, tuple[str, int]] = {}
        for name, array in arrays.items():
            values = np.asarray(array)
            if drawn:
                count = chains(len(values))
                values = values.reshape(count, len(values) // count, *values.shape[1:])
            axes = self.axes(name, values.shape[len(lead) :], events)
            self._require_new(name, axes, arrays)
            variables[name] = xr.DataArray(values, dims=(*lead, *axes))
            for axis, size in variables[name].sizes.items():
                if used.setdefault(axis, (name, size))[1] != size:
                    raise ValueError(
                        f"the axis '{axis}' has {size} entries at site '{name}' and "
                        f"{used[axis][1]} at site '{used[axis][0]}': give axes of different "
                        "lengths different names by `dims`."
                    )
        coords: dict[Any, Any] = {d: self.coords.get(d, np.arange(n)) for d, (_, n) in used.items()}
        for d, (_, n) in used.items():
            if len(coords[d]) != n:
                raise ValueError(f"coords['{d}'] has {len(coords[d])} entries, and the axis {n}.")
        return xr.Dataset(variables, coords=coords)

    def _require_new(self, name: str, axes: list[str], arrays: dict[str, Array]) -> None:
        taken = sorted(set(axes) & {"chain", "draw", *arrays})
        if taken or len(set(axes)) != len(axes):
            raise ValueError(
                f"the axes of site '{name}' are {axes}: names must differ from each other, from "
                "'chain' and 'draw', and from those of sites. Give others by "
                f"`dims={{'{name}': …}}`."
            )

    def axes(self, name: str, shape: tuple[int, ...], events: bool = True) -> list[str]:
        """The names of a site's axes."""
        site = self.trace[name]
        event = len(site["fn"].event_shape) if site["type"] == "sample" else 0
        given, unseen = self.dims.get(name), 0 if events else event
        ndim = len(shape) + unseen
        if given is not None and len(given) > ndim:
            size = (*shape, *site["fn"].event_shape) if unseen else shape
            raise ValueError(f"dims['{name}'] are {given}, and the site has shape {size}.")
        plates = {frame.dim: frame for frame in site.get("cond_indep_stack") or ()}
        batch = ndim - min(event, ndim)
        names = [f"{name}_dim_{i}" for i in range(ndim)]
        for i in range(batch):
            plate = plates.get(i - batch)
            if plate is not None and plate.size == shape[i]:
                names[i] = plate.name
        if given is not None:
            names[ndim - len(given) :] = given
        return names[: len(shape)]


def _observed(site: dict[str, Any]) -> Array:
    """What was observed, one entry for every log-probability."""
    value, fn = site["value"], site["fn"]
    batch = jnp.broadcast_shapes(fn.batch_shape, jnp.shape(value)[: jnp.ndim(value) - fn.event_dim])
    return jnp.broadcast_to(value, (*batch, *fn.event_shape))


def _is_factor(site: dict[str, Any]) -> bool:
    return type(site["fn"]).__name__ == "Unit"


def _arviz_version() -> float:
    try:
        return float(importlib.metadata.version("arviz").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 1.0
