"""Batches of image rows, which several threads write into one array.

Grain hands out single elements, each at a cost of 0.2 to 0.5 ms of the interpreter, and stacks them
in the training loop, which asks for them. Here an element of Grain is a whole batch: threads write
their rows directly into it, and Grain keeps finished batches ready.
"""

import functools
import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np

from pit_jax.data.buffer_pool import BufferPool

# An image needs the interpreter, one thread at a time, for 0.1 to 0.2 ms. A thread makes 170 images
# a second with RandAugment: the interpreter could not serve more threads than this.
MAX_THREADS = 64
# Rows that a thread takes at a time: enough to hide the cost of taking, few enough to share evenly.
MAX_ROWS_AT_A_TIME = 16

Batch = dict[str, np.ndarray]


class Field(NamedTuple):
    """Shape and type of an entry of a row. A smaller array is copied to its upper left corner; the
    rest is uninitialised, since clearing it costs more than the copy.
    """

    shape: tuple[int, ...]
    dtype: Any


def cores() -> int:
    """Counts the cores that this process may use, in a container perhaps fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Batches(grain.MapDataset):
    """Batches of consecutive rows; an incomplete last batch is dropped.

    Args:
      parent: rows, each a dictionary with the entries of `fields`.
      rows: rows of a batch.
      fields: entries of a row by name.
      threads: number of threads that make rows; 0 for one per core, at most 64.
      together: number of consecutive rows that share work, for one thread to make.
    """

    def __init__(
        self,
        parent: grain.MapDataset,
        *,
        rows: int,
        fields: Mapping[str, Field],
        threads: int = 0,
        together: int = 1,
    ) -> None:
        super().__init__(parent)
        self._rows = rows
        self._fields = dict(fields)
        self._threads = threads or min(cores(), MAX_THREADS)
        share = min(MAX_ROWS_AT_A_TIME, rows // (4 * self._threads))
        self._step = max(share // together, 1) * together

    def __len__(self) -> int:
        return len(self._parent) // self._rows

    def __getitem__(self, index: int | slice) -> Batch | grain.MapDataset:
        if isinstance(index, slice):
            return self.slice(index)
        batch = {
            name: self._pools[name].array((self._rows, *field.shape), field.dtype)
            for name, field in self._fields.items()
        }
        first = index * self._rows
        parts = [
            self._executor.submit(self._fill, batch, first, range(start, start + self._step))
            for start in range(0, self._rows, self._step)
        ]
        for part in parts:
            part.result()
        return batch

    def __getstate__(self) -> dict[str, Any]:
        """Leaves threads and buffers out: another process has its own."""
        own = ("_executor", "_pools")
        return {name: value for name, value in vars(self).items() if name not in own}

    @functools.cached_property
    def _pools(self) -> dict[str, BufferPool]:
        return {name: BufferPool() for name in self._fields}

    @functools.cached_property
    def _executor(self) -> Executor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="images")

    def _fill(self, batch: Batch, first: int, rows: range) -> None:
        """Makes the given rows, as far as the batch has them; `first` is the batch's first row."""
        for row in rows[: self._rows - rows.start]:
            for name, value in self._parent[first + row].items():
                put(batch[name][row : row + 1], np.asarray(value)[None])


def put(place: np.ndarray, value: np.ndarray) -> None:
    """Copies an array to the upper left corner of one that may be larger; the rest stays."""
    place[tuple(map(slice, value.shape))] = value
