"""Random erasing (Zhong et al., 2017): noise replaces a rectangle of the normalised image.

Areas, aspect ratios and tries are timm's, as are one rectangle per image and standard normal noise
per pixel and channel (timm's mode "pixel").
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pit_jax.augment.boxes import inside

TRIES = 10
# Smallest and largest share of the image, and aspect ratio (height / width).
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)


def random_erasing(images: jax.Array, keys: jax.Array, probability: ArrayLike) -> jax.Array:
    """Erases a rectangle of each image with `probability`.

    Args:
      images: normalised (B, H, W, C).
      keys: (B,), one per image.
      probability: chance that a rectangle is erased; see `draw_boxes`.
    """
    box_keys, noise_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    _, height, width, channels = images.shape
    boxes = draw_boxes(box_keys, (height, width), probability)
    return erase(images, boxes, draw_noise(noise_keys, (height, width, channels)))


def draw_boxes(keys: jax.Array, size: tuple[int, int], probability: ArrayLike) -> jax.Array:
    """Draws rectangles to erase: int32 (B, 4) as in pit_jax.augment.boxes; zeros for none.

    The area is uniform over `AREA`, the aspect ratio log-uniform over `ASPECT`, the position
    uniform. A rectangle as high or as wide as the image is redrawn; after ten tries nothing is
    erased.

    Args:
      keys: (B,), one per image.
      size: height and width of the images.
      probability: chance that a rectangle is erased.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])

    def draw(key: jax.Array) -> jax.Array:
        areas, aspects, (decision, down, across) = jnp.split(
            jax.random.uniform(key, (2 * TRIES + 3,)), (TRIES, 2 * TRIES)
        )
        areas = AREA[0] + areas * (AREA[1] - AREA[0])
        height, width = first_fitting(areas, jnp.exp(low + aspects * (high - low)), size)
        top = (down * (size[0] - height + 1)).astype(jnp.int32)
        left = (across * (size[1] - width + 1)).astype(jnp.int32)
        erases = (decision < probability) & (height > 0)
        return jnp.where(erases, jnp.stack([top, top + height, left, left + width]), 0)

    return jax.vmap(draw)(keys)


def first_fitting(
    areas: jax.Array, aspects: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Returns height and width of the first rectangle that is smaller than the image in both
    directions; (0, 0) if none is.

    Args:
      areas: (tries,) shares of the image.
      aspects: (tries,) height / width.
      size: height and width of the image.
    """
    pixels = areas * (size[0] * size[1])
    heights = jnp.round(jnp.sqrt(pixels * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / aspects)).astype(jnp.int32)
    fits = (heights < size[0]) & (widths < size[1])
    first = jnp.argmax(fits)
    return jnp.where(fits[first], heights[first], 0), jnp.where(fits[first], widths[first], 0)


def draw_noise(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Draws standard normal noise (B, *shape), float32."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def erase(images: jax.Array, boxes: jax.Array, noise: jax.Array) -> jax.Array:
    """Replaces the pixels inside `boxes` by those of `noise`, in images (B, H, W, C)."""
    _, height, width, _ = images.shape
    erased = inside(boxes, (height, width))[..., None]
    return jnp.where(erased, noise.astype(images.dtype), images)
