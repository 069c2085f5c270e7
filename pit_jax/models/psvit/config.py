"""Configuration of a PSViT: token pooling between stages, attention maps shared inside them."""

import dataclasses
import re
from collections.abc import Sequence

from pit_jax.errors import suggestion
from pit_jax.models.config import (
    Grid,
    check_classes,
    check_heads,
    check_positive,
    check_rates,
    linear_rates,
)

# Between stages, both poolings halve the tokens along their axes.
STRIDE = 2

_CHOICES = {
    "pooling": ("1d", "2d"),
    "pool_norm": ("none", "batch", "layer"),
    "pool_activation": ("none", "relu", "gelu", "elu"),
    "pool_padding": ("zeros", "circular"),
    "class_pool": ("linear", "joint"),
    "head_norm": ("before", "after"),
}
# Options of the pooling of sequences; the paper's 2D pooling is one convolution and nothing else.
_ONLY_1D = ("pool_norm", "pool_activation", "pool_padding", "class_pool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PSViTConfig:
    """One PSViT (Chen et al. 2021), of the search space or beside it.

    Attributes:
      pooling: "1d" pools the sequence of patches in row-major order, beside a class token; "2d"
        pools the map, and has no class token.
      stage_widths: channels of every stage.
      heads: attention heads of every stage.
      cells: a digit per cell, stages separated by "|": 0 the identity, 1 a layer, 2 two layers with
        one attention map, k layers with one map. "221000|220000|211100" is the searched 1D model.
        Spaces and identities are dropped, so that equal networks have equal configurations.
      empty_stages: accept stages of identities alone. The search space has them; elsewhere they are
        a mistake.
      pool_kernel: side of the convolution between stages; odd in 1D.
      pool_norm: normalisation behind that convolution, 1D only.
      pool_activation: activation behind the normalisation, 1D only.
      pool_padding: of the 1D convolution.
      class_pool: "linear" gives the class token a linear layer of its own between stages; "joint"
        sends it through the convolution and a max-pooling of three with the patches.
      stage_positions: learned positions at the start of every stage, not of the first alone.
      head_norm: layer norm before or after the mean over the map, 2D only.

    Raises:
      ValueError: sequences of different lengths, cells that are none, a stage without a layer, a
        width that its heads do not divide, an image too small for its poolings, a rate outside
        [0, 1), a count below 1, an option of the other pooling.
    """

    pooling: str
    patch_size: int
    stage_widths: tuple[int, ...]
    heads: tuple[int, ...]
    cells: str
    empty_stages: bool = False
    pool_kernel: int = 3
    pool_norm: str = "none"
    pool_activation: str = "none"
    pool_padding: str = "zeros"
    class_pool: str = "linear"
    stage_positions: bool = True
    head_norm: str = "before"
    image_size: tuple[int, int] = (224, 224)  # height, width
    mlp_ratio: float = 4.0
    num_classes: int = 1000  # 0: no head, pooled features
    in_channels: int = 3
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        check_positive(self, "patch_size", "pool_kernel", "in_channels")
        check_rates(self, "drop_path_rate")
        check_classes(self.num_classes)
        object.__setattr__(self, "cells", _without_identities(self.cells))
        self._check_stages()
        self._check_pooling()
        for stage, tokens in enumerate(self.patches):
            if tokens < 1:
                raise ValueError(
                    f"stage {stage} has no patches left of an image_size {self.image_size} with "
                    f"patch_size {self.patch_size}"
                )

    def _check_stages(self) -> None:
        stages = len(self.groups)
        if not stages == len(self.stage_widths) == len(self.heads):
            raise ValueError(
                f"cells {self.cells!r} are of {stages} stages, separated by '|'; stage_widths have "
                f"{len(self.stage_widths)} and heads {len(self.heads)}"
            )
        for width, heads in zip(self.stage_widths, self.heads, strict=True):
            check_heads(width, heads)
        empty = [stage for stage, depth in enumerate(self.depths) if not depth]
        if empty and not self.empty_stages:
            raise ValueError(
                f"stage {empty[0]} of cells {self.cells!r} has no layer; empty_stages=True allows "
                "stages of identities alone"
            )

    def _check_pooling(self) -> None:
        others = _ONLY_1D if self.pooling == "2d" else ("head_norm",)
        for name in others:
            if getattr(self, name) != _CHOICES[name][0]:
                raise ValueError(f"{name}={getattr(self, name)!r} is no option of {self.pooling}")
        if self.pooling == "1d" and self.pool_kernel % 2 == 0:
            raise ValueError(f"the 1D pool_kernel must be odd, found {self.pool_kernel}")

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Layers that share one map, of every cell of every stage; 1 shares with none."""
        return tuple(tuple(int(cell) for cell in stage if cell != "0")
                     for stage in self.cells.split("|"))  # fmt: skip

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of every stage."""
        return tuple(map(sum, self.groups))

    @property
    def class_tokens(self) -> int:
        """1, or none with 2D pooling."""
        return 1 if self.pooling == "1d" else 0

    @property
    def patches(self) -> tuple[int, ...]:
        """Tokens of every stage without the class token."""
        if self.pooling == "2d":
            return tuple(height * width for height, width in self.grids)
        height, width = self._patch_grid
        # Both 1D poolings leave half of the patches, rounded down.
        return tuple(height * width // STRIDE**stage for stage in range(len(self.stage_widths)))

    @property
    def tokens(self) -> tuple[int, ...]:
        """N of every stage, class token included."""
        return tuple(self.class_tokens + patches for patches in self.patches)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Height and width of every map: of all stages in 2D; of the first in 1D, behind which a
        token is a run of patches and belongs to no grid. Pixels past the last whole patch are
        unseen.
        """
        grids = [self._patch_grid]
        if self.pooling == "2d":
            for _ in self.stage_widths[1:]:
                height, width = grids[-1]
                grids.append((self._pooled(height), self._pooled(width)))
        return tuple(grids)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every map."""
        return self.stage_widths[: len(self.grids)]

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per position of every map."""
        return tuple(self.patch_size * STRIDE**stage for stage in range(len(self.grids)))

    def position_shape(self, stage: int) -> tuple[int, ...]:
        """Shape of a stage's positions: a map (1, H, W, C), or with a class token (1, N, C)
        with an entry for it.
        """
        width = self.stage_widths[stage]
        if self.class_tokens:
            return (1, self.tokens[stage], width)
        return (1, *self.grids[stage], width)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every layer, from 0 to `drop_path_rate`, both included, as DeiT's
        code.
        """
        return linear_rates(self.drop_path_rate, sum(self.depths))

    @property
    def pool_margin(self) -> int:
        """Zeros on every side of the pooling's convolution."""
        return (self.pool_kernel - 1) // 2

    @property
    def _patch_grid(self) -> Grid:
        height, width = (size // self.patch_size for size in self.image_size)
        return height, width

    def _pooled(self, size: int) -> int:
        """Length of a map axis after the 2D pooling: rounded up with 3x3, down with 2x2."""
        return (size + 2 * self.pool_margin - self.pool_kernel) // STRIDE + 1


def shared_cells(depths: Sequence[int], group: int) -> str:
    """Cells of stages with so many layers, every `group` neighbours sharing a map; the last group
    of a stage may be shorter.

    Raises:
      ValueError: a group of more than nine layers, or longer than a stage.
    """
    if not 1 <= group <= 9:
        raise ValueError(f"1 to 9 layers can share an attention map, found {group}")
    for stage, depth in enumerate(depths):
        if group > depth:
            raise ValueError(f"{group} layers cannot share a map in stage {stage}: it has {depth}")
    return "|".join(
        str(group) * (depth // group) + (str(depth % group) if depth % group else "")
        for depth in depths
    )


def _without_identities(cells: object) -> str:
    """The cells as they are kept: no spaces, no identities but in an empty stage, "0"."""
    text = cells.replace(" ", "") if isinstance(cells, str) else ""
    if not re.fullmatch(r"[0-9|]+", text):
        raise ValueError(
            "cells must be a digit per cell, stages separated by '|', such as '220|210|111' "
            f"(0 identity, 1 a layer, 2 two layers with one attention map), found {cells!r}"
        )
    return "|".join(stage.replace("0", "") or "0" for stage in text.split("|"))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"unknown {name} {value!r}{suggestion(str(value), choices)}; expected one of "
            f"{', '.join(choices)}"
        )
