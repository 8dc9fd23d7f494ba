"""Posteriors from draws of elsewhere, so that the output of MCMC can be multiplied.

Products of moment-matched Gaussians are consensus Monte Carlo; products of kernel densities, which
keep skewness and modes, are its nonparametric version.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bayesmerge.arrays import as_rows, column_labels, row_count, to_numpy
from bayesmerge.families.checks import require, require_finite
from bayesmerge.families.gaussian import AbstractGaussian, from_mean_precision, gaussian
from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import (
    AbstractPrecision,
    AbstractStructure,
    Isotropic,
    Structure,
    as_structure,
)
from bayesmerge.families.precision.rows import Rows
from bayesmerge.mixtures.mixture import Mixture
from bayesmerge.tasks import texts


def moment_matched(draws: PyTree, *, structure: Structure = "full") -> AbstractGaussian:
    r"""The Gaussian with the mean and covariance of draws, $\mathcal N(\bar\theta, \hat\Sigma)$,
    $\hat\Sigma = \frac1{S-1}\sum_s(\theta_s-\bar\theta)(\theta_s-\bar\theta)^\top$.

    Of all Gaussians the nearest to the sampled density p, min KL(p ‖ q). Draws of the posteriors of
    shards (each with the prior, to be divided out by `merge`) make consensus Monte Carlo.

    - `draws`: θ_s, a pytree whose leaves have a leading axis S, such as `mcmc.get_samples()` of
      NumPyro; or ArviZ data or a dataset of xarray, whose chains are put together, or a data frame
      with a column for each parameter. Take logarithms of positive parameters first: it is a
      Gaussian that is matched.
    - `structure`: of the covariance, `"full"`, `"diagonal"`, `"isotropic"` or `Blocks()`.

    **Returns** a Gaussian over one θ.

    **Warns** where float32 rounds draws coarsely against their spread.

    **Raises** `ValueError` for draws that are not finite, of different numbers, too few to have the
    covariance, constant in a parameter, or of a scale whose precision float32 cannot hold.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from bayesmerge.fit import moment_matched
    >>> draws = {"w": jax.random.normal(jax.random.key(0), (4000, 2)) + 5.0}
    >>> moment_matched(draws).mode()["w"].round(0)
    Array([5., 5.], dtype=float32)

    ```

    Source: Scott et al. (2016), *Bayes and Big Data: The Consensus Monte Carlo Algorithm*.
    """
    return _matched(*_checked(draws), as_structure(structure))


def kernel_density(
    draws: PyTree,
    *,
    structure: Structure = "full",
    bandwidth: float | None = None,
    num_components: int | None = None,
) -> Mixture:
    r"""The mixture of a Gaussian kernel around every draw,
    $q = \frac1K\sum_k\mathcal N(\theta_k, b^2\hat\Sigma)$.

    - `draws`: θ_s, as in `moment_matched`.
    - `structure`: of the covariance of all draws that is the kernel's shape.
    - `bandwidth`: b; by default Scott's K^{−1/(P+4)}.
    - `num_components`: K, draws taken at equal distances from all S; by default all.

    **Returns** a `Mixture`. Its mode in a product is found by EM.

    **Raises** `ValueError` as `moment_matched`, and for a bandwidth that is not positive or more
    components than draws.

    ```python
    >>> import jax
    >>> from bayesmerge.fit import kernel_density
    >>> q = kernel_density(jax.random.exponential(jax.random.key(0), (500, 1)), num_components=100)
    >>> q.num_components, bool(q.mode()[0] < 0.6)
    (100, True)

    ```

    Source: Neiswanger, Wang & Xing (2014), *Asymptotically Exact, Embarrassingly Parallel MCMC*.
    """
    draws, layout, count = _checked(draws)
    shape = _matched(draws, layout, count, as_structure(structure))
    K = count if num_components is None else num_components
    if not 1 <= K <= count:
        raise ValueError(f"num_components is {K}, and there are {count} draws to choose from.")
    b = K ** (-1 / (layout.size + 4)) if bandwidth is None else bandwidth
    if not b > 0:
        raise ValueError(f"bandwidth is {b}, and it must be positive.")
    chosen = np.arange(K) * count // K
    precision = jax.tree.map(lambda x: x / b**2, shape.precision)

    def kernel(centre: PyTree) -> AbstractGaussian:
        return gaussian(precision.multiply(centre), precision)

    kernels = jax.vmap(kernel)(jax.tree.map(lambda x: x[chosen], draws))
    return Mixture(jnp.ones(K), kernels)


def _checked(draws: Any) -> tuple[PyTree, Layout, int]:
    """Draws as finite arrays, the layout of one, and S."""
    arrays = as_rows(_by_parameter(draws), "draws", lists=False)
    sizes = {
        jax.tree_util.keystr(path): row_count(x)
        for path, x in jax.tree_util.tree_leaves_with_path(arrays)
    }
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise ValueError(
            f"draws must have a leading axis of S draws in every leaf, and first axes are {sizes}. "
            "Chains are to be concatenated, and a list with a pytree for each draw stacked: "
            "`jax.tree.map(lambda *x: np.stack(x), *draws)`."
        )
    count = next(iter(sizes.values())) or 0
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arrays)
    return require_finite(arrays, "draws"), Layout.of(one, "draws"), count


def _by_parameter(draws: Any) -> PyTree:
    """A pytree of arrays from what holds draws by name, with all chains in one axis."""
    draws = draws.posterior if hasattr(draws, "posterior") and hasattr(draws, "groups") else draws
    draws = draws.to_dataset() if hasattr(draws, "children") else draws
    if hasattr(draws, "data_vars"):
        return {str(name): _one_axis(values) for name, values in draws.data_vars.items()}
    if hasattr(draws, "coords"):
        return _one_axis(draws)
    labels = column_labels(draws)
    if labels is None:
        return draws
    columns = to_numpy(draws, "draws").T
    return dict(zip(texts(labels, "draws"), columns, strict=True))


def _one_axis(values: Any) -> Any:
    """A DataArray's values with chains, draws and samples as one leading axis."""
    dims = [dim for dim in ("chain", "draw", "sample") if dim in values.dims]
    if not dims:
        return values.values
    array = values.transpose(*dims, ...).values
    return array.reshape(-1, *array.shape[len(dims) :])


def _matched(
    draws: PyTree, layout: Layout, count: int, structure: AbstractStructure
) -> AbstractGaussian:
    structure = structure.over(layout)
    needed = structure.largest_block(layout) + 1
    if count < needed:
        raise ValueError(
            f"there are {count} draws, and the {structure.name} covariance of {layout.size} "
            f"parameters needs at least {needed}, better ten times as many. Draw more, or use "
            "structure='diagonal'."
        )
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), draws)
    return from_mean_precision(mean, _precision(draws, mean, layout, structure))


def _precision(
    draws: PyTree, mean: PyTree, layout: Layout, structure: AbstractStructure
) -> AbstractPrecision:
    message = (
        "draws are constant in some direction, and the Gaussian with their covariance has no "
        "density: leave out parameters that are fixed or determined by others, or draw more."
    )
    rows = jax.vmap(layout.ravel)(jax.tree.map(lambda x, m: x - m[None], draws, mean))
    reach = jnp.max(jnp.abs(rows), axis=0)
    is_one = isinstance(structure, Isotropic)
    if is_one:
        reach = jnp.broadcast_to(jnp.max(reach), reach.shape)
    require(reach, jnp.all(reach > 0), message)
    rows = rows / reach[None]
    variance = jnp.sum(rows**2, axis=0) / (len(rows) - 1)
    if is_one:
        variance = jnp.broadcast_to(jnp.mean(variance), variance.shape)
    scale = jnp.sqrt(variance)
    deviation = jnp.sqrt(_held((scale * reach) ** 2))
    rows = rows / (jnp.sqrt(len(rows) - 1) * scale)[None]
    correlation = structure.of_matrix(Rows(rows, layout), layout)
    least = correlation.weakest()[0]
    determined = least > len(rows) ** 0.5 * jnp.finfo(least.dtype).eps
    inverse = require(correlation, determined, message).factor().inverse()
    per_unit = layout.unravel(1 / deviation)
    return jax.tree.map(jnp.multiply, inverse, structure.outer(per_unit, per_unit, layout))


def _held(variance: Array) -> Array:
    """Variances, or an error where they or their inverses are beyond the range of their dtype."""
    limits = jnp.finfo(variance.dtype)
    within = (variance > 1 / limits.max) & (variance < 1 / limits.tiny)
    message = (
        f"draws have a standard deviation whose square or its inverse {variance.dtype} cannot hold "
        f"(below {limits.max**-0.5:.1g} or above {limits.tiny**-0.5:.1g}): measure the parameter "
        "in other units, or enable 64 bits."
    )
    return require(variance, jnp.all(within), message)
