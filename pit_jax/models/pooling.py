"""PiT's spatial token pooling: a 3x3, stride-2 depthwise convolution with a channel multiplier.

One function, three lowerings, one chooser. XLA's grouped convolution is avoided where it is slow:
its weight gradient takes seconds per layer on CPUs, cuDNN refuses it on GPUs, and on TPUs a dense
convolution with a block-diagonal kernel keeps the matrix unit busy instead. `grouped_convolution`
stays as the plain definition that the others are tested against.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pit_jax.models import lowerings

WINDOW = 3
STRIDE = 2
# Explicit on both sides: "SAME" pads (0, 1) on even grids, which shifts every window by one pixel.
PADDING = ((1, 1), (1, 1))

Lowering = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def pooled_size(size: int) -> int:
    """Length of a map axis after pooling: ceil(size / 2)."""
    return (size + sum(PADDING[0]) - WINDOW) // STRIDE + 1


def grouped_convolution(maps: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The definition: a convolution with one group per input channel."""
    pooled = lax.conv_general_dilated(
        maps,
        kernel,
        window_strides=(STRIDE, STRIDE),
        padding=PADDING,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=maps.shape[-1],
    )
    return pooled + bias.reshape(1, 1, 1, -1)


def dense_convolution(maps: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The same sum as an ungrouped convolution, its kernel zero off each channel's own outputs."""
    channels, multiplier = maps.shape[-1], kernel.shape[-1] // maps.shape[-1]
    per_channel = kernel.reshape(WINDOW, WINDOW, channels, multiplier)
    own_outputs = jnp.eye(channels, dtype=kernel.dtype).reshape(1, 1, channels, channels, 1)
    block_diagonal = per_channel[:, :, None] * own_outputs  # (3, 3, C in, C group, multiplier)
    pooled = lax.conv_general_dilated(
        maps,
        block_diagonal.reshape(WINDOW, WINDOW, channels, channels * multiplier),
        window_strides=(STRIDE, STRIDE),
        padding=PADDING,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return pooled + bias.reshape(1, 1, 1, -1)


def shifted_sum(maps: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Nine strided slices times per-channel weights, accumulated in float32: a single elementwise
    fusion.
    """
    batch, height, width, channels = maps.shape
    multiplier = kernel.shape[-1] // channels
    out_height, out_width = pooled_size(height), pooled_size(width)
    padded = jnp.pad(maps, ((0, 0), *PADDING, (0, 0))).astype(jnp.float32)
    weights = kernel.astype(jnp.float32).reshape(WINDOW, WINDOW, 1, 1, 1, channels, multiplier)

    total = jnp.zeros((), jnp.float32)
    for row in range(WINDOW):
        for column in range(WINDOW):
            rows = slice(row, row + STRIDE * (out_height - 1) + 1, STRIDE)
            columns = slice(column, column + STRIDE * (out_width - 1) + 1, STRIDE)
            total = total + padded[:, rows, columns, :, None] * weights[row, column]
    pooled = total.reshape(batch, out_height, out_width, channels * multiplier)
    return pooled.astype(maps.dtype) + bias.reshape(1, 1, 1, -1)


LOWERINGS: dict[str, Lowering] = {
    "grouped": grouped_convolution,
    "dense": dense_convolution,
    "shifted": shifted_sum,
}


def depthwise_pool(
    maps: jax.Array, kernel: jax.Array, bias: jax.Array, *, lowering: str | None = None
) -> jax.Array:
    """Halves the grid of a map and multiplies its channels, each input channel feeding its own
    outputs.

    Args:
      maps: (B, H, W, C), floating.
      kernel: (3, 3, 1, M*C), same dtype; output channels M*i .. M*i+M-1 see input channel i only.
      bias: (M*C,), same dtype.
      lowering: a key of `LOWERINGS`, or None for that of `lowerings.override`, and outside of one
        for the one that is fastest on the platform compiled for.

    Returns:
      (B, ceil(H/2), ceil(W/2), M*C), in the dtype of `maps`.

    Raises:
      ValueError: no such lowering.
    """
    lowering = lowering or lowerings.chosen("pooling")
    if lowering is not None:
        return lowerings.lookup("pooling", lowering, LOWERINGS)(maps, kernel, bias)
    return lax.platform_dependent(
        maps,
        kernel,
        bias,
        cpu=shifted_sum,
        cuda=shifted_sum,
        tpu=dense_convolution,
        default=shifted_sum,
    )
