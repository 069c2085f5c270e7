"""ResNet-50, with its pooling and without: sizes, cost, torch names, and timm's network."""

from typing import Any

from pit_jax.models import cost
from pit_jax.models.convnet.config import RESNET_PATCH, ResNetConfig
from pit_jax.models.convnet.resnet import ResNet
from pit_jax.models.cost import Cost, area
from pit_jax.models.family import Family
from pit_jax.models.torch_names import Row, Table, bare_convolution, batch_norm, linear

# timm gives the maps of four stages, and has one base width.
_TIMM_STAGES, _TIMM_WIDTH = 4, 64


def _cost(config: ResNetConfig) -> Cost:
    if config.pooling:
        height, width = config.image_size
        positions, window, channels = (-(-height // 2)) * (-(-width // 2)), 7, config.base_width
    else:
        positions, window = area(config.stage_grids[0]), RESNET_PATCH
        channels = config.stage_widths[0]
    stem = cost.conv_norm(positions, config.in_channels * window**2, channels)
    parts = [cost.reading_pixels(stem)]
    for index, (depth, inner, features) in enumerate(
        zip(config.depths, config.inner_widths, config.stage_widths, strict=True)
    ):
        grid = config.stage_grids[index]
        before = config.stage_grids[max(index - 1, 0)]
        for block in range(depth):
            parts.append(cost.conv_norm(area(grid if block else before), channels, inner))
            parts.append(cost.conv_norm(area(grid), 9 * inner, inner))
            parts.append(cost.conv_norm(area(grid), inner, features))
            if config.pooling and block == 0:
                parts.append(cost.conv_norm(area(grid), channels, features))
            channels = features
    parts.append(cost.linear(1, channels, config.num_classes))
    return cost.total(parts)


def _names(config: ResNetConfig) -> Table:
    """ResNet in the layouts of torchvision and of timm, which are one."""

    def both(name: str) -> dict[str, str]:
        return {"torchvision": name, "timm": name}

    def conv_norm(path: str, conv: str, norm: str) -> tuple[Row, ...]:
        return bare_convolution(f"{path}/conv", **both(conv)) + batch_norm(
            f"{path}/norm", **both(norm)
        )

    rows = [*conv_norm("stem", "conv1", "bn1")]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            path, name = f"stage{stage}/block{block}", f"layer{stage + 1}.{block}"
            for part in (1, 2, 3):
                rows += conv_norm(f"{path}/conv{part}", f"{name}.conv{part}", f"{name}.bn{part}")
            if config.pooling and block == 0:
                down = f"{name}.downsample"
                rows += conv_norm(f"{path}/downsample", f"{down}.0", f"{down}.1")
    return Table(("torchvision", "timm"), tuple(rows), linear("head", **both("fc")))


def _reference(config: ResNetConfig) -> Any | None:
    from timm.models.resnet import Bottleneck, ResNet

    is_timms = config.pooling and config.base_width == _TIMM_WIDTH
    if not is_timms or len(config.depths) != _TIMM_STAGES:
        return None
    block: Any = Bottleneck
    return ResNet(block, config.depths, num_classes=config.num_classes, in_chans=config.in_channels)


FAMILY = Family(
    config=ResNetConfig,
    module=ResNet,
    rows={
        "resnet50": ResNetConfig(),
        # PiT's Figure 2 without pooling. The paper gives no widths; at this one the network costs
        # what ResNet-50 does, 4.1 G multiply-accumulates.
        "resnet50_nopool": ResNetConfig(pooling=False, base_width=272),
    },
    cost=_cost,
    names=_names,
    reference=_reference,
    smallest={"base_width": 4, "depths": (1, 1)},
)
