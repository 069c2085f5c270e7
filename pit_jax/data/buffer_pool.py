"""A pool of reusable buffers.

The operating system clears every page it hands out and takes large blocks back as soon as they are
free: an image or a batch in fresh memory costs as much again as copying it.
"""

import math
import weakref
from collections import deque
from typing import Any

import numpy as np


class BufferPool:
    """Arrays whose memory returns to the pool once an array and all its views are gone.

    A free block that is too small for the next array is dropped: after a while all blocks are as
    large as the largest arrays. A pool may be used from any number of threads.

    Args:
      largest: bytes; the memory of larger arrays is not kept.
    """

    def __init__(self, largest: float = math.inf) -> None:
        self._largest = largest
        self._free: deque[bytearray] = deque()

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an uninitialised array that shares its memory with no other."""
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        try:
            block = self._free.pop()
        except IndexError:
            block = bytearray(size)
        if len(block) < size:
            block = bytearray(size)
        # The first array over the block, which every view of it keeps alive.
        first = np.frombuffer(block, dtype, count)
        if len(block) <= self._largest:
            weakref.finalize(first, self._free.append, block).atexit = False
        return first.reshape(shape)
