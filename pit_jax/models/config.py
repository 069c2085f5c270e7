"""Shared fields and checks of the configurations: one frozen dataclass a family, checked when it is
made.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

Grid = tuple[int, int]  # height, width


class ModelConfig(Protocol):
    """The fields and properties that every family's configuration has, a frozen dataclass.

    Attributes:
      image_size: height and width in pixels.
      in_channels: channels of the images.
      num_classes: classes of the head; 0 for a network without one, which gives pooled features.
      drop_path_rate: rate of stochastic depth in training. Fields named "*_rate" belong to a
        training, not to its weights: cards leave them out.
      strides: image pixels per position of every map that the network gives as a backbone.
      widths: channels of the maps.
      grids: height and width of the maps.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int: ...
    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def drop_path_rate(self) -> float: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def grids(self) -> tuple[Grid, ...]: ...


class TransformerStage(NamedTuple):
    """Consecutive blocks of one shape; `tokens` counts a map's positions and the class tokens."""

    tokens: int
    width: int
    heads: int
    depth: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(abc.ABC):
    """Fields shared by the transformers on patches."""

    patch_size: int
    image_size: tuple[int, int] = (224, 224)  # height, width
    mlp_ratio: float = 4.0
    distilled: bool = False
    num_classes: int = 1000  # 0: no head, pooled features
    in_channels: int = 3
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "patch_size", "in_channels")
        if min(self.image_size) < self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )
        check_rates(self, "dropout_rate", "attention_dropout_rate", "drop_path_rate")
        check_classes(self.num_classes)

    @property
    def class_tokens(self) -> int:
        """T: the class token, and the distillation token of a distilled model."""
        return 2 if self.distilled else 1

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[TransformerStage, ...]:
        """The blocks, in their order."""


def distilled(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The same transformers with a distillation token, under the names "NAME_distilled"."""
    return {
        f"{name}_distilled": dataclasses.replace(row, distilled=True) for name, row in rows.items()
    }


def linear_rates(rate: float, blocks: int) -> tuple[float, ...]:
    """Stochastic depth of every block, in equal steps from 0 to `rate`, both included."""
    return tuple(rate * block / max(blocks - 1, 1) for block in range(blocks))


def check_positive(config: object, *names: str) -> None:
    """Refuses a configuration in which one of these counts is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, found {getattr(config, name)}")


def check_heads(width: int, heads: int) -> None:
    """Refuses a width that its heads do not divide."""
    if heads < 1 or width % heads:
        raise ValueError(f"a width of {width} does not divide into {heads} heads")


def check_rates(config: object, *names: str) -> None:
    """Refuses a configuration in which one of these rates is outside [0, 1)."""
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ValueError(f"{name} must be in [0, 1), found {getattr(config, name)}")


def check_classes(num_classes: int) -> None:
    """Refuses a negative number of classes."""
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, found {num_classes}")
