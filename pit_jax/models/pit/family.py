"""The PiTs of the paper: sizes, cost, torch names, and timm's network."""

from typing import Any

from pit_jax.models import cost
from pit_jax.models.config import distilled
from pit_jax.models.cost import Cost, area
from pit_jax.models.family import Family
from pit_jax.models.pit.config import PiTConfig
from pit_jax.models.pit.model import PiT
from pit_jax.models.torch_names import (
    MAP,
    Position,
    Row,
    Table,
    convolution,
    layer_norm,
    linear,
    transformer_block,
)
from pit_jax.ops.pooling import WINDOW

# Paper, Table 1. Head widths are 32 (Ti), 48 (XS, S) and 64 (B) in every stage.
_ROWS = {
    "pit_ti": PiTConfig(
        patch_size=16, stride=8, widths=(64, 128, 256), depths=(2, 6, 4), heads=(2, 4, 8)
    ),
    "pit_xs": PiTConfig(
        patch_size=16, stride=8, widths=(96, 192, 384), depths=(2, 6, 4), heads=(2, 4, 8)
    ),
    "pit_s": PiTConfig(
        patch_size=16, stride=8, widths=(144, 288, 576), depths=(2, 6, 4), heads=(3, 6, 12)
    ),
    "pit_b": PiTConfig(
        patch_size=14, stride=7, widths=(256, 512, 1024), depths=(3, 6, 4), heads=(4, 8, 16)
    ),
}


def _cost(config: PiTConfig) -> Cost:
    tokens_t = config.class_tokens
    positions = area(config.grids[0])
    pixels = config.in_channels * config.patch_size**2
    parts = [
        cost.reading_pixels(cost.convolution(positions, pixels, config.widths[0])),
        Cost(parameters=config.widths[0] * (positions + tokens_t)),  # position map, class tokens
    ]
    for narrow, wide, grid in zip(
        config.widths, config.widths[1:], config.grids[1:], strict=False
    ):  # pooling
        parts.append(cost.convolution(area(grid), WINDOW**2, wide))
        parts.append(cost.linear(tokens_t, narrow, wide))
    parts += [cost.transformer_blocks(stage, config.mlp_ratio) for stage in config.stages]
    parts.append(Cost(parameters=2 * config.widths[-1]))  # norm
    parts.append(cost.linear(1, config.widths[-1], config.num_classes) * tokens_t)
    return cost.total(parts)


def _names(config: PiTConfig) -> Table:
    """PiT in the layouts of its authors ("official") and of timm.

    The two differ in one thing: a pooling belongs to the network (`pools.0`) there, and to the
    stage after it (`transformers.1.pool`) here.
    """
    rows = [
        Row("embedding/position", {"official": "pos_embed", "timm": "pos_embed"}, MAP),
        Row("class_token", {"official": "cls_token", "timm": "cls_token"}),
        *convolution("embedding/conv", official="patch_embed.conv", timm="patch_embed.conv"),
    ]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            name = f"transformers.{stage}.blocks.{block}"
            rows += transformer_block(f"stage{stage}/block{block}", official=name, timm=name)
    for pool in range(len(config.depths) - 1):
        official, timm = f"pools.{pool}", f"transformers.{pool + 1}.pool"
        rows += convolution(f"pool{pool}/conv", official=f"{official}.conv", timm=f"{timm}.conv")
        rows += linear(f"pool{pool}/fc", official=f"{official}.fc", timm=f"{timm}.fc")
    rows += layer_norm("norm", official="norm", timm="norm")
    head = linear("head", official="head", timm="head")
    if config.distilled:
        head += linear("head_distillation", official="head_dist", timm="head_dist")
    return Table(("official", "timm"), tuple(rows), head, (Position("embedding/position"),))


def _reference(config: PiTConfig) -> Any:
    from timm.models.pit import PoolingVisionTransformer

    image_size: Any = config.image_size
    return PoolingVisionTransformer(
        img_size=image_size,
        patch_size=config.patch_size,
        stride=config.stride,
        base_dims=[
            width // heads for width, heads in zip(config.widths, config.heads, strict=True)
        ],
        depth=config.depths,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_classes,
        in_chans=config.in_channels,
        distilled=config.distilled,
    )


def _reference_state(tensors: dict[str, Any], reference: Any) -> dict[str, Any]:
    from timm.models import pit

    return pit.checkpoint_filter_fn(tensors, reference)


FAMILY = Family(
    config=PiTConfig,
    module=PiT,
    rows={**_ROWS, **distilled(_ROWS)},
    cost=_cost,
    names=_names,
    reference=_reference,
    reference_state=_reference_state,
    smallest={"patch_size": 8, "stride": 4, "widths": (8, 16), "depths": (1, 1), "heads": (1, 2)},
)
