"""Images and labels of a split to uint8 batches on the host.

    source -> seed, shuffle, repeat -> views -> decode, crop, flip, RandAugment -> this process's
    rows -> batches -> prefetch

Every image of the global batch, its crop included, is a function of (seed, epoch, index) only.
"""

import dataclasses
from typing import NotRequired, TypedDict

import grain
import numpy as np
from PIL import Image

from pit_jax.augment.policy import Policy
from pit_jax.data import images, jpeg
from pit_jax.data.batching import Field
from pit_jax.data.loading import Loader
from pit_jax.data.pipeline import ALONE, Reading, RepeatedViews, batched
from pit_jax.data.randaugment_host import rand_augment
from pit_jax.data.source import Source

PADDING_LABEL = -1


class Row(TypedDict):
    """One image (H, W, 3) uint8 and its label; batches stack these."""

    image: np.ndarray
    label: np.int32


class TrainRow(Row):
    """A row for training; `replaced` is the index of the example that could not be decoded and
    that this one stands for, -1 where there is none. Where the device resizes, `image` is the crop,
    `extent` its height and width, and `rows_first` as in pit_jax.augment.resize.
    """

    replaced: np.int32
    extent: NotRequired[tuple[int, int]]
    rows_first: NotRequired[bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """How training views are drawn from an image, on the host.

    Attributes:
      size: height and width of a view, in pixels.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width over height.
      flip_probability: of a horizontal flip; 0 where the device flips.
      policy: RandAugment; None where the device does it, or nobody.
      canvas: height and width of the arrays in whose corners crops go to the device, which resizes
        them; None where the host does. Then there is no flip and no RandAugment on the host.
      repeats: views of an image that follow one another; an epoch then shows so many times fewer
        images, as DeiT's repeated augmentation does.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0
    policy: Policy | None = None
    canvas: tuple[int, int] | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.canvas is None:
            return
        jpeg.check_canvas(self.canvas, self.size)
        if self.policy is not None or self.flip_probability > 0:
            raise ValueError(
                "expected flip and RandAugment on the device where it resizes, found them on the "
                "host: they come after the resizing"
            )


@dataclasses.dataclass(frozen=True)
class RandomView(grain.transforms.RandomMap):
    """An example's index to a random view of it: crop, flip, RandAugment, in timm's order."""

    loader: Loader
    views: Views

    def random_map(self, element: int, rng: np.random.Generator) -> TrainRow:
        loaded = self.loader(element)
        height, width, _ = loaded.pixels.shape
        views = self.views
        box = images.random_crop_box(width, height, rng, scale=views.scale, ratio=views.ratio)
        label, replaced = np.int32(loaded.label), np.int32(loaded.replaced)
        if views.canvas is not None:
            crop = jpeg.cut(loaded.pixels, box, views.canvas, views.size)
            return {
                "image": crop.pixels,
                "extent": crop.extent,
                "rows_first": crop.rows_first,
                "label": label,
                "replaced": replaced,
            }
        left, top, right, bottom = box
        picture = images.resize(loaded.pixels[top:bottom, left:right], views.size)
        if views.flip_probability > 0 and rng.random() < views.flip_probability:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if views.policy is not None:
            picture = rand_augment(picture, views.policy, rng)
        return {"image": np.asarray(picture), "label": label, "replaced": replaced}


def train_batches(
    source: Source,
    views: Views,
    *,
    batch_size: int,
    seed: int,
    first_batch: int = 0,
    bad_images: str = "error",
    max_bad_images: int = 100,
    reading: Reading = ALONE,
) -> grain.IterDataset:
    """Endless training batches of `TrainRow`s: every example once an epoch, each epoch in an order
    of its own; with repeats, 1 / repeats of the examples as often.

    Batches run across the end of an epoch. Starting at a later batch costs nothing and gives the
    same batches as an uninterrupted run.

    Args:
      source: the training split.
      views: what is drawn from an image.
      batch_size: images of the global batch; a multiple of the number of processes.
      seed: of the order and the views.
      first_batch: the batch to start with.
      bad_images: "error", or "skip" to take the next example's image and label instead of one that
        does not decode.
      max_bad_images: as many in a row are skipped.
      reading: threads, prefetching, and this process's share.

    Iterating raises BadImageError, which names the example.
    """
    tries = max_bad_images if bad_images == "skip" else 0
    loader = Loader(source, uses=views.repeats, max_skips=tries)
    examples = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    if views.repeats > 1:
        examples = RepeatedViews(examples, epoch=len(source), repeats=views.repeats)
    drawn = examples.random_map(RandomView(loader, views))
    fields = _fields(views.canvas or views.size) | {"replaced": Field((), np.int32)}
    if views.canvas is not None:
        fields |= {"extent": Field((2,), np.int32), "rows_first": Field((), np.bool_)}
    return batched(drawn, batch_size, fields, reading, first_batch=first_batch, views=views.repeats)


def eval_batches(
    source: Source,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    protocol: str,
    reading: Reading = ALONE,
) -> grain.IterDataset:
    """One pass over a split, in order, every example exactly once.

    The last batch is filled with black images of label `PADDING_LABEL`, so that all batches have
    one shape and all processes the same number of them; they must not be counted.

    Args:
      source: the held-out split.
      image_size: height and width of the crops, in pixels.
      batch_size: images of the global batch; a multiple of the number of processes.
      protocol: of `images.PROTOCOLS`.
      reading: threads, prefetching, and this process's share.

    Iterating raises BadImageError: an accuracy must not leave anything out.
    """
    total = -(-len(source) // batch_size) * batch_size
    loader = Loader(source)

    def load(index: int) -> Row:
        if index >= len(source):
            empty = np.zeros((*image_size, 3), np.uint8)
            return {"image": empty, "label": np.int32(PADDING_LABEL)}
        loaded = loader(index)
        pixels = images.evaluation_crop(Image.fromarray(loaded.pixels), image_size, protocol)
        return {"image": pixels, "label": np.int32(loaded.label)}

    rows = grain.MapDataset.range(total).map(load)
    return batched(rows, batch_size, _fields(image_size), reading)


def _fields(size: tuple[int, int]) -> dict[str, Field]:
    return {"image": Field((*size, 3), np.uint8), "label": Field((), np.int32)}
