"""Shared fields and checks of the configurations: one frozen dataclass per family, checked when it
is made.

Every family has `image_size` (height, width), `in_channels`, `num_classes` (0: no head, pooled
features) and `drop_path_rate`; and tells the `strides` (image pixels per position), `widths`
(channels) and `grids` (height, width) of the maps that it gives as a backbone.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
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


def linear_rates(rate: float, blocks: int) -> tuple[float, ...]:
    """Stochastic depth of every block, from 0 to `rate`, both included."""
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
