"""The contestants of `curvature.py`, and what they compute.

scikit-learn's digits (1797 examples), a 64-32-10 tanh network (2410 parameters), softmax
cross-entropy, float32. Weights have the shape (out, in) of torch, so that all matrices are in one
order.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree
from sklearn.datasets import load_digits
from timing import Contestants

import bayesmerge as bm

Data = tuple[Array, Array]

THREADS = 2
COLUMNS = 64
OUTPUTS = 10


def network(params: PyTree, x: Array) -> Array:
    (W1, b1), (W2, b2) = params
    return jnp.tanh(x @ W1.T + b1) @ W2.T + b2


def load() -> tuple[PyTree, Data]:
    x, y = load_digits(return_X_y=True)
    draw = np.random.default_rng(0).normal
    sizes = [(32, 64), (10, 32)]
    params = [(draw(size=s) / np.sqrt(s[1]), 0.1 * draw(size=s[0])) for s in sizes]
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    return params, (jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32))


def bayesmerge_curvature(structure: str, block_size: int | None = None) -> Callable[..., PyTree]:
    def compute(params: PyTree, data: Data) -> PyTree:
        target = bm.Target.supervised(network, "categorical", data)
        return bm.curvature(target, params, "ggn", structure, block_size=block_size)

    return compute


@jax.jit
def bare_full(params: PyTree, data: Data) -> Array:
    """JᵀHJ column by column: a forward and a backward product each, `COLUMNS` at once."""
    flat, unravel = ravel_pytree(params)
    outputs, push = jax.linearize(lambda v: network(unravel(v), data[0]), flat)
    pull = jax.linear_transpose(push, flat)
    p = jax.nn.softmax(outputs)

    def column(j: Array) -> Array:
        t = p * push(jax.nn.one_hot(j, flat.size))
        return pull(t - p * t.sum(-1, keepdims=True))[0]

    return jax.lax.map(column, jnp.arange(flat.size), batch_size=COLUMNS)


@jax.jit
def bare_diagonal(params: PyTree, data: Data) -> PyTree:
    """Σ (J_iᵀr)², r the columns of a root of H_i: a backward product for each, one r at a time."""
    x, _ = data
    p = jax.nn.softmax(network(params, x))
    root = jax.vmap(jnp.diag)(jnp.sqrt(p)) - jnp.sqrt(p)[:, :, None] * p[:, None, :]

    def squares(r: Array) -> PyTree:
        pull = lambda xi, ri: jax.vjp(lambda theta: network(theta, xi), params)[1](ri)[0]  # noqa: E731
        return jax.tree.map(lambda g: jnp.sum(g**2, 0), jax.vmap(pull)(x, r))

    return jax.tree.map(lambda g: jnp.sum(g, 0), jax.lax.map(squares, jnp.moveaxis(root, 1, 0)))


def laplax_curvature(structure: str, params: PyTree, data: Data) -> Contestants:
    from laplax.curv.diagonal import create_diagonal_curvature
    from laplax.curv.full import create_full_curvature
    from laplax.curv.ggn import create_ggn_mv

    create = create_full_curvature if structure == "full" else create_diagonal_curvature

    @jax.jit
    def compute(params: PyTree, data: Data) -> Array:
        batch = {"input": data[0], "target": data[1]}
        model = lambda input, params: network(params, input)  # noqa: E731
        mv = create_ggn_mv(model, params, batch, "cross_entropy")
        return create(mv, layout=params)

    return {"laplax": lambda: compute(params, data)}


def laplace_torch_curvature(
    structure: str, params: PyTree, data: Data, slow: bool = False
) -> Contestants:
    """With BackPACK, and where `slow` with curvlinops, the default of laplace-torch."""
    import torch

    warnings.simplefilter("ignore")
    from laplace.curvature import BackPackGGN, CurvlinopsGGN

    torch.set_num_threads(THREADS)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    model.output_size = 10
    x, y = torch.tensor(np.asarray(data[0])), torch.tensor(np.asarray(data[1]), dtype=torch.long)
    for p, value in zip(model.parameters(), jax.tree.leaves(params), strict=True):
        p.data = torch.tensor(np.asarray(value))

    def contestant(backend: Any) -> Callable[[], Any]:
        ggn = backend(copy.deepcopy(model), "classification")
        compute = ggn.full if structure == "full" else ggn.diag
        return lambda: compute(x, y)[1].detach()

    backends = {"BackPACK": BackPackGGN} | ({"curvlinops": CurvlinopsGGN} if slow else {})
    return {f"laplace-torch, {name}": contestant(b) for name, b in backends.items()}
