"""Precision of the arithmetic inside an operation."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts to float32; float64 stays as it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
