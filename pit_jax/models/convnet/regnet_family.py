"""RegNetY-16GF, DeiT's and PiT's teacher: its size, cost, torch names, and timm's network."""

from typing import Any

from pit_jax.models import cost
from pit_jax.models.convnet.config import RegNetConfig
from pit_jax.models.convnet.regnet import RegNet
from pit_jax.models.cost import Cost, area
from pit_jax.models.family import Family
from pit_jax.models.torch_names import Row, Table, bare_convolution, batch_norm, convolution, linear

# timm gives the maps of four stages.
_TIMM_STAGES = 4


def _cost(config: RegNetConfig) -> Cost:
    height, width = config.image_size
    before = (-(-height // 2), -(-width // 2))
    channels = config.stem_width
    stem = cost.conv_norm(area(before), config.in_channels * 3**2, channels)
    parts = [cost.reading_pixels(stem)]
    for depth, features, grid in zip(config.depths, config.widths, config.grids, strict=True):
        for block in range(depth):
            squeezed = config.squeezed_width(channels)
            parts.append(cost.conv_norm(area(grid if block else before), channels, features))
            parts.append(cost.conv_norm(area(grid), 9 * config.group_width, features))
            parts.append(cost.convolution(1, features, squeezed))
            parts.append(cost.convolution(1, squeezed, features))
            parts.append(cost.conv_norm(area(grid), features, features))
            if block == 0:
                parts.append(cost.conv_norm(area(grid), channels, features))
            channels = features
        before = grid
    parts.append(cost.linear(1, channels, config.num_classes))
    return cost.total(parts)


def _names(config: RegNetConfig) -> Table:
    """RegNetY in the layouts of timm, which is that of DeiT's teacher, and of torchvision."""

    def conv_norm(path: str, timm: str, torchvision: str) -> tuple[Row, ...]:
        return bare_convolution(
            f"{path}/conv", timm=f"{timm}.conv", torchvision=f"{torchvision}.0"
        ) + batch_norm(f"{path}/norm", timm=f"{timm}.bn", torchvision=f"{torchvision}.1")

    rows = [*conv_norm("stem", "stem", "stem")]
    for stage, depth in enumerate(config.depths, start=1):
        for block in range(depth):
            path, timm = f"stage{stage - 1}/block{block}", f"s{stage}.b{block + 1}"
            torchvision = f"trunk_output.block{stage}.block{stage}-{block}"
            rows += conv_norm(f"{path}/conv1", f"{timm}.conv1", f"{torchvision}.f.a")
            rows += conv_norm(f"{path}/conv2", f"{timm}.conv2", f"{torchvision}.f.b")
            for part in ("fc1", "fc2"):
                rows += convolution(
                    f"{path}/se/{part}",
                    timm=f"{timm}.se.{part}",
                    torchvision=f"{torchvision}.f.se.{part}",
                )
            rows += conv_norm(f"{path}/conv3", f"{timm}.conv3", f"{torchvision}.f.c")
            if block == 0:
                rows += conv_norm(f"{path}/downsample", f"{timm}.downsample", f"{torchvision}.proj")
    head = linear("head", timm="head.fc", torchvision="fc")
    return Table(("timm", "torchvision"), tuple(rows), head)


def _reference(config: RegNetConfig) -> Any | None:
    from timm.models import regnet

    if len(config.depths) != _TIMM_STAGES:
        return None

    class Given(regnet.RegNet):
        """timm's network, with the widths and depths told instead of derived from a formula."""

        def _get_stage_args(
            self, cfg: Any, *_: Any, **__: Any
        ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
            stages = [
                {
                    "out_chs": width,
                    "depth": depth,
                    "stride": 2,
                    "dilation": 1,
                    "bottle_ratio": 1.0,
                    "group_size": cfg.group_size,
                    "drop_path_rates": [0.0] * depth,
                }
                for width, depth in zip(config.widths, config.depths, strict=True)
            ]
            shared = ("downsample", "se_ratio", "linear_out", "act_layer", "norm_layer")
            return stages, {name: getattr(cfg, name) for name in shared}

    description = regnet.RegNetCfg(
        group_size=config.group_width, se_ratio=config.se_ratio, stem_width=config.stem_width
    )
    return Given(description, in_chans=config.in_channels, num_classes=config.num_classes)


def _reference_state(tensors: dict[str, Any], reference: Any) -> dict[str, Any]:
    del reference
    from timm.models import regnet

    return regnet._filter_fn(tensors)


FAMILY = Family(
    config=RegNetConfig,
    module=RegNet,
    rows={
        # Radosavovic et al. 2020, RegNetY-16GF.
        "regnety_160": RegNetConfig(
            widths=(224, 448, 1232, 3024), depths=(2, 4, 11, 1), group_width=112
        ),
    },
    cost=_cost,
    names=_names,
    reference=_reference,
    reference_state=_reference_state,
    smallest={"widths": (8, 16), "depths": (1, 1), "group_width": 8, "stem_width": 8},
)
