"""One random key per image, from its place in the global batch.

What happens to an image then depends neither on how the batch is spread over devices and processes
nor on the other images.
"""

import jax
import jax.numpy as jnp


def image_keys(key: jax.Array, count: int, first: int = 0) -> jax.Array:
    """(count,) keys for the images at positions `first`, `first` + 1, ... of the global batch.

    Args:
      key: of the step; another step or another use needs another key.
      first: position of the first image, where only a part of the batch is at hand.
    """
    positions = jnp.arange(first, first + count, dtype=jnp.uint32)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
