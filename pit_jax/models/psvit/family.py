"""The PSViTs of the paper: sizes and whose they are, cost, torch names.

There is no public code of PSViT. The torch names are those of DeiT's code, with stages and pools.
"""

import dataclasses
import itertools
from typing import NamedTuple

from pit_jax.models import cost
from pit_jax.models.cost import Cost
from pit_jax.models.family import Family
from pit_jax.models.psvit.config import PSViTConfig, shared_cells
from pit_jax.models.psvit.model import PSViT
from pit_jax.models.torch_names import (
    Position,
    Row,
    Table,
    batch_norm,
    convolution,
    layer_norm,
    linear,
    sequence_convolution,
    transformer_block,
)

LAYOUT = "torch"

# Figure 6 is a picture, so that the cells are inferred: of 702,464 combinations of layers, shared
# maps, kernels and positions, these four alone give all four parameter counts of Table 4. The
# widths, heads and token numbers are Table 4's. The order of the cells in a stage is ours.
CELLS_1D = "221|22|2111"
# Widths, heads and cells of the 2D models are ours: of many that cost what the paper prints, one
# whose first stage shares most and whose last layer has its own map.
CELLS_2D = "22|21|111"

_TINY_16 = PSViTConfig(
    pooling="1d",
    patch_size=16,
    stage_widths=(192, 288, 384),
    heads=(3, 6, 6),
    cells=CELLS_1D,
)
_TINY_8 = dataclasses.replace(_TINY_16, patch_size=8, stage_widths=(64, 144, 192), heads=(1, 3, 3))
_SMALL_8 = dataclasses.replace(
    _TINY_16, patch_size=8, stage_widths=(144, 256, 384), heads=(3, 4, 6)
)
_SMALL_16 = dataclasses.replace(_TINY_16, stage_widths=(288, 512, 768), heads=(6, 8, 12))
_BASE = dataclasses.replace(_TINY_16, patch_size=8, stage_widths=(288, 576, 768), heads=(6, 9, 12))
_TINY_2D = PSViTConfig(
    pooling="2d", patch_size=8, stage_widths=(96, 192, 384), heads=(2, 3, 6), cells=CELLS_2D
)
_DIMENSION_1 = dataclasses.replace(
    _TINY_16, stage_widths=(192, 192, 192), heads=(3, 3, 3), cells=shared_cells((4, 8, 20), 1)
)
_DIMENSION_2 = dataclasses.replace(
    _TINY_16, stage_widths=(192, 256, 384), heads=(3, 4, 6), cells=shared_cells((4, 4, 4), 1)
)
_SHARING_2 = dataclasses.replace(
    _TINY_16, stage_widths=(192,), heads=(3,), cells=shared_cells((14,), 2)
)

_ROWS = {
    "psvit_1d_tiny": _TINY_16,
    "psvit_1d_small": _SMALL_8,
    "psvit_1d_base": _BASE,
    "psvit_2d_tiny": _TINY_2D,
    "psvit_2d_small": dataclasses.replace(_TINY_2D, stage_widths=(192, 384, 768), heads=(4, 6, 12)),
    "psvit_2d_base": dataclasses.replace(
        _TINY_2D, stage_widths=(384, 768, 1536), heads=(8, 12, 24)
    ),
    # Table 4: the published "tiny" is the one of 16-pixel patches, the published "small" of 8.
    "psvit_1d_tiny16": _TINY_16,
    "psvit_1d_tiny8": _TINY_8,
    "psvit_1d_small16": _SMALL_16,
    "psvit_1d_small8": _SMALL_8,
    # Tables 1, 3 and 5.
    "psvit_1d_dimension1": _DIMENSION_1,
    "psvit_1d_dimension2": _DIMENSION_2,
    "psvit_1d_dimension2_288": dataclasses.replace(
        _DIMENSION_2, stage_widths=(192, 288, 384), heads=(3, 6, 6)
    ),
    "psvit_2d_pooling": dataclasses.replace(_TINY_2D, cells=shared_cells((2, 4, 5), 1)),
    "psvit_1d_sharing2": _SHARING_2,
    "psvit_1d_sharing3": dataclasses.replace(_SHARING_2, cells=shared_cells((15,), 3)),
}


class Published(NamedTuple):
    """Figures that the paper prints of a model, and the parts of its row that it leaves open.

    Attributes:
      table: where it is printed.
      parameters: in millions; None where none are printed.
      gmacs: as "FLOPS(G)", which are multiply-accumulates.
      top1: on ImageNet after 300 epochs of DeiT's recipe, in percent.
      inferred: fields found from other printed numbers.
      ours: fields that nothing printed determines.
    """

    table: str
    parameters: float | None
    gmacs: float
    top1: float
    inferred: str
    ours: str


_SEARCHED = ("cells, pool_kernel, stage_positions, class_pool", "order of the cells")
_PLAIN = ("pool_kernel, stage_positions, class_pool", "heads")
_OURS_2D = ("stage_positions", "stage_widths, heads, cells, pool_kernel, head_norm")

