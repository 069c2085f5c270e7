"""Rectangles of pixels: int32 (N, 4) of top, bottom, left, right, the ends exclusive."""

import jax
import jax.numpy as jnp


def inside(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Which pixels of a map of `size` = (height, width) lie in each box: bool (N, H, W)."""
    rows = jnp.arange(size[0], dtype=jnp.int32)[None, :, None]
    columns = jnp.arange(size[1], dtype=jnp.int32)[None, None, :]
    top, bottom, left, right = (boxes[:, i, None, None] for i in range(4))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
