"""Arrays in memory that is used again.

The system clears every page it gives out and takes large blocks back as soon as they are free: an
image or a batch in fresh memory costs as much again as copying it.
"""

import math
import weakref
from collections import deque
from typing import Any

import numpy as np


class Memory:
    """Arrays whose memory is used again once an array and all its views are gone.

    A block too small for what is asked for is given up, so that after a while all are as large as
    the largest arrays. Any number of threads may use one.

    Args:
      largest: bytes; the memory of larger arrays goes back to the system.
    """

    def __init__(self, largest: float = math.inf) -> None:
        self._largest = largest
        self._free: deque[bytearray] = deque()

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array that is nobody else's. Its contents are whatever they were."""
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        try:
            block = self._free.pop()
        except IndexError:
            block = bytearray(size)
        if len(block) < size:
            block = bytearray(size)
        # Views of an array keep alive the first one, which is not made from an array.
        first = np.frombuffer(block, dtype, count)
        if len(block) <= self._largest:
            weakref.finalize(first, self._free.append, block).atexit = False
        return first.reshape(shape)
