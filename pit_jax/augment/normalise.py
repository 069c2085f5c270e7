"""Normalisation of pixels to the values that models expect."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def normalise(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns (pixel / 255 - mean) / std of pixels (..., C) from 0 to 255.

    Args:
      images: pixels of any dtype; the arithmetic is float32.
      mean, std: one number per channel, on the scale from 0 to 1.
      dtype: of the result.
    """
    channels = (1,) * (images.ndim - 1) + (len(mean),)
    centre = jnp.asarray(mean, jnp.float32).reshape(channels)
    scale = jnp.asarray(std, jnp.float32).reshape(channels)
    return ((images.astype(jnp.float32) / 255 - centre) / scale).astype(dtype)
