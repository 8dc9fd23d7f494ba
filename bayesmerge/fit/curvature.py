r"""Curvature of a summed loss: what stands for $H_t = \nabla^2\ell_t(\theta_t)$ in a posterior.

For example i with output f_i(θ), J_i = ∂f_i/∂θ and loss ℓ_i:

| kind                | matrix                 | root R_i                                   |
|---------------------|------------------------|--------------------------------------------|
| `hessian`           | Σ ∇²ℓ_i                | none: it may be indefinite                 |
| `ggn`               | Σ J_iᵀ(∂²ℓ_i/∂f²)J_i   | RRᵀ = ∂²ℓ_i/∂f²                            |
| `fisher`            | Σ J_iᵀ E_y[ggᵀ] J_i    | g = ∂ℓ_i/∂f at labels y drawn from the model |
| `squared_gradients` | Σ ∇ℓ_i∇ℓ_iᵀ            | 1, with f_i = ℓ_i                          |

All but the first are Σ (J_iᵀR_i)(J_iᵀR_i)ᵀ, and are computed from the root. Of each those entries
are computed that a structure of precisions keeps; all are sums over examples, without a prior.
"""

import functools
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bayesmerge.families.layout import Layout
from bayesmerge.families.precision import (
    AbstractPrecision,
    AbstractStructure,
    Structure,
    as_structure,
)
from bayesmerge.families.precision.hessian import COLUMNS_AT_ONCE, Hessian
from bayesmerge.fit.abstract_target import AbstractTarget, Loss
from bayesmerge.fit.gram import Gram, Outputs
from bayesmerge.fit.likelihood import Likelihood, SupervisedLoss
from bayesmerge.keys import as_key

Kind: TypeAlias = Literal["hessian", "ggn", "fisher", "squared_gradients"]

EXAMPLES_AT_ONCE = 1024
GRADIENT_ENTRIES_AT_ONCE = 2**23


def curvature(
    target: AbstractTarget,
    params: PyTree,
    kind: Kind,
    structure: Structure = "full",
    *,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
    block_size: int | None = None,
) -> Any:
    r"""The curvature of $\ell(\theta) = \sum_i \ell_i(\theta)$ at `params`, without a prior.

    - `target`: ℓ. `ggn` and `fisher` need one made by `Target.supervised`.
    - `params`: θ, P floating-point entries.
    - `kind`: see the table of this module. `fisher` takes the expectation over labels exactly
      where the likelihood is canonical (it is then the GGN), or from `num_samples` draws.
    - `structure`: `"full"` for a matrix (P, P) in the order of `Layout.ravel`, `"diagonal"` for
      its diagonal as a pytree shaped as θ, `"isotropic"` for trace/P, a scalar, or `Blocks()` for a
      matrix for each leaf, without any larger one. A diagonal costs S backward passes an example
      (S columns of R); that of the exact Hessian, P Hessian-vector products.
    - `num_samples`, `key`: labels drawn for each example, for a Monte-Carlo Fisher.
    - `block_size`: examples whose Jacobians are held at once (for the Hessian, columns), which
      bounds the memory beyond the result and its running sum.

    **Raises** `ValueError` for an unknown kind or structure or a missing key, `TypeError` where the
    target has no model.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([0.0, 1.0])
    >>> target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, y))
    >>> bm.curvature(target, jnp.zeros(2), "ggn")
    Array([[2., 2.],
           [2., 4.]], dtype=float32)

    ```

    Source: H_t of GM equation 9; FP §3 for squared gradients; Martens (2020) for GGN and Fisher.
    """
    look = precision_of if target.is_streamed else _precision_compiled
    return look(
        target,
        params,
        kind,
        as_structure(structure),
        num_samples=num_samples,
        key=key,
        block_size=block_size,
    ).value


def precision_of(
    target: AbstractTarget,
    params: PyTree,
    kind: Kind,
    structure: AbstractStructure,
    *,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
    block_size: int | None = None,
) -> AbstractPrecision:
    """`curvature`, as a precision of the structure."""
    require_known("curvature", kind, Kind)
    structure = structure.over(Layout.of(params))
    options: Any = {"num_samples": num_samples, "key": key, "block_size": block_size}
    found = [
        _of_part(part, params, kind, structure, **options).scaled(weight)
        for weight, part in target.parts()
    ]
    return functools.reduce(lambda x, y: x.plus(y), found)


