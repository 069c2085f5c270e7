"""Rectangles of pixels: int32 (N, 4) of top, bottom, left, right, the ends exclusive."""

import jax
import jax.numpy as jnp


def inside(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Marks the pixels inside each box: bool (N, H, W) for a map of `size` = (height, width)."""
    rows = jnp.arange(size[0], dtype=jnp.int32)[None, :, None]
    columns = jnp.arange(size[1], dtype=jnp.int32)[None, None, :]
    top, bottom, left, right = (boxes[:, i, None, None] for i in range(4))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
