"""A split of a data set as the input pipeline sees it: encoded images with labels, by index."""

import dataclasses
from typing import Any, Protocol, TypedDict, runtime_checkable


class Example(TypedDict):
    """One stored image: the bytes of its file, and its class."""

    image: bytes
    label: int


@runtime_checkable
class RandomAccess(Protocol):
    """Examples by index, in a fixed order, safe to read from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
      name: data set and split, as messages name them.
      examples: `Example`s by index. An entry `file_name`, where an example has one, appears in
        messages about it.
      num_classes: labels are 0 to num_classes - 1.
      class_names: names in the order of the labels; None where the data set has none.
      absent: names of the classes without an example in this split, where the source knows them.

    Raises:
      ValueError: the number of names is not `num_classes`.
    """

    name: str
    examples: RandomAccess
    num_classes: int
    class_names: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name} has {self.num_classes} classes and {len(self.class_names)} names of "
                "classes: the source must give one name per class, or None"
            )

    def __len__(self) -> int:
        return len(self.examples)
