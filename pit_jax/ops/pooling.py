"""PiT's spatial token pooling: a 3x3, stride-2 depthwise convolution with a channel multiplier.

It has three lowerings. XLA's grouped convolution is the definition, and slow: its weight gradient
takes seconds per layer on CPUs, cuDNN refuses it on GPUs, and on TPUs a dense convolution with a
block-diagonal kernel keeps the matrix unit busy instead.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pit_jax.ops import lowerings
from pit_jax.ops.batch_shards import per_batch_shard

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


@jax.custom_vjp
def dense_convolution(maps: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Ungrouped convolution whose kernel is zero outside of each channel's own outputs.

    Devices exchange the gradient of the kernel alone, not that of the zeros.
    """
    return _dense(maps, kernel, bias)


def _dense(maps: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
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


def _dense_forward(
    maps: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _dense(maps, kernel, bias), (maps, kernel, bias)


def _dense_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    maps, kernel, bias = residuals

    def on_shard(maps: jax.Array, gradient: jax.Array, *weights: jax.Array) -> Any:
        to_maps, *to_weights = jax.vjp(_dense, maps, *weights)[1](gradient)
        return (to_maps,), tuple(to_weights)

    (to_maps,), to_weights = per_batch_shard(
        on_shard, maps, gradient, shared=(kernel, bias), sums=True
    )
    return to_maps, *to_weights


dense_convolution.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def shifted_sum(maps: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Sum of nine strided slices times per-channel weights, accumulated in float32.

    It is a single elementwise fusion, as is the gradient of the maps.
    """
    channels = maps.shape[-1]
    weights = _per_channel(kernel, channels)
    total = jnp.zeros((), jnp.float32)
    for row, column, taps in _taps(maps):
        total = total + taps[..., None] * weights[row, column]
    pooled = total.reshape(*total.shape[:3], kernel.shape[-1])
    return pooled.astype(maps.dtype) + bias.reshape(1, 1, 1, -1)


def _per_channel(kernel: jax.Array, channels: int) -> jax.Array:
    """The kernel as (3, 3, 1, 1, 1, C, M), float32, to multiply (B, H, W, C, 1)."""
    return kernel.astype(jnp.float32).reshape(WINDOW, WINDOW, 1, 1, 1, channels, -1)


def _taps(maps: jax.Array) -> Iterator[tuple[int, int, jax.Array]]:
    """For each place in the window, (row, column, values of all windows there), float32."""
    out_height, out_width = pooled_size(maps.shape[1]), pooled_size(maps.shape[2])
    padded = jnp.pad(maps, ((0, 0), *PADDING, (0, 0))).astype(jnp.float32)
    for row in range(WINDOW):
        for column in range(WINDOW):
            rows = slice(row, row + STRIDE * (out_height - 1) + 1, STRIDE)
            columns = slice(column, column + STRIDE * (out_width - 1) + 1, STRIDE)
            yield row, column, padded[:, rows, columns]


def _shifted_forward(
    maps: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return shifted_sum(maps, kernel, bias), (maps, kernel)


def _shifted_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    maps, kernel = residuals
    channels = maps.shape[-1]
    to_bias = gradient.astype(jnp.float32).sum((0, 1, 2)).astype(gradient.dtype)
    by_channel = gradient.astype(jnp.float32).reshape(*gradient.shape[:3], channels, -1)
    # One sum over positions (C,) for each place in the window and each output of a channel: one sum
    # over (B, H, W, C, M) would leave the short last axis to the vector units.
    outputs = [by_channel[..., output] for output in range(by_channel.shape[-1])]
    sums = [[(taps * own).sum((0, 1, 2)) for own in outputs] for _, _, taps in _taps(maps)]
    to_kernel = jnp.stack([jnp.stack(own, axis=-1) for own in sums])
    to_maps = _spread(by_channel, _per_channel(kernel, channels), maps.shape[1], maps.shape[2])
    return to_maps.astype(maps.dtype), to_kernel.reshape(kernel.shape).astype(kernel.dtype), to_bias


def _spread(by_channel: jax.Array, weights: jax.Array, height: int, width: int) -> jax.Array:
    """Gradient of the maps (B, height, width, C) from that of the outputs (B, H, W, C, M).

    Even positions are in the middle of one window, odd ones on the edges of two. The four parities
    are computed separately and interleaved; the transpose of a strided slice would write zeros
    between its values, nine times.
    """

    def on_axis(axis: int, before: jax.Array, middle: jax.Array, after: jax.Array) -> jax.Array:
        following = lax.slice_in_dim(before, 1, None, axis=axis)
        pads = [(0, int(dimension == axis)) for dimension in range(before.ndim)]
        return jnp.stack([middle, after + jnp.pad(following, pads)], axis=axis + 1)

    parts = [[(by_channel * weights[row, column]).sum(-1) for column in range(WINDOW)]
             for row in range(WINDOW)]  # fmt: skip
    rows = [on_axis(2, *parts[row]) for row in range(WINDOW)]  # (B, H, W, 2, C)
    batch, out_height, out_width, parities, channels = rows[0].shape
    wide = [row.reshape(batch, out_height, out_width * parities, channels) for row in rows]
    spread = on_axis(1, *wide).reshape(batch, out_height * STRIDE, out_width * STRIDE, channels)
    return spread[:, :height, :width]


shifted_sum.defvjp(_shifted_forward, _shifted_backward)


LOWERINGS: dict[str, Lowering] = {
    "grouped": grouped_convolution,
    "dense": dense_convolution,
    "shifted": shifted_sum,
}


def depthwise_pool(maps: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Halves the grid of a map and multiplies its channels, each input channel feeding its own
    outputs.

    The lowering is the fastest one on the platform compiled for, or the key of `LOWERINGS` that
    `lowerings.override(pooling=...)` names.

    Args:
      maps: (B, H, W, C), floating.
      kernel: (3, 3, 1, M*C), same dtype; output channels M*i .. M*i+M-1 see input channel i only.
      bias: (M*C,), same dtype.

    Returns:
      (B, ceil(H/2), ceil(W/2), M*C), in the dtype of `maps`.

    Raises:
      ValueError: an override names an unknown lowering.
    """
    name = lowerings.chosen("pooling")
    if name is not None:
        return lowerings.lookup("pooling", name, LOWERINGS)(maps, kernel, bias)
    return lowerings.by_platform(maps, kernel, bias, tpu=dense_convolution, default=shifted_sum)
