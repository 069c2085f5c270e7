"""ViT and DeiT, one network under two names: sizes, cost, torch names, and timm's network."""

from typing import Any

from pit_jax.models import cost
from pit_jax.models.config import distilled
from pit_jax.models.cost import Cost, area
from pit_jax.models.family import Family
from pit_jax.models.torch_names import (
    Position,
    Row,
    Table,
    convolution,
    layer_norm,
    linear,
    transformer_block,
)
from pit_jax.models.vit.config import ViTConfig
from pit_jax.models.vit.model import ViT

# Touvron et al. 2021, Table 1; heads are 64 wide. ViT's own Ti, S and B are the same networks.
_SIZES = {
    "ti": ViTConfig(width=192, heads=3),
    "s": ViTConfig(width=384, heads=6),
    "b": ViTConfig(width=768, heads=12),
}
_VIT = {f"vit_{size}": config for size, config in _SIZES.items()}
_DEIT = {f"deit_{size}": config for size, config in _SIZES.items()}


def _cost(config: ViTConfig) -> Cost:
    width, tokens_t, positions = config.width, config.class_tokens, area(config.grids[0])
    pixels = config.in_channels * config.patch_size**2
    return cost.total(
        [
            cost.reading_pixels(cost.convolution(positions, pixels, width)),
            Cost(parameters=width * (positions + 2 * tokens_t)),  # positions, class tokens
            *(cost.transformer_blocks(stage, config.mlp_ratio) for stage in config.stages),
            Cost(parameters=2 * width),  # norm
            cost.linear(1, width, config.num_classes) * tokens_t,
        ]
    )


def _names(config: ViTConfig) -> Table:
    """ViT and DeiT in the layouts of DeiT's authors ("official") and of timm, which are one."""

    def both(name: str) -> dict[str, str]:
        return {"official": name, "timm": name}

    rows = [Row("class_token", both("cls_token")), Row("position", both("pos_embed"))]
    if config.distilled:
        rows.append(Row("distillation_token", both("dist_token")))
    rows += convolution("embedding/conv", **both("patch_embed.proj"))
    for block in range(config.depth):
        name = f"blocks.{block}"
        rows += transformer_block(f"block{block}", official=name, timm=name)
    rows += layer_norm("norm", **both("norm"))
    head = linear("head", **both("head"))
    if config.distilled:
        head += linear("head_distillation", **both("head_dist"))
    position = Position("position", prefix=config.class_tokens)
    return Table(("official", "timm"), tuple(rows), head, (position,))


def _reference(config: ViTConfig) -> Any:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformerDistilled if config.distilled else VisionTransformer
    return network(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_classes,
        in_chans=config.in_channels,
    )


FAMILY = Family(
    config=ViTConfig,
    module=ViT,
    rows={**_VIT, **_DEIT, **distilled(_DEIT)},
    cost=_cost,
    names=_names,
    reference=_reference,
    smallest={"patch_size": 8, "width": 16, "depth": 2, "heads": 2},
)
