"""From stored images to uint8 batches on the host.

    source -> seed, shuffle, repeat -> decode and crop -> this process's rows -> batch -> prefetch

Every image of the global batch, its crop included, is a function of (seed, epoch, index) only: the
random steps come before the rows are split over processes, so any number of processes sees the same
global batches. Nothing random is stored; the whole state of an input pipeline is its position.
"""

import dataclasses
import os
from typing import TypedDict

import grain
import numpy as np

from pit_jax.data import images
from pit_jax.data.sources import Example, Source

PADDING_LABEL = -1
# More threads than this contend for the interpreter lock without decoding any faster.
MAX_THREADS = 16


class Row(TypedDict):
    """One image (H, W, 3) uint8 and its label; batches stack these."""

    image: np.ndarray
    label: np.int32


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    """Decodes a random part of an image and resizes it: torchvision's RandomResizedCrop."""

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def random_map(self, element: Example, rng: np.random.Generator) -> Row:
        picture = images.decode_rgb(element["image"])
        box = images.random_crop_box(*picture.size, rng, scale=self.scale, ratio=self.ratio)
        pixels = images.crop_and_resize(picture, box, self.size)
        return {"image": pixels, "label": np.int32(element["label"])}


class ProcessRows(grain.MapDataset):
    """The rows of each global batch that one process feeds: contiguous, in global order.

    Args:
      parent: all rows of all batches.
      batch_size: rows of a global batch.
      process: this process's number, of `processes`.
      first_batch: the batch to start with.
    """

    def __init__(
        self,
        parent: grain.MapDataset,
        *,
        batch_size: int,
        process: int,
        processes: int,
        first_batch: int = 0,
    ) -> None:
        super().__init__(parent)
        self._batch_size = batch_size
        self._rows = batch_size // processes
        self._first = process * self._rows
        self._processes = processes
        self._first_batch = first_batch

    def __len__(self) -> int:
        return len(self._parent) // self._processes - self._first_batch * self._rows

    def __getitem__(self, index: int | slice) -> Row | grain.MapDataset:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        batch += self._first_batch
        return self._parent[batch * self._batch_size + self._first + row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a process reads its share of the batches.

    Attributes:
      threads: that decode; 0 for one per core, at most 16.
      prefetch: batches held ready on the host.
      process: this process's number, from 0.
      processes: how many there are.
    """

    threads: int = 0
    prefetch: int = 2
    process: int = 0
    processes: int = 1


def train_batches(
    source: Source,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    seed: int,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    first_batch: int = 0,
    reading: Reading = Reading(),
) -> grain.IterDataset:
    """Endless training batches: every example once an epoch, each epoch in an order of its own.

    Batches run across the end of an epoch. Starting at a later batch costs nothing and gives the
    same batches as an uninterrupted run.

    Args:
      source: the training split.
      image_size: height and width of the crops, in pixels.
      batch_size: images of the global batch; a multiple of the number of processes.
      seed: of the order and the crops.
      crop_scale: smallest and largest share of the image's area.
      crop_ratio: smallest and largest width over height.
      first_batch: the batch to start with.
      reading: threads, prefetching, and this process's share.
    """
    crop = RandomCrop(image_size, crop_scale, crop_ratio)
    examples = grain.MapDataset.source(source.examples).seed(seed).shuffle().repeat()
    return _batched(examples.random_map(crop), batch_size, reading, first_batch)


def eval_batches(
    source: Source,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    protocol: str,
    reading: Reading = Reading(),
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
    """
    total = -(-len(source) // batch_size) * batch_size

    def load(index: int) -> Row:
        if index >= len(source):
            empty = np.zeros((*image_size, 3), np.uint8)
            return {"image": empty, "label": np.int32(PADDING_LABEL)}
        element = source.examples[index]
        picture = images.decode_rgb(element["image"])
        pixels = images.evaluation_crop(picture, image_size, protocol)
        return {"image": pixels, "label": np.int32(element["label"])}

    return _batched(grain.MapDataset.range(total).map(load), batch_size, reading)


def _batched(
    dataset: grain.MapDataset, batch_size: int, reading: Reading, first_batch: int = 0
) -> grain.IterDataset:
    rows = ProcessRows(
        dataset,
        batch_size=batch_size,
        process=reading.process,
        processes=reading.processes,
        first_batch=first_batch,
    )
    local = batch_size // reading.processes
    options = grain.ReadOptions(
        num_threads=reading.threads or min(os.cpu_count() or 1, MAX_THREADS),
        prefetch_buffer_size=reading.prefetch * local,
    )
    return rows.to_iter_dataset(options).batch(local, drop_remainder=True)
