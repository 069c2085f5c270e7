"""What defines an architecture, checked when it is made: one dataclass per family, the transformers
here, the convolutional networks in `convnet_config`.

Every family has `image_size` (height, width), `in_channels`, `num_classes` (0: no head, pooled
features) and `drop_path_rate`; and tells the `strides` (image pixels per position), `widths`
(channels) and `grids` (height, width) of the maps that it gives as a backbone.
"""

import dataclasses

from pit_jax.models import pooling


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TransformerConfig:
    """What transformers on patches share."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiTConfig(_TransformerConfig):
    """One PiT architecture. Sequences have an entry per stage; one stage is a plain transformer.

    The defaults that matter come from the paper's Table 1 rows in `zoo.py`; here only what all rows
    share.

    Raises:
      ValueError: sequences of different lengths, a width its heads do not divide, a width that is
        no multiple of the one before (the pooling is depthwise), an image smaller than a patch, a
        rate outside [0, 1).
    """

    stride: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.depths) == len(self.heads) >= 1:
            raise ValueError(
                "widths, depths and heads need one entry per stage, found "
                f"{len(self.widths)}, {len(self.depths)} and {len(self.heads)} entries"
            )
        super().__post_init__()
        check_positive(self, "stride")
        for width, heads in zip(self.widths, self.heads, strict=True):
            check_heads(width, heads)
        for narrow, wide in zip(self.widths, self.widths[1:], strict=False):
            if wide % narrow:
                raise ValueError(
                    f"pooling needs widths that are multiples of the last: {narrow}, then {wide}"
                )

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Map height and width of every stage; pixels past the last whole patch are unseen."""
        height, width = ((size - self.patch_size) // self.stride + 1 for size in self.image_size)
        grids = [(height, width)]
        for _ in self.widths[1:]:
            height, width = pooling.pooled_size(height), pooling.pooled_size(width)
            grids.append((height, width))
        return tuple(grids)

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per map position of every stage."""
        return tuple(self.stride * pooling.STRIDE**stage for stage in range(len(self.widths)))

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block: rate * i / N over all N blocks, so the last stays below
        `rate`.

        As the official code; timm spaces to i / (N - 1) instead.
        """
        blocks = sum(self.depths)
        return tuple(self.drop_path_rate * block / blocks for block in range(blocks))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(_TransformerConfig):
    """One plain vision transformer (Dosovitskiy et al. 2021), or DeiT (Touvron et al. 2021), which
    is the same network; `distilled` adds DeiT's distillation token and its head.

    Raises:
      ValueError: a width its heads do not divide, an image smaller than a patch, a rate outside
        [0, 1), a count below 1.
    """

    width: int
    heads: int
    depth: int = 12
    patch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "depth")
        check_heads(self.width, self.heads)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the only map."""
        return (self.width,)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Patches down and across; pixels past the last whole patch are unseen."""
        height, width = (size // self.patch_size for size in self.image_size)
        return ((height, width),)

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per patch."""
        return (self.patch_size,)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block, from 0 to `drop_path_rate`, both included, as DeiT's
        code.
        """
        return linear_rates(self.drop_path_rate, self.depth)


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
