"""Factorisations and solves that are safe in batches.

jax before 0.12 hands each batch of LAPACK calls to the threads of the pool that also waits for
it, so a program with several such batches deadlocks on a CPU with few cores. With such a jax the
matrices of a batch follow one another on CPUs, and stay a batch elsewhere. No other module calls
LAPACK from a JAX program (a test reads the source).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, whose `vmap` is a loop on CPUs. It has no reverse-mode derivative."""
    if jax.__version_info__ >= (0, 12):
        return function
    single = jax.custom_batching.custom_vmap(function)

    @functools.partial(jax.jit, static_argnums=0)
    def batch(is_mapped: tuple[bool, ...], *args: Array) -> Any:
        mapped = [x for x, b in zip(args, is_mapped, strict=True) if b]

        def member(call: Callable[..., Any], own: list[Array]) -> Any:
            rest = iter(own)
            return call(*(next(rest) if b else x for x, b in zip(args, is_mapped, strict=True)))

        return jax.lax.platform_dependent(
            mapped,
            cpu=lambda mapped: jax.lax.map(functools.partial(member, single), mapped),
            default=jax.vmap(functools.partial(member, function)),
        )

    @single.def_vmap
    def rule(axis_size: int, in_batched: list[bool], *args: Array) -> tuple[Any, Any]:
        out = batch(tuple(in_batched), *args)
        return out, jax.tree.map(lambda _: True, out)

    return single


_cholesky = one_by_one(jnp.linalg.cholesky)
_eigh = one_by_one(lambda A: tuple(jnp.linalg.eigh(A)))
_triangular = functools.partial(jax.lax.linalg.triangular_solve, left_side=True, lower=True)
_lower_solve = one_by_one(lambda L, b: _triangular(L, b))
_upper_solve = one_by_one(lambda L, b: _triangular(L, b, transpose_a=True))
qr = one_by_one(lambda A: tuple(jnp.linalg.qr(A)))
solve = one_by_one(jnp.linalg.solve)
lstsq = one_by_one(lambda A, b: jnp.linalg.lstsq(A, b)[0])


@jax.custom_jvp
@jax.jit
def cholesky(A: Float[Array, "P P"]) -> Float[Array, "P P"]:
    """The lower triangular L with LLᵀ = A; NaN where A is not positive definite."""
    return _cholesky(A)


@cholesky.defjvp
def _cholesky_derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """dL = LΦ(L⁻¹dAL⁻ᵀ), Φ the lower triangle with half the diagonal."""
    L, dA = cholesky(*primals), tangents[0]
    inner = solve_triangular(L, solve_triangular(L, 0.5 * (dA + dA.T)).T)
    return L, L @ (jnp.tril(inner) - 0.5 * jnp.diag(jnp.diag(inner)))


@jax.custom_jvp
@jax.jit
def eigh(A: Float[Array, "P P"]) -> tuple[Float[Array, " P"], Float[Array, "P P"]]:
    """Ascending eigenvalues w and eigenvectors V with A = V diag(w) Vᵀ."""
    return _eigh(A)


@eigh.defjvp
def _eigh_derivative(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    """dw = diag(VᵀdAV), dV = V(F∘VᵀdAV), F_ij = 1/(w_j − w_i) off the diagonal."""
    w, V = eigh(*primals)
    inner = V.T @ (0.5 * (tangents[0] + tangents[0].T)) @ V
    gaps = w[None, :] - w[:, None] + jnp.eye(len(w), dtype=w.dtype)
    return (w, V), (jnp.diag(inner), V @ (inner / gaps - jnp.diag(jnp.diag(inner))))


@functools.partial(jax.jit, static_argnames="transpose")
def solve_triangular(
    L: Float[Array, "P P"], b: Float[Array, "P ..."], transpose: bool = False
) -> Float[Array, "P ..."]:
    """L⁻¹b, or L⁻ᵀb, for a lower triangular L."""
    solves = (_upper_solve, _lower_solve) if transpose else (_lower_solve, _upper_solve)
    x = jax.lax.custom_linear_solve(
        lambda x: (jnp.tril(L).T if transpose else jnp.tril(L)) @ x,
        b.reshape(len(b), -1),
        lambda _, b: solves[0](L, b),
        lambda _, b: solves[1](L, b),
    )
    return x.reshape(b.shape)


@jax.jit
def cho_solve(L: Float[Array, "P P"], b: Float[Array, "P ..."]) -> Float[Array, "P ..."]:
    """(LLᵀ)⁻¹b."""
    return solve_triangular(L, solve_triangular(L, b), transpose=True)