PUBLISHED = {
    "psvit_1d_tiny": Published("Tables 2, 3 and 4", 15.6, 1.3, 77.4, *_SEARCHED),
    "psvit_1d_small": Published("Tables 2 and 4", 13.9, 4.9, 80.7, *_SEARCHED),
    "psvit_1d_base": Published("Table 2", None, 18.9, 82.6, _SEARCHED[0], "all sizes"),
    "psvit_2d_tiny": Published("Tables 2 and 3", None, 1.3, 78.8, *_OURS_2D),
    "psvit_2d_small": Published("Table 2", None, 4.4, 81.6, *_OURS_2D),
    "psvit_2d_base": Published("Table 2", None, 15.5, 82.9, *_OURS_2D),
    "psvit_1d_tiny8": Published("Table 4", 3.8, 1.5, 72.71, *_SEARCHED),
    "psvit_1d_small16": Published("Table 4", 53.8, 4.0, 78.32, *_SEARCHED),
    "psvit_1d_dimension1": Published("Table 1", None, 1.3, 75.0, *_PLAIN),
    "psvit_1d_dimension2": Published("Tables 1 and 3", None, 1.3, 76.3, *_PLAIN),
    "psvit_2d_pooling": Published("Table 3", None, 1.3, 76.7, *_OURS_2D),
    "psvit_1d_sharing2": Published("Tables 3 and 5", None, 1.3, 73.8, "cells", ""),
    "psvit_1d_sharing3": Published("Table 5", None, 1.3, 73.1, "cells", ""),
}


def _cost(config: PSViTConfig) -> Cost:
    """Multiply-accumulates as the network runs: 1D convolutions at the length before pooling."""
    return _counted(config, after_pooling=False)


def cost_as_printed(config: PSViTConfig) -> Cost:
    """The cost as the paper's tables count it: 1D convolutions at the length behind the pooling.

    No count at the length where they run gives the figures of Table 4.
    """
    return _counted(config, after_pooling=True)


def _counted(config: PSViTConfig, *, after_pooling: bool) -> Cost:
    widths = config.stage_widths
    pixels = config.in_channels * config.patch_size**2
    stem = cost.convolution(config.patches[0], pixels, widths[0])
    parts = [
        cost.reading_pixels(stem),
        Cost(parameters=widths[0] * (config.tokens[0] + config.class_tokens)),
    ]
    for pool, (narrow, wide) in enumerate(itertools.pairwise(widths)):
        stage = pool + 1 if after_pooling or config.pooling == "2d" else pool
        parts += _pooling(config, stage, narrow, wide)
        if config.stage_positions:
            parts.append(Cost(parameters=config.tokens[pool + 1] * wide))
    for tokens, width, groups in zip(config.tokens, widths, config.groups, strict=True):
        own, reused = (
            cost.transformer_block(tokens, width, config.mlp_ratio, reuses_map=reuses)
            for reuses in (False, True)
        )
        parts += [own * len(groups), reused * (sum(groups) - len(groups))]
    parts.append(Cost(parameters=2 * widths[-1]))  # norm
    parts.append(cost.linear(1, widths[-1], config.num_classes))
    return cost.total(parts)


def _pooling(config: PSViTConfig, stage: int, narrow: int, wide: int) -> list[Cost]:
    """A pooling whose convolution is counted at the length of a stage."""
    joint = config.class_pool == "joint"
    positions = config.tokens[stage] if joint else config.patches[stage]
    axes = 1 if config.pooling == "1d" else 2
    parts = [cost.convolution(positions, config.pool_kernel**axes * narrow, wide)]
    if config.class_tokens and not joint:
        parts.append(cost.linear(1, narrow, wide))
    if config.pool_norm != "none":
        parts.append(Cost(parameters=2 * wide))
    return parts


def _names(config: PSViTConfig) -> Table:
    def called(name: str) -> dict[str, str]:
        return {LAYOUT: name}

    rows: list[Row] = []
    if config.class_tokens:
        rows.append(Row("embedding/class_token", called("cls_token")))
    rows += convolution("embedding/conv", torch="patch_embed")
    stages = len(config.stage_widths)
    positions = [
        Position(
            "embedding/position" if stage == 0 else f"pool{stage - 1}/position",
            prefix=config.class_tokens or None,
            run=2**stage if config.class_tokens else 1,
        )
        for stage in range(stages if config.stage_positions else 1)
    ]
    rows += [
        Row(position.path, called(f"pos_embed.{stage}")) for stage, position in enumerate(positions)
    ]
    for stage, groups in enumerate(config.groups):
        reuses = [index > 0 for size in groups for index in range(size)]
        for block, reuses_map in enumerate(reuses):
            rows += transformer_block(
                f"stage{stage}/block{block}",
                torch=f"stages.{stage}.blocks.{block}",
                reuses_map=reuses_map,
            )
    for pool in range(stages - 1):
        rows += _pool_names(config, f"pool{pool}", f"pools.{pool}")
    rows += layer_norm("norm", torch="norm")
    return Table((LAYOUT,), tuple(rows), linear("head", torch="head"), tuple(positions))


def _pool_names(config: PSViTConfig, path: str, name: str) -> list[Row]:
    kind = sequence_convolution if config.pooling == "1d" else convolution
    rows = [*kind(f"{path}/conv", torch=f"{name}.conv")]
    if config.class_tokens and config.class_pool == "linear":
        rows += linear(f"{path}/fc", torch=f"{name}.cls")
    if config.pool_norm != "none":
        norm = batch_norm if config.pool_norm == "batch" else layer_norm
        rows += norm(f"{path}/norm", torch=f"{name}.norm")
    return rows


FAMILY = Family(
    config=PSViTConfig,
    module=PSViT,
    rows=_ROWS,
    cost=_cost,
    names=_names,
    smallest={"patch_size": 8, "stage_widths": (8, 16), "heads": (1, 2), "cells": "2|1"},
)
