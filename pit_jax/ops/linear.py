"""Linear layers whose bias has its gradient from the matrix unit.

The gradient of a bias is a sum over all tokens of the batch. Where the TPU compiler cannot make it
part of the program that computes what is summed, it is one more pass over an activation, which
costs more than the layer's own products; as a product with ones it is cheap. It reads the
activation once more, though, so that it takes the place of the sum only where that was measured to
pay (docs/performance.md), and not on CPUs, where the sum is the faster of the two.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

from pit_jax.ops import lowerings

Lowering = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# From (D,) and a shape, that vector at every place of the shape.
Spread = Callable[[jax.Array, tuple[int, ...]], jax.Array]

_COLUMNS = 8
# A product pays for sequences of so many rows: always behind a kernel, up to so many otherwise, in
# layers that widen.
_MIN_ROWS = 128
_MAX_WIDENING_ROWS = 511


def from_library(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ kernel + bias as JAX differentiates it."""
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, spread: Spread) -> jax.Array:
    del spread
    return from_library(x, kernel, bias)


def _differential(
    spread: Spread, primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    x, kernel, bias = primals
    to_x, to_kernel, to_bias = tangents
    parts = []
    if not isinstance(to_x, SymbolicZero):
        parts.append(to_x @ kernel)
    if not isinstance(to_kernel, SymbolicZero):
        parts.append(x @ to_kernel)
    if not isinstance(to_bias, SymbolicZero):
        parts.append(spread(to_bias, x.shape[:-1]))
    out = from_library(x, kernel, bias)
    return out, sum(parts) if parts else jnp.zeros_like(out)


_linear.defjvp(_differential, symbolic_zeros=True)


def _by_broadcast(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(D,) to (*shape, D); its transposition is a sum."""
    return jnp.broadcast_to(vector.reshape((1,) * len(shape) + (-1,)), (*shape, vector.size))


def _by_product(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same; its transposition is a product.

    Eight columns of ones behind a barrier, though one would do: the TPU compiler sees through plain
    ones, and through a product with a vector, and sums after all.
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


def _spread(x: jax.Array, kernel: jax.Array, behind_kernel: bool) -> Spread:
    rows = x.shape[-2] if x.ndim > 2 else 1
    widens = kernel.shape[1] > kernel.shape[0]
    pays = behind_kernel or (widens and rows <= _MAX_WIDENING_ROWS)
    return _on_tpus_by_product if pays and rows >= _MIN_ROWS else _by_broadcast


def by_products(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The same; the gradients of all three are matrix products."""
    return _linear(x, kernel, bias, _by_product)


LOWERINGS: dict[str, Lowering] = {"xla": from_library, "products": by_products}


def linear_map(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    behind_kernel: bool = False,
    lowering: str | None = None,
) -> jax.Array:
    """x @ kernel + bias.

    Args:
      x: (..., C), floating.
      kernel: (C, D), of that dtype.
      bias: (D,), of that dtype.
      behind_kernel: says that on TPUs a Pallas kernel writes the gradient of what is returned,
        with which the compiler cannot merge a sum.
      lowering: a key of `LOWERINGS`, which overrules `lowerings.override`; None for "products" on
        TPUs where they pay, and "xla" elsewhere.

    Returns:
      (..., D), of that dtype.

    Raises:
      ValueError: an unknown lowering.
    """
    lowering = lowering or lowerings.chosen("linear")
    if lowering is None:
        return _linear(x, kernel, bias, _spread(x, kernel, behind_kernel))
    return lowerings.lookup("linear", lowering, LOWERINGS)(x, kernel, bias)


class Linear(nnx.Linear):
    """flax's layer with a bias, computed by `linear_map`."""

    bias: nnx.Param[jax.Array]

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """(..., C) to (..., D), in the layer's dtype."""
        del out_sharding  # of meshes with explicit axes, which nothing here has
        operands = (inputs, self.kernel[...], self.bias[...])
        return linear_map(*(jnp.asarray(operand, self.dtype) for operand in operands))
