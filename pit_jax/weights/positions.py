"""Learned positions resized for another image size."""

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.models.config import Grid
from pit_jax.models.torch_names import Position


def resize_positions(
    position: Position, values: np.ndarray, shape: tuple[int, ...], grid: Grid, wanted: Grid
) -> jax.Array:
    """Resamples positions from one grid of patches to another.

    A map is resized by itself. A sequence keeps its entries of class tokens. Where an entry stands
    for a run of patches it has no grid of its own: it is repeated for each of them, the grid of
    patches resized, and every run averaged. Resizing the sequence itself would mix the ends of the
    image's rows.

    Args:
      position: describes the values.
      values: (1, H, W, C), or (1, prefix + entries, C).
      shape: of the result.
      grid: height and width, in patches, of the image that the values are for.
      wanted: those of the image that the result is for.
    """
    if position.prefix is None:
        return _bicubic(jnp.asarray(values), (shape[1], shape[2]))
    prefix, run, channels = position.prefix, position.run, shape[-1]
    height, width = grid
    entries = jnp.repeat(jnp.asarray(values[:, prefix:]), run, axis=1)
    short = height * width - entries.shape[1]
    patches = jnp.pad(entries, ((0, 0), (0, short), (0, 0)), mode="edge")
    resized = _bicubic(patches.reshape(1, height, width, channels), wanted)
    runs = shape[1] - prefix
    whole = resized.reshape(1, -1, channels)[:, : runs * run]
    averages = whole.reshape(1, runs, run, channels).mean(2)
    return jnp.concatenate([values[:, :prefix], averages], axis=1)


def _bicubic(maps: jax.Array, grid: Grid) -> jax.Array:
    """Maps (1, H, W, C) resized as torch's bicubic interpolation does it: the cubic of -0.75 with
    repeated edges and no antialiasing, aligned at pixel centres.
    """
    shape = (1, *grid, maps.shape[-1])
    return jax.image.resize(maps, shape, "cubic-pytorch", antialias=False)
