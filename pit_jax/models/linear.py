"""Linear layers whose bias has its gradient from the matrix unit.

The gradient of a bias is a sum over all tokens of the batch. Differentiated as it is written, that
is one more pass over an activation, which on TPUs costs more than the layer's own products; as a
product with a vector of ones it rides on what those products read.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from pit_jax.models import lowerings

Lowering = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_COLUMNS = 8


def from_library(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ kernel + bias as JAX differentiates it."""
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))


@jax.custom_jvp
def by_products(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The same; the gradients of all three are matrix products."""
    return from_library(x, kernel, bias)


def _differential(primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    x, kernel, bias = primals
    to_x, to_kernel, to_bias = tangents
    parts = []
    if not isinstance(to_x, SymbolicZero):
        parts.append(to_x @ kernel)
    if not isinstance(to_kernel, SymbolicZero):
        parts.append(x @ to_kernel)
    if not isinstance(to_bias, SymbolicZero):
        # Eight columns of ones behind a barrier, though one would do: the compiler would see
        # through plain ones, and through a product with a vector, and sum after all.
        ones = jax.lax.optimization_barrier(jnp.ones((*x.shape[:-1], _COLUMNS), x.dtype))
        rows = jnp.pad(to_bias.reshape(1, -1), ((0, _COLUMNS - 1), (0, 0)))
        parts.append(jnp.matmul(ones, rows, precision=jax.lax.Precision.HIGHEST))
    out = by_products(x, kernel, bias)
    return out, sum(parts) if parts else jnp.zeros_like(out)


by_products.defjvp(_differential, symbolic_zeros=True)

LOWERINGS: dict[str, Lowering] = {"xla": from_library, "products": by_products}


def linear_map(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, lowering: str | None = None
) -> jax.Array:
    """x @ kernel + bias.

    Args:
      x: (..., C), floating.
      kernel: (C, D), of that dtype.
      bias: (D,), of that dtype.
      lowering: a key of `LOWERINGS`, which overrules `lowerings.override`; None for "products".

    Returns:
      (..., D), of that dtype.

    Raises:
      ValueError: an unknown lowering.
    """
    lowering = lowering or lowerings.chosen("linear") or "products"
    return lowerings.lookup("linear", lowering, LOWERINGS)(x, kernel, bias)


class Linear(nnx.Linear):
    """flax's layer with a bias, computed by `linear_map`."""

    bias: nnx.Param[jax.Array]

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """(..., C) to (..., D), in the layer's dtype."""
        del out_sharding  # of meshes with explicit axes, which nothing here has
        operands = (inputs, self.kernel[...], self.bias[...])
        return linear_map(*(jnp.asarray(operand, self.dtype) for operand in operands))
