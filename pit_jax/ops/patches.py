"""Patch embedding: a convolution whose stride divides its window, its lowerings, and the choice.

PiT's patches overlap by half, those of ViT and DeiT not at all. Cut into squares as wide as the
stride, an image is copied once, and each patch is a few whole squares. What remains is a matrix
product, which CPUs compute faster than a convolution of three channels. TPUs fill their vector
registers better where the pixels of a row are channels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

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
    """Convolution with `stride` neighbouring pixels of a row as channels.

    On TPUs it takes a tenth less time than three channels do, and much less time to compile.

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
    """Product of patches with the kernel, both ordered square by square.

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
            'use lowerings.override(patches="convolution")'
        )


LOWERINGS: dict[str, Lowering] = {"convolution": convolution, "rows": rows, "product": product}


def embed_patches(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, *, stride: int
) -> jax.Array:
    """Projects every patch of an image to a token; the pixels left over on the right and at the
    bottom are ignored.

    Where the stride divides the patch, the lowering is "product" on CPUs and "rows" on TPUs, else
    "convolution"; or it is the key of `LOWERINGS` that `lowerings.override(patches=...)` names.

    Args:
      images: (B, H, W, C), floating.
      kernel: (P, Q, C, D), same dtype.
      bias: (D,), same dtype.
      stride: pixels from one patch to the next.

    Returns:
      (B, (H - P) // stride + 1, (W - Q) // stride + 1, D), in the dtype of `images`.

    Raises:
      ValueError: an override names an unknown lowering, or one that cannot cut such patches.
    """
    name = lowerings.chosen("patches")
    if name is not None:
        maps = lowerings.lookup("patches", name, LOWERINGS)(images, kernel, stride)
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
