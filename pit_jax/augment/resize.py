"""PIL's antialiased bicubic resize on the device, as two small matrix products per image.

The other half of pit_jax.data.jpeg: crops of any extent lie in the upper left corners of canvases
of one size, and all become images of one size. Pixels are within one grey level of PIL's and almost
always equal: the weights are PIL's fixed-point numbers, levels are rounded between the two passes,
and the passes run in PIL's order.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# PIL's weights are multiples of 2 ** -22.
WEIGHT_BITS = 22


def resize(
    canvases: jax.Array, extents: jax.Array, rows_first: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """Resizes crops: uint8 (B, *size, 3).

    Args:
      canvases: uint8 (B, H, W, 3), each with a crop in its upper left corner; the rest is ignored.
      extents: int32 (B, 2), height and width of each crop, at least 1.
      rows_first: bool (B,), whether PIL would resize the height before the width.
      size: height and width of the result.
    """
    _, height, width, _ = canvases.shape
    side = max(height, width)
    square = jnp.pad(canvases, ((0, 0), (0, side - height), (0, side - width), (0, 0)))
    # Crops that PIL resizes rows first are transposed, so that here all go columns first.
    square = _transposed_where(rows_first, square)
    extents = jnp.where(rows_first[:, None], extents[:, ::-1], extents)

    across = _weights_where(rows_first, extents[:, 1], side, size)
    down = _weights_where(rows_first, extents[:, 0], side, size[::-1])
    narrowed = _levels(_product("bow,bhwc->bohc", across, square))
    resized = _levels(_product("bph,bohc->bpoc", down, narrowed))
    return _transposed_where(rows_first, resized)[:, : size[0], : size[1]]


def bicubic_weights(lengths: jax.Array, available: int, wanted: int) -> jax.Array:
    """Returns the weight of each pixel of a line in each pixel of the resized line.

    Args:
      lengths: int32 (B,), pixels of the lines, from 1 to `available`.
      available: length of the canvas.
      wanted: pixels of the resized line.

    Returns:
      (B, wanted, available), float32, multiples of 2 ** -22; zero beyond the length.
    """
    first, taps = (jnp.asarray(table)[lengths] for table in _tables(available, wanted))
    source = jnp.arange(available, dtype=jnp.int32)[None, None, :]
    weights = jnp.zeros((*first.shape, available), jnp.float32)
    for tap in range(taps.shape[-1]):
        here = source == (first + tap)[..., None]
        weights = jnp.where(here, taps[..., tap, None], weights)
    return weights


@functools.cache
def _tables(available: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Tabulates `pillow_weights` for every length: first pixels, int32 (available + 1, wanted), and
    weights, float32 (available + 1, wanted, taps).
    """
    first = np.zeros((available + 1, wanted), np.int32)
    taps = np.zeros((available + 1, wanted, pillow_weights(available, wanted)[1].shape[1]))
    for length in range(1, available + 1):
        first[length], weights = pillow_weights(length, wanted)
        taps[length, :, : weights.shape[1]] = weights
    return first, taps.astype(np.float32)


def pillow_weights(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each resized pixel, the first pixel that contributes, int (wanted,), and the
    weights of this and the following ones, float (wanted, taps).

    The kernel is the cubic with a = -0.5, widened by the scale if the line shrinks, cut off at the
    ends of the line, normalised to 1, then rounded to fixed point.
    """
    scale = length / wanted
    support = 2 * max(scale, 1.0)
    centre = (np.arange(wanted) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int32)
    source = first[:, None] + np.arange(math.ceil(support) * 2 + 1)
    x = np.abs(source + 0.5 - centre[:, None]) / max(scale, 1.0)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, inner, np.where(x < 2, outer, 0.0)) * (source < length)
    weights /= weights.sum(1, keepdims=True)
    return first, np.round(weights * 2**WEIGHT_BITS) / 2**WEIGHT_BITS


def _weights_where(
    turned: jax.Array, lengths: jax.Array, side: int, size: tuple[int, int]
) -> jax.Array:
    """Returns weights to size[1] pixels, or to size[0] for images that are `turned`, padded to the
    same number of pixels: (B, max(size), side).
    """
    straight = bicubic_weights(lengths, side, size[1])
    if size[0] == size[1]:
        return straight
    sideways = bicubic_weights(lengths, side, size[0])
    places = max(size)
    straight, sideways = (
        jnp.pad(weights, ((0, 0), (0, places - weights.shape[1]), (0, 0)))
        for weights in (straight, sideways)
    )
    return jnp.where(turned[:, None, None], sideways, straight)


def _transposed_where(chosen: jax.Array, images: jax.Array) -> jax.Array:
    return jnp.where(chosen[:, None, None, None], images.swapaxes(1, 2), images)


def _product(equation: str, weights: jax.Array, levels: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(
        weights,
        levels,
        cpu=functools.partial(float32_product, equation),
        default=functools.partial(split_product, equation),
    )


def float32_product(equation: str, weights: jax.Array, levels: jax.Array) -> jax.Array:
    """Multiplies float32 weights with whole levels from 0 to 255, in float32."""
    pixels = levels.astype(jnp.float32)
    return jnp.einsum(equation, weights, pixels, precision=jax.lax.Precision.HIGHEST)


def split_product(equation: str, weights: jax.Array, levels: jax.Array) -> jax.Array:
    """Computes `float32_product` on matrix units: a weight is the sum of three bfloat16 numbers and
    a level up to 256 is one, so that every product is exact; sums are float32.
    """
    pixels = levels.astype(jnp.bfloat16)
    total = jnp.zeros((), jnp.float32)
    for _ in range(3):
        part = weights.astype(jnp.bfloat16)
        weights = weights - part.astype(jnp.float32)
        total += jnp.einsum(equation, part, pixels, preferred_element_type=jnp.float32)
    return total


def _levels(values: jax.Array) -> jax.Array:
    """Rounds to uint8, halves upwards; also halves that float32 arithmetic has left just below."""
    return jnp.clip(jnp.floor(values + (0.5 + 2**-16)), 0, 255).astype(jnp.uint8)
