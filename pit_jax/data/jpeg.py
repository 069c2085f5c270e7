"""The host's half of the faster way from JPEG bytes to a training image.

The host decodes with libjpeg-turbo (through the optional package simplejpeg) and copies the random
crop into the corner of a canvas of fixed size; the device resizes it (pit_jax.augment.resize).
Decoding is bit-identical to PIL's. PIL decodes the files that simplejpeg cannot read, and resizes
the crops that are larger than the canvas.
"""

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from pit_jax.data.buffer_pool import BufferPool
from pit_jax.data.images import Box, decode_rgb, resize

PILLOW = int(PIL.__version__.split(".")[0])
JPEG_MAGIC = b"\xff\xd8\xff"
# CMYK and YCCK are left to PIL, whose conversion differs by a level.
COLOURSPACES = ("YCbCr", "Gray", "RGB")
# Pixels from which on PIL refuses an image as a "decompression bomb"; PIL then raises the error.
LARGEST_DECODED = 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)
# Bytes of the largest decoded image whose memory is reused: 2,000 x 1,500 pixels.
LARGEST_KEPT = 2000 * 1500 * 3


@functools.cache
def fast_decoder() -> Callable[[bytes], np.ndarray | None] | None:
    """Returns a decoder from JPEG bytes to uint8 (H, W, 3), or to None for bytes it cannot read;
    None if simplejpeg is not installed.
    """
    try:
        import simplejpeg
    except ImportError:
        return None

    pool = BufferPool(LARGEST_KEPT)

    def decode(data: bytes) -> np.ndarray | None:
        try:
            height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
            if colourspace not in COLOURSPACES or height * width > LARGEST_DECODED:
                return None
            pixels = pool.array((height, width, 3), np.uint8)
            simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
            return pixels
        except ValueError:  # damaged, or of a kind it does not know: PIL decides
            return None

    return decode


def decode_pixels(data: bytes) -> np.ndarray:
    """Decodes an image to uint8 (H, W, 3), with the same pixels as `images.decode_rgb`.

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
    """A crop for the device to resize. Crops in the corners of canvases, stacked, are the arguments
    of pit_jax.augment.resize.resize.

    Attributes:
      pixels: uint8 (height, width, 3); may share its memory with the image.
      rows_first: whether PIL would resize the height before the width.
    """

    pixels: np.ndarray
    rows_first: bool

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return self.pixels.shape[0], self.pixels.shape[1]


def cut(pixels: np.ndarray, box: Box, canvas_size: tuple[int, int], size: tuple[int, int]) -> Crop:
    """Cuts out the crop that the device resizes to `size`.

    PIL resizes a crop that is larger than the canvas here; the device leaves a crop of `size`
    unchanged.

    Args:
      pixels: uint8 (H, W, 3).
      box: left, top, right, bottom of the crop.
      canvas_size: height and width of the canvas, not smaller than `size`.
      size: height and width of the resized image.
    """
    left, top, right, bottom = box
    crop = pixels[top:bottom, left:right]
    if crop.shape[0] > canvas_size[0] or crop.shape[1] > canvas_size[1]:
        crop = np.asarray(resize(crop, size))
    return Crop(crop, resizes_rows_first((crop.shape[0], crop.shape[1]), size))


def check_canvas(canvas_size: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuses a canvas that is too small for the crops that PIL resizes.

    Raises:
      ValueError: a canvas smaller than `size` in either direction.
    """
    if canvas_size[0] < size[0] or canvas_size[1] < size[1]:
        raise ValueError(
            f"expected a canvas of at least the image size {size}, found {canvas_size}: choose a "
            "larger config.data.canvas_size, or config.data.resize_on='host'"
        )


def resizes_rows_first(extent: tuple[int, int], size: tuple[int, int]) -> bool:
    """Returns whether this PIL resizes the height from `extent` to `size` before the width.

    The order is visible where the filter overshoots black or white. Up to Pillow 12 the width
    always comes first; from 13 on the height does if it shrinks by more than twice as much.
    """
    shrinks = extent[0] - size[0]
    return PILLOW >= 13 and shrinks > max(0, 2 * (extent[1] - size[1]))
