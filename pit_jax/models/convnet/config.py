"""Configurations of the convolutional baselines and of the teacher, checked when made."""

import dataclasses
from collections.abc import Sequence

from pit_jax.models.config import check_classes, check_positive, check_rates, linear_rates

# Side of the patches of ResNet without pooling, ViT's.
RESNET_PATCH = 16
# Output channels of a ResNet bottleneck per inner channel.
RESNET_EXPANSION = 4
# Smallest image side in pixels: one patch of a ResNet without pooling, and the same for the others.
SMALLEST_IMAGE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """One bottleneck ResNet, stride on the 3x3 convolution; or the same blocks without pooling.

    Without `pooling` the network is isotropic, as the ablation of PiT's Figure 2 asks for: a stem
    that outputs ViT's grid (14x14 for images of 224), then the same number of blocks at that grid
    and at one width. The paper says no more. We choose a stem of one 16x16 convolution of stride
    16, the counterpart of ViT's patch embedding, with batch normalisation and ReLU like every
    convolution of the network. It outputs 4 * `base_width` channels, so that all shortcuts are
    identities.

    Attributes:
      base_width: inner channels of the first stage's bottlenecks; they output four times as many.
      depths: blocks of every stage; with pooling each stage after the first halves the grid and
        doubles the channels.

    Raises:
      ValueError: an empty stage, a count below 1, a rate outside [0, 1).
    """

    base_width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    pooling: bool = True
    image_size: tuple[int, int] = (224, 224)  # height, width
    num_classes: int = 1000  # 0: no head, pooled features
    in_channels: int = 3
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "base_width", "in_channels")
        _check_depths(self.depths)
        _check_image_size(self.image_size)
        check_rates(self, "drop_path_rate")
        check_classes(self.num_classes)

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels of every stage's 3x3 convolutions."""
        return tuple(
            self.base_width * 2**stage if self.pooling else self.base_width
            for stage in range(len(self.depths))
        )

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of every stage's output."""
        return tuple(RESNET_EXPANSION * width for width in self.inner_widths)

    @property
    def stage_grids(self) -> tuple[tuple[int, int], ...]:
        """Map height and width of every stage."""
        if not self.pooling:
            height, width = (size // RESNET_PATCH for size in self.image_size)
            return ((height, width),) * len(self.depths)
        return _halved(self.image_size, start=2, count=len(self.depths))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every map: those of the stages, or of the last where all have one grid."""
        return self.stage_widths if self.pooling else self.stage_widths[-1:]

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every map."""
        return self.stage_grids if self.pooling else self.stage_grids[-1:]

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per position of every map."""
        if not self.pooling:
            return (RESNET_PATCH,)
        return tuple(4 * 2**stage for stage in range(len(self.depths)))

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block, from 0 to `drop_path_rate`, both included."""
        return linear_rates(self.drop_path_rate, sum(self.depths))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegNetConfig:
    """One RegNetY (Radosavovic et al. 2020): bottlenecks of grouped convolutions that are as wide
    inside as outside, with squeeze-and-excitation.

    Attributes:
      widths: channels of every stage; each halves the grid.
      depths: blocks of every stage.
      group_width: channels of one group of the 3x3 convolutions.
      se_ratio: channels of the squeezed vector, as a fraction of the block's input channels.
      stem_width: channels after the first convolution, which halves the grid as well.

    Raises:
      ValueError: sequences of different lengths, a width the groups do not divide, an empty stage,
        a count below 1, a rate outside [0, 1).
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    group_width: int
    se_ratio: float = 0.25
    stem_width: int = 32
    image_size: tuple[int, int] = (224, 224)  # height, width
    num_classes: int = 1000  # 0: no head, pooled features
    in_channels: int = 3
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths):
            raise ValueError(
                "widths and depths need one entry per stage, found "
                f"{len(self.widths)} and {len(self.depths)} entries"
            )
        check_positive(self, "group_width", "stem_width", "in_channels")
        _check_depths(self.depths)
        for width in self.widths:
            if width < 1 or width % self.group_width:
                raise ValueError(
                    f"a width of {width} does not divide into groups of {self.group_width}"
                )
        if not 0.0 < self.se_ratio <= 1.0:
            raise ValueError(f"se_ratio must be in (0, 1], found {self.se_ratio}")
        _check_image_size(self.image_size)
        check_rates(self, "drop_path_rate")
        check_classes(self.num_classes)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Map height and width of every stage."""
        return _halved(self.image_size, start=2, count=len(self.depths))

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per map position of every stage."""
        return tuple(4 * 2**stage for stage in range(len(self.depths)))

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block, from 0 to `drop_path_rate`, both included."""
        return linear_rates(self.drop_path_rate, sum(self.depths))

    def squeezed_width(self, in_width: int) -> int:
        """Channels of the squeezed vector of a block with `in_width` input channels."""
        return round(in_width * self.se_ratio)


def _halved(size: tuple[int, int], *, start: int, count: int) -> tuple[tuple[int, int], ...]:
    """Grids after `start`, `start` + 1, ... halvings, each rounding up."""
    height, width = size
    return tuple(
        (-(-height // 2**times), -(-width // 2**times)) for times in range(start, start + count)
    )


def _check_depths(depths: Sequence[int]) -> None:
    if not depths or min(depths) < 1:
        raise ValueError(f"depths need at least one block per stage, found {tuple(depths)}")


def _check_image_size(image_size: tuple[int, int]) -> None:
    if min(image_size) < SMALLEST_IMAGE:
        raise ValueError(
            f"image_size must be at least {SMALLEST_IMAGE} on both sides, found {image_size}"
        )