_precision_compiled = eqx.filter_jit(precision_of)


def _of_part(
    target: AbstractTarget,
    params: PyTree,
    kind: Kind,
    structure: AbstractStructure,
    num_samples: int | None,
    key: PRNGKeyArray | None,
    block_size: int | None,
) -> AbstractPrecision:
    layout = Layout.of(params)
    if kind == "hessian" or target.has_own_curvature:
        statistic = eqx.Partial(_hessian, structure, block_size or COLUMNS_AT_ONCE)
        return target.accumulate(statistic, params, EXAMPLES_AT_ONCE)
    root = _root(kind, num_samples, key)
    if structure.is_entrywise:
        examples = GRADIENT_ENTRIES_AT_ONCE // layout.size
    else:
        block = structure.largest_block(layout)
        examples = block // (2 * root.num_outputs(target, params))
    statistic = eqx.Partial(_gram, structure, root)
    return target.accumulate(statistic, params, block_size or max(1, examples))


def curvature_product(
    target: AbstractTarget,
    params: PyTree,
    vector: PyTree,
    kind: Kind,
    *,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
) -> PyTree:
    r"""$Hv$ without H: the matrix of `curvature` times one vector.

    Two passes forward and one back, or for the Hessian the derivative of a gradient, whatever P is.

    - `target`, `params`, `kind`, `num_samples`, `key`: as in `curvature`.
    - `vector`: v, a pytree shaped as θ.

    **Returns** a pytree shaped as θ.

    **Raises** `ValueError` for a vector that is not shaped as θ, and as `curvature`.

    ```python
    >>> import jax.numpy as jnp, bayesmerge as bm
    >>> from bayesmerge.fit import curvature_product
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([0.0, 1.0])
    >>> target = bm.Target.supervised(lambda w, x: x @ w, "gaussian", (x, y))
    >>> curvature_product(target, jnp.zeros(2), jnp.array([1.0, -1.0]), "ggn")
    Array([ 0., -2.], dtype=float32)

    ```

    Source: Pearlmutter (1994); Schraudolph (2002) for Gauss-Newton products.
    """
    require_known("kind", kind, Kind)
    Layout.of(params).require_same(Layout.of(vector, "vector"), "params and vector")
    hessian: Any = eqx.Partial(_hessian_vector_product, vector)
    rooted = hessian
    if kind != "hessian":
        rooted = eqx.Partial(_root_vector_product, _root(kind, num_samples, key), vector)

    def of(part: AbstractTarget) -> PyTree:
        statistic = hessian if part.has_own_curvature else rooted
        return part.accumulate(statistic, params, EXAMPLES_AT_ONCE)

    products = [
        jax.tree.map(lambda x, w=weight: jnp.asarray(w, x.dtype) * x, of(part))
        for weight, part in target.parts()
    ]
    return functools.reduce(lambda x, y: jax.tree.map(jnp.add, x, y), products)


def _hessian_vector_product(
    vector: PyTree, loss: Loss, params: PyTree, batch: PyTree, index: Int[Array, ""]
) -> PyTree:
    gradient = jax.grad(lambda theta: jnp.sum(loss(theta, batch)))
    return jax.jvp(gradient, (params,), (vector,))[1]


def _root_vector_product(
    root: "Root", vector: PyTree, loss: Loss, params: PyTree, batch: PyTree, index: Int[Array, ""]
) -> PyTree:
    return root.gram(loss, params, batch, index).multiply(vector)


def curvature_rows(
    target: AbstractTarget,
    params: PyTree,
    kind: Kind,
    *,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "S N P"]:
    """(J_iᵀR_i)ᵀ for every example i and column of R: all rows A with AᵀA the curvature, for data
    that are one batch."""
    root = _root(kind, num_samples, key)
    loss, batch = target.first_batch()
    return root.gram(loss, params, batch, jnp.asarray(0)).rows()


def require_known(name: str, value: str, known: Any) -> None:
    if value not in get_args(known):
        raise ValueError(f"{name} is {value!r}, and it must be one of {get_args(known)}.")


