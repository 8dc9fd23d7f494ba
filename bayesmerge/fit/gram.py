"""The Gram matrix of a batch of examples, of which a structure of precisions computes the entries
that it keeps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesmerge.families.layout import Layout
from bayesmerge.families.precision.hessian import COLUMNS_AT_ONCE, restriction

FEW_ROWS = 3

Outputs = Callable[[PyTree, PyTree], Float[Array, "N C"]]


class Gram(NamedTuple):
    """Σ_i (J_iᵀR_i)(J_iᵀR_i)ᵀ over the examples of a batch, J_i = ∂f_i/∂θ.

    - `outputs(theta, batch)`: f_i(θ) for every example.
    - `roots`: R_i.
    """

    outputs: Outputs
    theta: PyTree
    batch: PyTree
    roots: Float[Array, "N C S"]

    def diagonal(self) -> PyTree:
        def squared(r: Float[Array, "N C"]) -> PyTree:
            return jax.tree.map(lambda g: jnp.sum(g**2, axis=0), self._gradients(r))

        parts = jax.lax.map(squared, _last_first(self.roots))
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)

    def dense(self) -> Float[Array, "Q Q"]:
        """Few columns S: AᵀA with rows (J_iᵀr)ᵀ. Many: row p of Σ J_iᵀ(B_iJ_i), B = RRᵀ, is one
        backward pass with the p-th columns of all B_iJ_i for cotangents."""
        layout, R = Layout.of(self.theta), self.roots
        if R.shape[-1] <= FEW_ROWS:
            A = self.rows().reshape(-1, layout.size)
            return A.T @ A
        BJ = self._rows_of(jnp.einsum("ncs,nds->ncd", R, R))
        _, pull = jax.vjp(lambda theta: self.outputs(theta, self.batch), self.theta)
        row = lambda cotangents: layout.ravel(pull(cotangents)[0])  # noqa: E731
        return jax.lax.map(row, jnp.transpose(BJ, (2, 1, 0)), batch_size=COLUMNS_AT_ONCE)

    def restricted(self, leaves: tuple[int, ...]) -> "Gram":
        part, whole = restriction(self.theta, leaves)
        outputs = lambda part, batch: self.outputs(whole(part), batch)  # noqa: E731
        return Gram(outputs, part, self.batch, self.roots)

    def rows(self) -> Float[Array, "S N Q"]:
        """(J_iᵀR_i)ᵀ for every example i and column of R."""
        return self._rows_of(self.roots)

    def multiply(self, vector: PyTree) -> PyTree:
        """Σ J_iᵀR_iR_iᵀJ_iv."""
        outputs = lambda theta: self.outputs(theta, self.batch)  # noqa: E731
        _, Jv = jax.jvp(outputs, (self.theta,), (vector,))
        _, pull = jax.vjp(outputs, self.theta)
        return pull(jnp.einsum("ncs,nds,nd->nc", self.roots, self.roots, Jv))[0]

    def _rows_of(self, cotangents: Float[Array, "N C S"]) -> Float[Array, "S N Q"]:
        ravel = Layout.of(self.theta).ravel
        return jax.vmap(jax.vmap(ravel))(jax.lax.map(self._gradients, _last_first(cotangents)))

    def _gradients(self, r: Float[Array, "N C"]) -> PyTree:
        """J_iᵀr_i for every example i, shaped as θ with a leading axis N."""

        def one(example: PyTree, cotangent: Float[Array, " C"]) -> PyTree:
            single = jax.tree.map(lambda x: x[None], example)
            _, pull = jax.vjp(lambda theta: self.outputs(theta, single), self.theta)
            return pull(cotangent[None])[0]

        return jax.vmap(one)(self.batch, r)


def _last_first(R: Float[Array, "N C S"]) -> Float[Array, "S N C"]:
    return jnp.moveaxis(R, -1, 0)
