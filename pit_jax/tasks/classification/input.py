"""Turns the images and labels of a split into uint8 batches on the host.

    source -> seed, shuffle, repeat -> views -> decode, crop, flip, RandAugment -> this process's
    rows -> batches -> prefetch

Every image of the global batch, its crop included, depends only on (seed, epoch, index).
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
    """One image, uint8 (H, W, 3), and its label; batches stack these."""

    image: np.ndarray
    label: np.int32


class TrainRow(Row):
    """A row for training.

    `replaced` is the index of the example that could not be decoded and that this row replaces, or
    -1. If the device resizes, `image` is a canvas with the crop in its corner, `extent` the crop's
    height and width, and `rows_first` as in pit_jax.augment.resize.
    """

    replaced: np.int32
    extent: NotRequired[tuple[int, int]]
    rows_first: NotRequired[bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """Parameters of the random views that the host draws from an image.

    Attributes:
      size: height and width of a view, in pixels.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width over height.
      flip_probability: probability of a horizontal flip; 0 if the device flips.
      policy: RandAugment; None if the device does it, or if there is none.
      canvas: height and width of the arrays in whose corner a crop goes to the device, which
        resizes it; None if the host resizes. With a canvas, flip and RandAugment are the device's.
      repeats: number of consecutive views of an image. An epoch shows this many times fewer images,
        as in DeiT's repeated augmentation.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0
    policy: Policy | None = None
    canvas: tuple[int, int] | None = None
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class RandomView(grain.transforms.RandomMap):
    """Maps an example's index to a random view of it: crop, flip, RandAugment, in timm's order."""

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
    """Makes endless training batches of `TrainRow`s, each epoch in another order.

    An epoch has every example once; with repeats, 1 / repeats of the examples, that often each.
    Batches run across the end of an epoch. Starting at a later batch costs nothing and gives the
    same batches as an uninterrupted run. Iterating raises BadImageError, which names the example.

    Args:
      source: the training split.
      views: parameters of the views.
      batch_size: images of the global batch; a multiple of the number of processes.
      seed: seed of the order and the views.
      first_batch: index of the first batch.
      bad_images: "error", or "skip" to replace an example that does not decode by the next one.
      max_bad_images: largest number of examples skipped in a row.
      reading: threads, prefetching, and this process's share.
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
    """Makes the batches of one pass over a split, in order, every example exactly once.

    The last batch is filled with black images of label `PADDING_LABEL`, which must not be counted:
    all batches have one shape, and all processes the same number of them. Iterating raises
    BadImageError: an accuracy must not leave out an example.

    Args:
      source: the held-out split.
      image_size: height and width of the crops, in pixels.
      batch_size: images of the global batch; a multiple of the number of processes.
      protocol: name of the crop, from `images.PROTOCOLS`.
      reading: threads, prefetching, and this process's share.
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
