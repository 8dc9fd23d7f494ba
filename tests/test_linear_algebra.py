"""Factorisations in batches: the values of NumPy's, derivatives, and no batch of LAPACK calls."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayesmerge as bm
from bayesmerge.linear_algebra import cho_solve, cholesky, eigh, lstsq, qr, solve, solve_triangular

RNG = np.random.default_rng(0)
ROOTS = RNG.normal(size=(4, 5, 5))
SPD = ROOTS @ ROOTS.transpose(0, 2, 1) + np.eye(5)
SIDES = RNG.normal(size=(4, 5, 3))

close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)  # noqa: E731


@jax.jit
def all_of(A, b):
    L = cholesky(A)
    w, V = eigh(A)
    return {
        "cholesky": L,
        "lower": solve_triangular(L, b),
        "upper": solve_triangular(L, b, transpose=True),
        "vector": solve_triangular(L, b[:, 0]),
        "solve": cho_solve(L, b),
        "again": (V * w[None, :]) @ V.T,
        "general": solve(A, b),
        "least squares": lstsq(A, b),
        "orthogonal": qr(b)[0] @ qr(b)[1],
    }


def expected(A, b):
    L = np.linalg.cholesky(A)
    x = np.linalg.solve(A, b)
    return {
        "cholesky": L,
        "lower": np.linalg.solve(L, b),
        "upper": np.linalg.solve(L.T, b),
        "vector": np.linalg.solve(L, b[:, 0]),
        "solve": x,
        "again": A,
        "general": x,
        "least squares": x,
        "orthogonal": b,
    }


def test_batches_have_the_values_of_numpy():
    found = jax.vmap(all_of)(jnp.asarray(SPD), jnp.asarray(SIDES))
    for i in range(len(SPD)):
        jax.tree.map(lambda x, y, i=i: close(x[i], y), found, expected(SPD[i], SIDES[i]))


def test_nested_batches_and_shared_matrices():
    one, many = jnp.asarray(SPD[0]), jnp.asarray(SPD)
    sides = jnp.asarray(SIDES[:2])
    found = jax.vmap(lambda b: jax.vmap(lambda A: cho_solve(cholesky(A), b))(many))(sides)
    shared = jax.vmap(lambda b: cho_solve(cholesky(one), b))(sides)
    for i, b in enumerate(SIDES[:2]):
        close(shared[i], np.linalg.solve(SPD[0], b))
        close(found[i], np.linalg.solve(SPD, np.broadcast_to(b, (4, 5, 3))))


def test_derivatives_are_those_of_jax():
    def mine(R, b):
        L = cholesky(R @ R.T + jnp.eye(5))
        return jnp.sum(jnp.sin(cho_solve(L, b))) + jnp.sum(jnp.log(jnp.diag(L)))

    def theirs(R, b):
        L = jnp.linalg.cholesky(R @ R.T + jnp.eye(5))
        x = jax.scipy.linalg.cho_solve((L, True), b)
        return jnp.sum(jnp.sin(x)) + jnp.sum(jnp.log(jnp.diag(L)))

    arguments = jnp.asarray(ROOTS[0]), jnp.asarray(SIDES[0, :, 0])
    for derive in (jax.grad, jax.hessian):
        ours, others = (jax.jit(derive(f, (0, 1)))(*arguments) for f in (mine, theirs))
        jax.tree.map(close, ours, others)
    spectrum = lambda R, of: jnp.sin(of(R @ R.T)[0])  # noqa: E731
    ours = jax.jit(jax.jacrev(lambda R: spectrum(R, eigh)))(arguments[0])
    close(ours, jax.jit(jax.jacrev(lambda R: spectrum(R, jnp.linalg.eigh)))(arguments[0]))
    vectors = lambda R, of: of(R @ R.T)[1] ** 2  # noqa: E731
    ours = jax.jit(jax.jacfwd(lambda R: vectors(R, eigh)))(arguments[0])
    close(ours, jax.jit(jax.jacfwd(lambda R: vectors(R, jnp.linalg.eigh)))(arguments[0]))


def test_what_is_not_positive_definite_is_nan_alone():
    found = jax.jit(jax.vmap(cholesky))(jnp.stack([jnp.eye(2), -jnp.eye(2)]))
    close(found[0], np.eye(2))
    assert np.isnan(np.diag(found[1])).all()


def gaussians():
    return jax.vmap(lambda m, A: bm.FullGaussian.from_natural_parameters(m, A))(
        jnp.asarray(SIDES[:, :, 0]), jnp.asarray(SPD)
    )


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason="jax 0.12 has no such deadlock")
@pytest.mark.parametrize(
    "call",
    [
        lambda q: (q.mode(), q.covariance(), q.log_prob(jnp.zeros(5)), q.is_proper()),
        lambda q: (q.kl_divergence(q**0.5), q.smallest_precision(), q.entropy()),
        lambda q: q.sample(jax.random.key(0), (3,)),
        lambda q: bm.Mixture(jnp.ones(4), q).mean(),
        lambda q: jax.vmap(lambda p, b: p.solve(b))(q, jnp.asarray(SIDES[:, :, 0])),
        lambda q: jax.vmap(lambda A: jax.hessian(lambda x: cholesky(x).sum())(A))(
            q.precision.value
        ),
    ],
    ids=["marginals", "divergences", "draws", "mixture", "solves", "hessians"],
)
def test_programs_hold_no_batch_of_lapack_calls(call):
    program = jax.jit(call).lower(gaussians()).as_text()
    assert "@lapack_" in program
    assert not re.search(r'@lapack_\w+.*num_batch_dims = "[1-9]', program)
    single = jax.jit(jax.vmap(jnp.linalg.cholesky)).lower(jnp.asarray(SPD)).as_text()
    assert re.search(r'@lapack_\w+.*num_batch_dims = "[1-9]', single)


def test_no_other_module_calls_lapack_from_jax():
    package = Path(bm.__file__).parent
    calls = re.compile(
        r"(jnp|jax\.numpy|lax)\.linalg\.(?!norm\b)\w+|jax\.scipy\.linalg(?!\.block_diag)"
    )
    found = {
        str(path.relative_to(package)): calls.findall(path.read_text())
        for path in package.rglob("*.py")
        if path.name != "linear_algebra.py" and calls.search(path.read_text())
    }
    assert not found
