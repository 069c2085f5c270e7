"""From pixels to what models expect."""

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
    """Pixels (..., C) from 0 to 255 as (pixel / 255 - mean) / std, in float32, stored as `dtype`.

    Args:
      mean, std: of each channel, on the scale from 0 to 1.
    """
    channels = (1,) * (images.ndim - 1) + (len(mean),)
    centre = jnp.asarray(mean, jnp.float32).reshape(channels)
    scale = jnp.asarray(std, jnp.float32).reshape(channels)
    return ((images.astype(jnp.float32) / 255 - centre) / scale).astype(dtype)
