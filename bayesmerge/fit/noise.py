"""Standard normal noise that costs little more than to write it down.

An optimiser that perturbs every parameter at every step spends more time in `jax.random.normal`
than in gradients: Threefry is cryptography. Here every element hashes its own index with the key
(pcg3d, Jarzynski & Olano 2020) and takes one half of a Box-Muller pair,
all in elementary operations that compilers fuse. 23 bits of radius: no draw is beyond 5.7.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

LOG = (
    0.999998764,
    -0.499871916,
    0.331120519,
    -0.235148638,
    0.149434584,
    -0.0665880499,
    0.0142028256,
)
"""log(1 + x)/x for x in [0, 1), to 1e-6."""

COSINE = (0.999999211, -19.7389804, 64.9286574, -85.2716215, 58.7904921, -21.0711056)
"""cos 2πt in t², for |t| ≤ ½, to 1e-6."""

GOLDEN = 0x9E3779B9
"""2³² over the golden ratio, which keeps the keys of many leaves apart."""


def normal_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """ε ~ N(0, I), a pytree shaped as `tree`, float32."""
    leaves, structure = jax.tree.flatten(tree)
    drawn = [normal(key, jnp.shape(x), number) for number, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], number: int = 0) -> Float[Array, "..."]:
    """ε ~ N(0, I) of `shape`, float32, the array of this `number` that the key makes.

    **Raises** `ValueError` for 2³² elements or more, which have no index of 32 bits.
    """
    if math.prod(shape) >= 2**32:
        raise ValueError(
            f"a parameter of shape {shape} has {math.prod(shape)} entries, and noise is drawn for "
            "fewer than 2**32 at once: split it into several leaves."
        )
    first, second = jax.random.key_data(key).ravel()[-2:]
    second = second + jnp.uint32(number * GOLDEN % 2**32)
    return _box_muller(*_pcg3d(_index(shape), first, second))


def _index(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The number of every element, in row-major order."""
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index, stride = index + along * jnp.uint32(stride), stride * shape[axis]
    return index


def _pcg3d(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Two of three words that depend on every bit of three words."""
    x, y, z = (word * jnp.uint32(1664525) + jnp.uint32(1013904223) for word in (x, y, z))
    x, y, z = _multiply_round(x, y, z)
    x, y, z = (word ^ (word >> 16) for word in (x, y, z))
    x, y, _ = _multiply_round(x, y, z)
    return x, y


def _multiply_round(x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    x = x + y * z
    y = y + z * x
    return x, y, z + x * y


def _box_muller(a: UInt32[Array, "..."], b: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """√(−2 log u) cos 2πt with u uniform on (0, 1] from `a`, t on (−½, ½) from `b`."""
    u = 2 - jax.lax.bitcast_convert_type((a >> 9) | jnp.uint32(0x3F800000), jnp.float32)
    bits = jax.lax.bitcast_convert_type(u, jnp.int32)
    mantissa = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    exponent = ((bits >> 23) - 127).astype(jnp.float32)
    log_u = (mantissa - 1) * _polynomial(LOG, mantissa - 1) + exponent * jnp.float32(math.log(2))
    t = jax.lax.bitcast_convert_type(b, jnp.int32).astype(jnp.float32) * jnp.float32(2**-32)
    return jnp.sqrt(jnp.maximum(-2 * log_u, 0)) * _polynomial(COSINE, t**2)


def _polynomial(coefficients: tuple[float, ...], x: Float[Array, "..."]) -> Float[Array, "..."]:
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + jnp.float32(coefficient)
    return value
