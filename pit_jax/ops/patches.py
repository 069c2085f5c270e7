"""Patch embedding: a convolution whose stride divides its window, its lowerings and their chooser.

PiT's patches overlap by half, those of ViT and DeiT not at all. Cut into squares as wide as the
stride, an image is copied once, and each patch is a few whole squares: what is left is a matrix
product, which CPUs are faster at than at convolutions of three channels. TPUs have their vector
registers fuller where a row's pixels are channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from pit_jax.models.initializers import torch_default_init
from pit_jax.ops import lowerings

# Images, kernel, stride.
Lowering = Callable[[jax.Array, jax.Array, int], jax.Array]


def convolution(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The definition."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def rows(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same with as many pixels of a row side by side in the channels as the stride is wide,
    which costs TPUs a tenth less and their compiler much less than three channels do.

    Raises:
      ValueError: a patch that is not square or not whole squares of the stride.
    """
    _check(kernel, stride)
    batch, height, width, channels = images.shape
    patch, columns = kernel.shape[0], width // stride
    cut = images[:, :, : columns * stride].reshape(batch, height, columns, stride * channels)
    return lax.conv_general_dilated(
        cut,
        kernel.reshape(patch, patch // stride, stride * channels, -1),
        window_strides=(stride, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def product(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as a product of patches with the kernel, both ordered square by square.

    Raises:
      ValueError: a patch that is not square or not whole squares of the stride.
    """
    patch, channels = kernel.shape[0], images.shape[3]
    _check(kernel, stride)
    across, row_size = patch // stride, stride * channels
    batch, rows, columns = images.shape[0], images.shape[1] // stride, images.shape[2] // stride
    cut = images[:, : rows * stride, : columns * stride]
    squares = cut.reshape(batch, rows, stride, columns, row_size).swapaxes(2, 3)
    height, width = rows - across + 1, columns - across + 1
    patches = jnp.stack(
        [
            squares[:, row : row + height, column : column + width]
            for row in range(across)
            for column in range(across)
        ],
        axis=3,
    )
    weights = kernel.reshape(across, stride, across, row_size, -1).swapaxes(1, 2)
    size = patch * patch * channels
    tokens = patches.reshape(-1, size) @ weights.reshape(size, -1)
    return tokens.reshape(batch, height, width, -1)


def _divides(kernel: jax.Array, stride: int) -> bool:
    """Whether patches (P, Q, ...) are square and whole squares of the stride."""
    return kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % stride == 0


def _check(kernel: jax.Array, stride: int) -> None:
    if not _divides(kernel, stride):
        height, width = kernel.shape[:2]
        raise ValueError(
            f"patches of {height} x {width} pixels are not made of squares of the stride {stride}: "
            'use lowering="convolution"'
        )


LOWERINGS: dict[str, Lowering] = {"convolution": convolution, "rows": rows, "product": product}


def embedded_patches(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    stride: int,
    lowering: str | None = None,
) -> jax.Array:
    """Projects every patch of an image to a token; pixels left over on the right and below are
    ignored.

    Args:
      images: (B, H, W, C), floating.
      kernel: (P, Q, C, D), same dtype.
      bias: (D,), same dtype.
      stride: pixels from one patch to the next.
      lowering: a key of `LOWERINGS`, which overrules `lowerings.override`; None for "product" on
        CPUs and "rows" on TPUs where the stride divides the patch, and "convolution" elsewhere.

    Returns:
      (B, (H - P) // stride + 1, (W - Q) // stride + 1, D), in the dtype of `images`.

    Raises:
      ValueError: an unknown lowering, or one that cannot cut such patches.
    """
    lowering = lowering or lowerings.chosen("patches")
    if lowering is not None:
        maps = lowerings.lookup("patches", lowering, LOWERINGS)(images, kernel, stride)
    elif _divides(kernel, stride):
        maps = lowerings.by_platform(
            images,
            kernel,
            cpu=functools.partial(product, stride=stride),
            tpu=functools.partial(rows, stride=stride),
            default=functools.partial(convolution, stride=stride),
        )
    else:
        maps = convolution(images, kernel, stride)
    return maps + bias.reshape(1, 1, 1, -1)


class PatchProjection(nnx.Conv):
    """flax's convolution of square patches without padding, computed by `embedded_patches` and
    initialised as PyTorch does by default.
    """

    bias: nnx.Param[jax.Array]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        patch: int,
        stride: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init = torch_default_init(in_features * patch * patch)
        super().__init__(
            in_features,
            out_features,
            (patch, patch),
            strides=stride,
            padding="VALID",
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.stride = stride

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Images (B, H, W, C) to maps (B, h, w, D), in the layer's dtype."""
        del out_sharding  # of meshes with explicit axes, which nothing here has
        operands = (inputs, self.kernel[...], self.bias[...])
        images, kernel, bias = (jnp.asarray(operand, self.dtype) for operand in operands)
        return embedded_patches(images, kernel, bias, stride=self.stride)