def _hessian(
    structure: AbstractStructure,
    columns: int,
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    index: Int[Array, ""],
) -> AbstractPrecision:
    total = Hessian(lambda theta: jnp.sum(loss(theta, batch)), params, columns)
    return structure.of_matrix(total, Layout.of(params))


def _gram(
    structure: AbstractStructure,
    root: "Root",
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    index: Int[Array, ""],
) -> AbstractPrecision:
    return structure.of_matrix(root.gram(loss, params, batch, index), Layout.of(params))


class Root(eqx.Module):
    """What Σ (J_iᵀR_i)(J_iᵀR_i)ᵀ is made of: the outputs f of a batch, and R (N, C, S)."""

    kind: str
    num_samples: Any
    key: Any

    def outputs(self, loss: Any) -> Outputs:
        """(θ, batch) ↦ f_i(θ) for every example i of the batch."""
        function = loss if self.kind == "squared_gradients" else _model_outputs(loss, self.kind)
        return lambda theta, batch: _as_matrix(function(theta, batch))

    def num_outputs(self, target: AbstractTarget, params: PyTree) -> int:
        """C, the size of one f_i."""
        loss, batch = target.first_batch()
        return jax.eval_shape(self.outputs(loss), params, batch).shape[1]

    def gram(self, loss: Any, params: PyTree, batch: PyTree, index: Int[Array, ""]) -> Gram:
        """Σ (J_iᵀR_i)(J_iᵀR_i)ᵀ over a batch."""
        R = self.columns(loss, params, batch, index)
        return Gram(self.outputs(loss), params, batch, R)

    def columns(
        self, loss: Any, params: PyTree, batch: PyTree, index: Int[Array, ""]
    ) -> Float[Array, "N C S"]:
        """R_i for every example i of the batch."""
        if self.kind == "squared_gradients":
            return jnp.ones_like(loss(params, batch))[:, None, None]
        outputs = _model_outputs(loss, self.kind)(params, batch)
        likelihood, labels = loss.likelihood, batch[1]
        if self.kind == "ggn":
            return jax.vmap(likelihood.root)(outputs, labels)
        if self.num_samples is None:
            _require_canonical(likelihood)
            return jax.vmap(likelihood.root)(outputs, labels)
        _require_sampler(likelihood)

        def scores(i: Int[Array, ""], output: Array) -> Float[Array, "C S"]:
            keys = jax.random.split(jax.random.fold_in(self.key, i), self.num_samples)
            score = lambda key: jax.grad(likelihood.loss)(output, likelihood.sample(key, output))  # noqa: E731
            return jax.vmap(score)(keys).reshape(self.num_samples, -1).T

        drawn = jax.vmap(scores)(index + jnp.arange(len(outputs)), outputs)
        return drawn / jnp.sqrt(self.num_samples)


def _root(kind: Kind, num_samples: int | None, key: PRNGKeyArray | None) -> Root:
    if kind == "fisher" and num_samples is not None and key is None:
        raise ValueError("a sampled Fisher needs a `key`, e.g. `key=jax.random.key(0)`.")
    return Root(kind, num_samples, None if key is None else as_key(key))


def _require_canonical(likelihood: Likelihood) -> None:
    if not likelihood.canonical:
        raise TypeError(
            f"the exact Fisher information is known for canonical likelihoods, and "
            f"'{likelihood.name}' is not declared one. Draw labels with `num_samples` and `key`, "
            "or use curvature='ggn'."
        )


def _require_sampler(likelihood: Likelihood) -> None:
    if likelihood.sample is None:
        raise TypeError(
            "the Fisher information is an expectation over labels drawn from the model, and the "
            f"loss '{likelihood.name}' cannot draw them. Pass a `Likelihood` with `sample`, or use "
            "curvature='ggn'."
        )


def _model_outputs(loss: Any, kind: str) -> Outputs:
    if not isinstance(loss, SupervisedLoss):
        raise TypeError(
            f"curvature {kind!r} needs the model's output, and this target knows only its loss. "
            "Build it with `Target.supervised(model, likelihood, data)`, or use "
            "curvature='hessian' or 'squared_gradients'."
        )
    return lambda theta, batch: loss.model(theta, batch[0])


def _as_matrix(outputs: Array) -> Float[Array, "N C"]:
    return outputs.reshape(outputs.shape[0], -1)
