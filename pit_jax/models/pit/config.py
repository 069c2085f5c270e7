"""Configuration of a pooling-based vision transformer."""

import dataclasses

from pit_jax.models.config import (
    TransformerConfig,
    TransformerStage,
    check_heads,
    check_positive,
)
from pit_jax.ops import pooling


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiTConfig(TransformerConfig):
    """One PiT architecture. Sequences have an entry per stage; one stage is a plain transformer.

    The paper's Table 1 gives these fields: the rows of `models.pit.family`.

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
    def stages(self) -> tuple[TransformerStage, ...]:
        """The blocks of every stage."""
        tokens = (self.class_tokens + height * width for height, width in self.grids)
        sizes = (tokens, self.widths, self.heads, self.depths)
        return tuple(map(TransformerStage, *sizes))

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block: rate * i / N over all N blocks, so the last stays below
        `rate`.

        As the official code; timm spaces to i / (N - 1) instead.
        """
        blocks = sum(self.depths)
        return tuple(self.drop_path_rate * block / blocks for block in range(blocks))
