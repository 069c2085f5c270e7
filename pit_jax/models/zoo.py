"""The models by name. The zoo is data: a table of configurations, and what turns a row into a
module.
"""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.errors import suggestion
from pit_jax.models import parameters
from pit_jax.models.convnet.config import RegNetConfig, ResNetConfig
from pit_jax.models.convnet.regnet import RegNet
from pit_jax.models.convnet.resnet import ResNet
from pit_jax.models.pit.config import PiTConfig
from pit_jax.models.pit.model import PiT
from pit_jax.models.vit.config import ViTConfig
from pit_jax.models.vit.model import ViT

ModelConfig = PiTConfig | ViTConfig | ResNetConfig | RegNetConfig
Model = PiT | ViT | ResNet | RegNet

# Paper, Table 1. Head widths are 32 (Ti), 48 (XS, S) and 64 (B) in every stage.
_PIT = {
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

# Touvron et al. 2021, Table 1; heads are 64 wide. ViT's own Ti, S and B are the same networks.
_DEIT = {
    "deit_ti": ViTConfig(width=192, heads=3),
    "deit_s": ViTConfig(width=384, heads=6),
    "deit_b": ViTConfig(width=768, heads=12),
}

_CONVNETS: dict[str, ModelConfig] = {
    "resnet50": ResNetConfig(),
    # PiT's Figure 2 without pooling. The paper gives no widths; at this one the network costs what
    # ResNet-50 does, 4.1 G multiply-accumulates.
    "resnet50_nopool": ResNetConfig(pooling=False, base_width=272),
    # Radosavovic et al. 2020, RegNetY-16GF: DeiT's and PiT's teacher.
    "regnety_160": RegNetConfig(
        widths=(224, 448, 1232, 3024), depths=(2, 4, 11, 1), group_width=112
    ),
}


def _distilled(rows: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}_distilled": dataclasses.replace(row, distilled=True) for name, row in rows.items()
    }


MODELS: dict[str, ModelConfig] = {
    **_PIT,
    **_distilled(_PIT),
    **{name.replace("deit", "vit"): row for name, row in _DEIT.items()},
    **_DEIT,
    **_distilled(_DEIT),
    **_CONVNETS,
}

# PiT's Figures 2 and 3 compare networks with and without pooling over a range of costs, and give
# neither sizes nor figures. These pairs, (model, fields replaced) with pooling and without, differ
# in multiply-accumulates by less than 3 %. Without pooling a PiT is a ViT; its heads are as wide as
# the PiT's.
Variant = tuple[str, dict[str, int]]
POOLING_PAIRS: dict[str, tuple[Variant, Variant]] = {
    "resnet_w32": (("resnet50", {"base_width": 32}), ("resnet50_nopool", {"base_width": 136})),
    "resnet_w48": (("resnet50", {"base_width": 48}), ("resnet50_nopool", {"base_width": 204})),
    "resnet_w64": (("resnet50", {}), ("resnet50_nopool", {})),
    "resnet_w96": (("resnet50", {"base_width": 96}), ("resnet50_nopool", {"base_width": 408})),
    "vit_ti": (("pit_ti", {}), ("vit_ti", {"width": 128, "heads": 4, "depth": 14})),
    "vit_xs": (("pit_xs", {}), ("vit_ti", {"width": 192, "heads": 4, "depth": 13})),
    "vit_s": (("pit_s", {}), ("vit_s", {"width": 288, "heads": 6, "depth": 13})),
    "vit_b": (("pit_b", {}), ("vit_b", {"width": 640, "heads": 10, "depth": 12})),
}

_FAMILIES: dict[type, Callable[..., Any]] = {
    PiTConfig: PiT,
    ViTConfig: ViT,
    ResNetConfig: ResNet,
    RegNetConfig: RegNet,
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, in the order of the table; `pattern` filters them as a shell would
    ("pit_*").
    """
    return [name for name in MODELS if fnmatch.fnmatchcase(name, pattern)]


def model_config(
    name: str, *, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> ModelConfig:
    """The configuration of a model, with any field of it replaced.

    Args:
      name: a row of `list_models()`.
      image_size: an int, or (height, width); None for the row's own.
      **overrides: fields of the configuration; sequences may be lists.

    Raises:
      ValueError: an unknown name or field, with the closest right one; a configuration that cannot
        be built.
    """
    if name not in MODELS:
        raise ValueError(
            f"unknown model {name!r}{suggestion(name, MODELS)}; the models are {', '.join(MODELS)}"
        )
    row = MODELS[name]
    fields = [field.name for field in dataclasses.fields(row)]
    for key, value in overrides.items():
        if key not in fields:
            raise ValueError(
                f"{name} has no option {key!r}{suggestion(key, fields)}; it has {', '.join(fields)}"
            )
        overrides[key] = tuple(value) if isinstance(value, list) else value
    if image_size is not None:
        overrides["image_size"] = _as_size(image_size)
    return dataclasses.replace(row, **overrides)


def _as_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(image_size, int):
        return (image_size, image_size)
    try:
        height, width = image_size
        if isinstance(image_size, str) or (int(height), int(width)) != (height, width):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"image_size must be a number of pixels or (height, width), found {image_size!r}"
        ) from None
    return (int(height), int(width))


def builder(config: ModelConfig, *, dtype: DTypeLike = jnp.float32) -> Callable[[nnx.Rngs], Model]:
    """What makes the module of a configuration from a source of random numbers."""
    family = _FAMILIES[type(config)]
    return lambda rngs: family(config, dtype=dtype, rngs=rngs)


def build(config: ModelConfig, *, dtype: DTypeLike = jnp.float32, seed: int = 0) -> Model:
    """A freshly initialised model; equal seeds give equal parameters."""
    return builder(config, dtype=dtype)(nnx.Rngs(seed))


def abstract(
    config: ModelConfig, *, dtype: DTypeLike = jnp.float32
) -> tuple[nnx.GraphDef, parameters.Params]:
    """Structure and parameter shapes of a model, with nothing computed: (graphdef, dict of
    ShapeDtypeStruct).
    """
    return parameters.split(nnx.eval_shape(lambda: builder(config, dtype=dtype)(nnx.Rngs(0))))
