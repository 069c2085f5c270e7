"""One random key per image, from its position in the global batch.

The augmentation of an image then depends neither on how the batch is spread over devices and
processes nor on the other images.
"""

import jax
import jax.numpy as jnp


def image_keys(key: jax.Array, count: int, first: int = 0) -> jax.Array:
    """Returns (count,) keys for the images at positions `first`, `first` + 1, ... of the batch.

    Args:
      key: of this step and this use; each step and each use needs its own.
      count: number of images.
      first: position of the first image in the global batch, if only a part of it is at hand.
    """
    positions = jnp.arange(first, first + count, dtype=jnp.uint32)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
