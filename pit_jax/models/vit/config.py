"""Configuration of a plain vision transformer."""

import dataclasses

from pit_jax.models.config import (
    TransformerConfig,
    TransformerStage,
    check_heads,
    check_positive,
    linear_rates,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
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
    def stages(self) -> tuple[TransformerStage, ...]:
        """The blocks, all in one stage."""
        height, width = self.grids[0]
        tokens = self.class_tokens + height * width
        return (TransformerStage(tokens, self.width, self.heads, self.depth),)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of every block, from 0 to `drop_path_rate`, both included, as DeiT's
        code.
        """
        return linear_rates(self.drop_path_rate, self.depth)
