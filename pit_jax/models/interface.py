"""The interface of every model: the images it takes, the logits and feature maps it returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Logits (B, K); of a distilled model in training, those of both heads.
Logits = jax.Array | tuple[jax.Array, jax.Array]


class FeatureInfo(NamedTuple):
    """One map of a model's `features`.

    Attributes:
      stride: image pixels per position.
      channels: C.
      grid: height and width.
    """

    stride: int
    channels: int
    grid: tuple[int, int]


def check_images(images: jax.Array, expected: tuple[int, int, int]) -> None:
    """Checks that images are floating point and (B, H, W, channels) as `expected`.

    Raises:
      ValueError: they are not.
    """
    if images.ndim != 4 or images.shape[1:] != expected:
        channels_first = images.ndim == 4 and images.shape[1] == expected[2]
        hint = ", which looks channels-first: transpose to channels-last" if channels_first else ""
        if images.shape == expected:
            hint = ": add a batch axis, images[None]"
        raise ValueError(
            f"expected images of shape (batch, {', '.join(map(str, expected))}), found "
            f"{images.shape}{hint}; another size needs a model with image_size=(height, width)"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"expected normalised floating-point images, found {images.dtype}: scale to [0, 1], "
            "subtract the mean and divide by the standard deviation first"
        )
