"""Random erasing (Zhong et al., 2017): a rectangle of the normalised image becomes noise.

Areas, aspect ratios and tries are timm's, one rectangle per image, each pixel and channel standard
normal (timm's mode "pixel").
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pit_jax.augment.boxes import inside

TRIES = 10


def draw_boxes(
    keys: jax.Array,
    size: tuple[int, int],
    probability: ArrayLike = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """Rectangles to erase, int32 (B, 4) as in pit_jax.augment.boxes; zeros where none.

    The area is uniform, the aspect ratio (height / width) log-uniform; a rectangle as large as a
    side of the image is redrawn, after ten tries nothing is erased. The position is uniform.

    Args:
      keys: (B,), one per image.
      size: height and width of the images.
      probability: of erasing a rectangle at all.
      area: smallest and largest share of the image.
      aspect: smallest and largest aspect ratio.
    """

    low, high = math.log(aspect[0]), math.log(aspect[1])

    def draw(key: jax.Array) -> jax.Array:
        areas, aspects, (decision, down, across) = jnp.split(
            jax.random.uniform(key, (2 * TRIES + 3,)), (TRIES, 2 * TRIES)
        )
        areas = area[0] + areas * (area[1] - area[0])
        height, width = first_fitting(areas, jnp.exp(low + aspects * (high - low)), size)
        top = (down * (size[0] - height + 1)).astype(jnp.int32)
        left = (across * (size[1] - width + 1)).astype(jnp.int32)
        erases = (decision < probability) & (height > 0)
        return jnp.where(erases, jnp.stack([top, top + height, left, left + width]), 0)

    return jax.vmap(draw)(keys)


def first_fitting(
    areas: jax.Array, aspects: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Height and width of the first of the tried rectangles that is smaller than the image in both
    directions; (0, 0) where none is.

    Args:
      areas: (tries,) shares of the image.
      aspects: (tries,) height / width.
    """
    pixels = areas * (size[0] * size[1])
    heights = jnp.round(jnp.sqrt(pixels * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / aspects)).astype(jnp.int32)
    fits = (heights < size[0]) & (widths < size[1])
    first = jnp.argmax(fits)
    return jnp.where(fits[first], heights[first], 0), jnp.where(fits[first], widths[first], 0)


def draw_noise(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal (B, *shape), float32."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def erase(images: jax.Array, boxes: jax.Array, noise: jax.Array) -> jax.Array:
    """Images (B, H, W, C) with the pixels inside `boxes` replaced by those of `noise`."""
    _, height, width, _ = images.shape
    erased = inside(boxes, (height, width))[..., None]
    return jnp.where(erased, noise.astype(images.dtype), images)


def random_erasing(
    images: jax.Array,
    keys: jax.Array,
    probability: ArrayLike = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """Normalised images (B, H, W, C), each erased with `probability`; see `draw_boxes`."""
    box_keys, noise_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    _, height, width, channels = images.shape
    boxes = draw_boxes(box_keys, (height, width), probability, area, aspect)
    return erase(images, boxes, draw_noise(noise_keys, (height, width, channels)))
