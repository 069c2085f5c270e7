"""Bytes to pixels on the host: decoding, the random training crop, the evaluation crops.

PIL's bicubic filter with antialiasing is the reference everywhere: the published accuracies were
measured with it. Sizes are (height, width), boxes (left, top, right, bottom), both in pixels.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pit_jax.errors import suggestion

# Means and standard deviations of ImageNet's RGB channels on the scale [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_TRIES = 10
# Evaluation protocol -> length to which a side of the image is scaled before the centre of a given
# length is cut out; None: nothing is cut.
PROTOCOLS: dict[str, Callable[[int], int] | None] = {
    "deit": lambda side: int(256 / 224 * side),
    "timm": lambda side: math.floor(side / 0.9),
    "resize": None,
}

Box = tuple[int, int, int, int]


def decode_rgb(data: bytes) -> Image.Image:
    """Decodes an image (JPEG, PNG, GIF, ...) to 8-bit RGB, whatever the name of its file.

    Greyscale, palette, CMYK (also Adobe's inverted kind) and 16-bit images become RGB as by PIL's
    `convert("RGB")`; transparency is dropped; the EXIF orientation is ignored, as torchvision
    does.

    Raises:
      ValueError: the bytes are truncated, or not an image.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    # PIL's readers raise whatever a broken file provokes: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(
            f"expected the bytes of an image, found {len(data)} bytes that do not decode "
            f"({type(error).__name__}: {error}); replace or remove this example"
        ) from error


def random_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a training crop as torchvision's RandomResizedCrop.

    The area is uniform over `scale` (fractions of the image), the aspect ratio (width / height)
    log-uniform over `ratio`. Boxes that do not fit are redrawn; after ten tries the crop is the
    largest centred box within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return left, top, left + crop_width, top + crop_height

    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def crop_and_resize(image: Image.Image, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Crops the box of an RGB image and resizes it to `size`: uint8 (H, W, 3).

    Unlike in PIL's `resize(box=)`, pixels outside the box do not enter the filter.
    """
    return np.asarray(_resize(image.crop(box), size))


def resize(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resizes pixels, uint8 (H, W, 3), to a picture of `size`."""
    return _resize(Image.fromarray(pixels), size)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.BICUBIC)


def check_protocol(protocol: str) -> None:
    """Refuses an unknown evaluation protocol, before any image is read.

    Raises:
      ValueError: no such protocol; the message has the closest name.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown evaluation protocol {protocol!r}{suggestion(protocol, PROTOCOLS)}; there are "
            f"{', '.join(PROTOCOLS)}"
        )


def evaluation_crop(image: Image.Image, size: tuple[int, int], protocol: str) -> np.ndarray:
    """Crops the part of an RGB image that a published accuracy is measured on: uint8 (H, W, 3).

    If `size` is not square, the image is scaled, keeping its aspect ratio, until both sides reach
    that multiple of the size, as timm's evaluation transform does.

    Args:
      image: RGB.
      size: of the crop.
      protocol: one of `PROTOCOLS`. "deit" resizes the shorter side to 256 / 224 of the size and
        cuts out the centre (224: 256, 384: 438); "timm" does so with 1 / 0.9 (224: 248); "resize"
        keeps the whole image at any aspect ratio, which suits tiny images such as digits.
    """
    scaled = PROTOCOLS[protocol]
    if scaled is None:
        return crop_and_resize(image, (0, 0, *image.size), size)
    target = scaled(size[0]), scaled(size[1])
    width, height = _covering_size(image.size, target, size[0] == size[1])
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    # Halves are rounded to even, as by Python in torchvision, to cut at the same place.
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return np.asarray(resized.crop((left, top, left + size[1], top + size[0])))


def _covering_size(
    image: tuple[int, int], target: tuple[int, int], square: bool
) -> tuple[int, int]:
    """Scales `image` = (width, height) to cover `target` = (height, width); (width, height)."""
    width, height = image
    if square:
        side = target[0]
        # torchvision truncates the longer side; timm rounds it if the target is not square.
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side
    shrink = min(height / target[0], width / target[1])
    return round(width / shrink), round(height / shrink)


def preprocess(
    image: Image.Image | str | Path | bytes,
    image_size: int | tuple[int, int] = 224,
    protocol: str = "timm",
) -> np.ndarray:
    """Returns one image as models expect it: float32 (1, H, W, 3), normalised by ImageNet's
    channel means and standard deviations.

    Args:
      image: a PIL image of any mode, a path, or the bytes of an encoded image.
      image_size: side, or (height, width), of the model's input.
      protocol: as in `evaluation_crop`.

    Raises:
      ValueError: not an image, or an unknown protocol.
      FileNotFoundError: no file at that path.
    """
    check_protocol(protocol)
    if isinstance(image, str | Path):
        path = Path(image)
        try:
            rgb = decode_rgb(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    else:
        rgb = decode_rgb(image) if isinstance(image, bytes) else image.convert("RGB")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    pixels = evaluation_crop(rgb, size, protocol).astype(np.float32) / np.float32(255)
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return ((pixels - mean) / std)[np.newaxis]
