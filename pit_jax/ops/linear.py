"""Linear layers whose bias gets its gradient from the matrix unit.

The gradient of a bias is a sum over all tokens of the batch. Where the TPU compiler cannot fuse it
with the computation of the summands, it is one more pass over an activation and costs more than the
layer's own products. As a product with ones it is cheap, but reads the activation once more. The
product therefore replaces the sum only where it was measured to be faster (docs/performance.md),
and never on CPUs, where the sum is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from pit_jax.ops import lowerings

Lowering = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# Broadcasts (D,) to (*shape, D).
Broadcast = Callable[[jax.Array, tuple[int, ...]], jax.Array]

_COLUMNS = 8
# Sequence lengths at which the product is faster: from this one if a Pallas kernel computes the
# incoming gradient, and up to that one otherwise, in layers that widen.
_MIN_ROWS = 128
_MAX_WIDENING_ROWS = 511


def from_library(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ kernel + bias as JAX differentiates it."""
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, broadcast: Broadcast) -> jax.Array:
    del broadcast
    return from_library(x, kernel, bias)


def _differential(
    broadcast: Broadcast, primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    x, kernel, bias = primals
    to_x, to_kernel, to_bias = tangents
    parts = []
    if not isinstance(to_x, SymbolicZero):
        parts.append(to_x @ kernel)
    if not isinstance(to_kernel, SymbolicZero):
        parts.append(x @ to_kernel)
    if not isinstance(to_bias, SymbolicZero):
        parts.append(broadcast(to_bias, x.shape[:-1]))
    out = from_library(x, kernel, bias)
    return out, sum(parts) if parts else jnp.zeros_like(out)


_linear.defjvp(_differential, symbolic_zeros=True)


def _by_broadcast(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(D,) to (*shape, D); its transpose is a sum."""
    return jnp.broadcast_to(vector.reshape((1,) * len(shape) + (-1,)), (*shape, vector.size))


def _by_product(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(D,) to (*shape, D); its transpose is a matrix product.

    Eight columns of ones behind a barrier, though one would do: the TPU compiler sees through plain
    ones, and through a product with a vector, and computes a sum after all.
    """
    ones = lax.optimization_barrier(jnp.ones((*shape, _COLUMNS), vector.dtype))
    rows = jnp.pad(vector.reshape(1, -1), ((0, _COLUMNS - 1), (0, 0)))
    return jnp.matmul(ones, rows, precision=lax.Precision.HIGHEST)


def _on_tpus_by_product(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return lowerings.by_platform(
        vector,
        tpu=functools.partial(_by_product, shape=shape),
        default=functools.partial(_by_broadcast, shape=shape),
    )


def _fastest(x: jax.Array, kernel: jax.Array, behind_kernel: bool) -> Broadcast:
    # The rows of a matrix are the batch, not a sequence.
    rows = x.shape[-2] if x.ndim > 2 else 1
    widens = kernel.shape[1] > kernel.shape[0]
    product = behind_kernel or (widens and rows <= _MAX_WIDENING_ROWS)
    return _on_tpus_by_product if product and rows >= _MIN_ROWS else _by_broadcast


def by_products(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ kernel + bias; the gradients of all three operands are matrix products."""
    return _linear(x, kernel, bias, _by_product)


LOWERINGS: dict[str, Lowering] = {"xla": from_library, "products": by_products}


def linear(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, behind_kernel: bool = False
) -> jax.Array:
    """x @ kernel + bias.

    The lowering is "products" on TPUs where that is faster, "xla" elsewhere, or the key of
    `LOWERINGS` that `lowerings.override(linear=...)` names.

    Args:
      x: (..., C), floating.
      kernel: (C, D), same dtype.
      bias: (D,), same dtype.
      behind_kernel: on TPUs, a Pallas kernel computes the gradient of the result, with which the
        compiler cannot fuse a sum.

    Returns:
      (..., D), same dtype.

    Raises:
      ValueError: an override names an unknown lowering.
    """
    name = lowerings.chosen("linear")
    if name is None:
        return _linear(x, kernel, bias, _fastest(x, kernel, behind_kernel))
    return lowerings.lookup("linear", name, LOWERINGS)(x, kernel, bias)
