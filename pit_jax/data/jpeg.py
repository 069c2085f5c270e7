"""The faster way from JPEG bytes to a training image, in two halves.

The host decodes with libjpeg-turbo (through the optional package simplejpeg) and copies the random
crop into the corner of a canvas of fixed size; the device resizes it (pit_jax.augment.resize).
Decoding is bit-identical to PIL's; what simplejpeg does not read, and crops larger than the canvas,
go through PIL.
"""

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from pit_jax.data.images import Box, decode_rgb, resize
from pit_jax.data.memory import Memory

PILLOW = int(PIL.__version__.split(".")[0])
JPEG_MAGIC = b"\xff\xd8\xff"
# Not CMYK and YCCK, whose inks PIL mixes a level differently.
COLOURSPACES = ("YCbCr", "Gray", "RGB")
# What PIL refuses as a "decompression bomb"; it shall be the one to say so.
LARGEST_DECODED = 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)
# Bytes of a decoded image whose memory is kept for the next one: 2,000 x 1,500 pixels.
LARGEST_KEPT = 2000 * 1500 * 3


@functools.cache
def fast_decoder() -> Callable[[bytes], np.ndarray | None] | None:
    """A function from JPEG bytes to pixels, or to None where it cannot read them; None where
    simplejpeg is not installed.
    """
    try:
        import simplejpeg
    except ImportError:
        return None

    memory = Memory(LARGEST_KEPT)

    def decode(data: bytes) -> np.ndarray | None:
        try:
            height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
            if colourspace not in COLOURSPACES or height * width > LARGEST_DECODED:
                return None
            pixels = memory.array((height, width, 3), np.uint8)
            simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
            return pixels
        except ValueError:  # damaged, or a kind it does not know; PIL's word is the last
            return None

    return decode


def decode_pixels(data: bytes) -> np.ndarray:
    """An encoded image as uint8 (H, W, 3), pixel for pixel what `images.decode_rgb` gives.

    Raises:
      ValueError: the bytes are truncated, or not an image.
    """
    decode = fast_decoder()
    if decode is not None and data.startswith(JPEG_MAGIC):
        pixels = decode(data)
        if pixels is not None:
            return pixels
    return np.asarray(decode_rgb(data))


class Crop(NamedTuple):
    """A crop for the device to resize. Each in the corner of a canvas and stacked, they are the
    arguments of pit_jax.augment.resize.resize.

    Attributes:
      pixels: uint8 (height, width, 3); may share its memory with the image.
      rows_first: whether PIL would resize its height before its width.
    """

    pixels: np.ndarray
    rows_first: bool

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]


def cut(pixels: np.ndarray, box: Box, canvas_size: tuple[int, int], size: tuple[int, int]) -> Crop:
    """Cuts the crop out that the device is to resize to `size`.

    A crop larger than the canvas is resized here, by PIL; the device then finds it at `size`
    already, which its resizing leaves as it is.

    Args:
      pixels: uint8 (H, W, 3).
      box: left, top, right, bottom of the crop.
      canvas_size: height and width, not smaller than `size`.
    """
    left, top, right, bottom = box
    crop = pixels[top:bottom, left:right]
    if crop.shape[0] > canvas_size[0] or crop.shape[1] > canvas_size[1]:
        crop = np.asarray(resize(crop, size))
    return Crop(crop, resizes_rows_first((crop.shape[0], crop.shape[1]), size))


def check_canvas(canvas_size: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuses a canvas that what PIL has resized would not fit.

    Raises:
      ValueError: a canvas smaller than `size` in either direction.
    """
    if canvas_size[0] < size[0] or canvas_size[1] < size[1]:
        raise ValueError(
            f"expected a canvas of at least the image size {size}, found {canvas_size}: choose a "
            "larger config.data.canvas_size, or config.data.resize_on='host'"
        )


def resizes_rows_first(extent: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether this PIL resizes the height from `extent` to `size` before the width.

    The order shows where the filter overshoots black or white. Until Pillow 12 the width came
    first, always; since 13 the height does where it shrinks by more than twice what the width does.
    """
    shrinks = extent[0] - size[0]
    return PILLOW >= 13 and shrinks > max(0, 2 * (extent[1] - size[1]))
