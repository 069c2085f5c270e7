"""Rows of images to batches, put together by several threads into one array.

Grain hands out single elements at a cost of 0.2 to 0.5 ms of the interpreter each and stacks them
where they are asked for, in the training loop. Here its element is a whole batch: threads write
their rows straight to their places in it, and Grain keeps finished batches ready.
"""

import functools
import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np

from pit_jax.data.memory import Memory

# The interpreter's part of an image, 0.1 to 0.2 ms, is one thread's at a time: more threads than
# this, each of which makes 170 images a second with RandAugment, could not be fed.
MAX_THREADS = 64
# Rows that a thread takes at a time: enough not to notice the taking, few enough to share evenly.
MAX_ROWS_AT_A_TIME = 16

Batch = dict[str, np.ndarray]


class Field(NamedTuple):
    """Shape and type of an entry of a row. A smaller array goes to its upper left corner, and
    around it is whatever the memory held: to clear it would take longer than the array itself.
    """

    shape: tuple[int, ...]
    dtype: Any


def cores() -> int:
    """Cores that this process may use, which in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Batches(grain.MapDataset):
    """Consecutive rows as batches, the last incomplete one left out.

    Args:
      parent: rows, each a dictionary with the entries of `fields`.
      rows: of a batch.
      fields: entries of a row by name.
      threads: that make rows; 0 for one per core, at most 64.
      together: consecutive rows that one thread should make, for they share work.
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
            name: self._memory[name].array((self._rows, *field.shape), field.dtype)
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
        """For other processes, which start threads of their own."""
        own = ("_executor", "_memory")
        return {name: value for name, value in vars(self).items() if name not in own}

    @functools.cached_property
    def _memory(self) -> dict[str, Memory]:
        return {name: Memory() for name in self._fields}

    @functools.cached_property
    def _executor(self) -> Executor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="images")

    def _fill(self, batch: Batch, first: int, rows: range) -> None:
        """Makes those of the rows that are in the batch, which begins with row `first` of all."""
        for row in rows[: self._rows - rows.start]:
            for name, value in self._parent[first + row].items():
                put(batch[name][row : row + 1], np.asarray(value)[None])


def put(place: np.ndarray, value: np.ndarray) -> None:
    """Writes an array to the upper left corner of one that may be larger; the rest stays."""
    place[tuple(map(slice, value.shape))] = value
