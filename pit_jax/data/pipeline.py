"""Batches of rows with random access: each process reads its share of every global batch.

The random steps come before the rows are split over processes, so any number of processes sees the
same global batches. Nothing random is stored; the whole state of an input pipeline is its position.
"""

import dataclasses
from collections.abc import Mapping

import grain
import numpy as np

from pit_jax.data.batching import Batches, Field

Row = Mapping[str, np.ndarray]


class RepeatedViews(grain.MapDataset):
    """Every example `repeats` times in a row, and in an epoch only the first 1 / `repeats` of them.

    Args:
      parent: epochs of examples, each in its own order, without end.
      epoch: examples of an epoch, and so its views.
      repeats: views of an example.
    """

    def __init__(self, parent: grain.MapDataset, *, epoch: int, repeats: int) -> None:
        super().__init__(parent)
        self._epoch = epoch
        self._repeats = repeats

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int | slice) -> int | grain.MapDataset:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, view = divmod(index, self._epoch)
        return self._parent[epoch * self._epoch + view // self._repeats]


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
      threads: that decode; 0 for one per core, at most 64.
      prefetch: batches that are made while others are used, at least 1.
      process: this process's number, from 0.
      processes: how many there are.
    """

    threads: int = 0
    prefetch: int = 2
    process: int = 0
    processes: int = 1


# One process with the defaults.
ALONE = Reading()


def batched(
    dataset: grain.MapDataset,
    batch_size: int,
    fields: dict[str, Field],
    reading: Reading,
    *,
    first_batch: int = 0,
    views: int = 1,
) -> grain.IterDataset:
    """This process's rows of the batches of a dataset of rows, prefetched by threads.

    Args:
      dataset: all rows of all batches, in order.
      batch_size: rows of a global batch; a multiple of the number of processes.
      fields: shape and dtype of what a row holds, by name.
      reading: threads, prefetching, and this process's share.
      first_batch: the batch to start with.
      views: rows in a row that share what they are decoded from.
    """
    rows = ProcessRows(
        dataset,
        batch_size=batch_size,
        process=reading.process,
        processes=reading.processes,
        first_batch=first_batch,
    )
    batches = Batches(
        rows,
        rows=batch_size // reading.processes,
        fields=fields,
        threads=reading.threads,
        together=views,
    )
    # Two at a time, so that threads that have done their share of one go on with the next.
    ahead = max(reading.prefetch, 1)
    return batches.to_iter_dataset(
        grain.ReadOptions(num_threads=min(ahead, 2), prefetch_buffer_size=ahead)
    )
