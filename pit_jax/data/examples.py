"""What a data set looks like to the pipeline: encoded images with labels, by index."""

import dataclasses
from typing import Any, Protocol, TypedDict, runtime_checkable


class Example(TypedDict):
    """One stored image: the bytes of its file, and its class."""

    image: bytes
    label: int


@runtime_checkable
class RandomAccess(Protocol):
    """Examples by index, from any thread, in a fixed order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
      name: what the configuration calls it, with its split, for messages.
      examples: `Example`s by index.
      num_classes: labels are 0 to num_classes - 1.
    """

    name: str
    examples: RandomAccess
    num_classes: int

    def __len__(self) -> int:
        return len(self.examples)
