"""Decoding of examples by their index: once for all views of an image, damaged images included."""

import functools
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from pit_jax.data.jpeg import decode_pixels
from pit_jax.data.source import Source

# Decoded images kept for their other views; the threads of a batch work on fewer at a time.
KEPT = 32


class BadImageError(ValueError):
    """Raised for an example whose image cannot be decoded."""


class Loaded(NamedTuple):
    """A decoded example.

    Attributes:
      pixels: uint8 (H, W, 3); shared between views, so never written to.
      label: class of the example.
      replaced: index of the undecodable example that this one replaces, else -1.
    """

    pixels: np.ndarray
    label: int
    replaced: int


class Loader:
    """A function from the index of an example to its pixels, for any number of threads.

    The result depends on the index alone; caching between views only saves time.

    Args:
      source: the split.
      uses: consecutive requests for each index; the image is dropped after the last one.
      max_skips: undecodable examples in a row that the next one replaces; 0 raises at the first.
    """

    def __init__(self, source: Source, *, uses: int = 1, max_skips: int = 0) -> None:
        self._source = source
        self._uses = uses
        self._max_skips = max_skips
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, tuple[Future[Loaded], int]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves the cache out: another process decodes for itself."""
        make = functools.partial(Loader, uses=self._uses, max_skips=self._max_skips)
        return make, (self._source,)

    def __call__(self, index: int) -> Loaded:
        """Returns the decoded example.

        Raises:
          BadImageError: it cannot be decoded; the message names it.
        """
        if self._uses == 1:
            return self._load(index)
        future, first = self._claim(index)
        if first:
            try:
                future.set_result(self._load(index))
            # Other threads wait for the same image: they need any exception, whatever it is.
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _claim(self, index: int) -> tuple[Future[Loaded], bool]:
        """Returns the image's future, and whether the caller has to fulfil it."""
        with self._lock:
            future, left = self._kept.pop(index, (None, self._uses))
            first = future is None
            if future is None:
                future = Future()
            if left > 1:
                self._kept[index] = (future, left - 1)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return future, first

    def _load(self, index: int) -> Loaded:
        skipped = 0
        while True:
            try:
                pixels, label = self._decode((index + skipped) % len(self._source))
                return Loaded(pixels, label, index if skipped else -1)
            except BadImageError:
                if skipped == self._max_skips:
                    raise
                skipped += 1

    def _decode(self, index: int) -> tuple[np.ndarray, int]:
        name = f"{self._source.name}, example {index}"
        try:
            example = self._source.examples[index]
            file_name = example.get("file_name")
            if file_name:
                text = file_name.decode() if isinstance(file_name, bytes) else file_name
                name = f"{name} ({text})"
            return decode_pixels(example["image"]), int(example["label"])
        except ValueError as error:
            raise BadImageError(f"{name}: {error}") from error
