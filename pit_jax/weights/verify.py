"""Our model beside its torch reference, on the same weights and images.

Needs the `torch` extra. The reference is timm's, and takes the tensors of the file as they are,
through timm's own renaming, so that a mistake in our tables shows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pit_jax.models import parameters, zoo
from pit_jax.models.convnet.config import RegNetConfig, ResNetConfig
from pit_jax.models.pit.config import PiTConfig
from pit_jax.models.vit.config import ViTConfig
from pit_jax.weights.files import WeightFile, import_torch
from pit_jax.weights.load import to_torch
from pit_jax.weights.match import FLOAT32, abstract_model, compare, describe, position_grid
from pit_jax.weights.tables import OURS

# Of logits, relative to the largest of the reference; float32 rounding stays below a tenth of it.
TOLERANCE = 1e-4

BATCH = 2

# Of timm's convolutional networks, whose maps it gives by the names of four.
TIMM_STAGES = 4

_definitions: list[Any] = []  # torch forgets operators whose library is collected


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest difference of an output, and relative to the reference's largest magnitude."""

    name: str
    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.name:<12} {self.absolute:9.2e} absolute  {self.relative:9.2e} relative"


def verify(
    file: WeightFile, config: zoo.ModelConfig, params: Mapping[str, Any]
) -> list[Difference]:
    """Runs a fixed batch through timm's model with a file's tensors and ours with `params`.

    Both run in float32, ours at the highest matmul precision.

    Args:
      file: what `params` were read from.
      config: of our model.
      params: nested dict of arrays that fits `config`.

    Returns:
      Differences of every stage's map, of a ViT the last block's, then of the logits.

    Raises:
      ValueError: torch or timm missing; a model or a file that timm does not have or accept.
    """
    torch = import_torch("verifying")
    height, width = config.image_size
    images = np.random.RandomState(0).standard_normal((BATCH, height, width, config.in_channels))
    images = images.astype(np.float32)

    model = reference_model(config)
    _load_reference(model, file, config, params)
    with torch.no_grad():
        batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        # timm gives a convolutional network's stem, too, and every block of a ViT.
        count = len(config.grids)
        maps = model.forward_intermediates(batch, intermediates_only=True)[-count:]
        expected = {
            f"stage{index}/map": maps_bchw.permute(0, 2, 3, 1).numpy()
            for index, maps_bchw in enumerate(maps)
        }
        expected["logits"] = model(batch).numpy()

    graphdef, _ = abstract_model(config, FLOAT32)

    @jax.jit
    def run(params: parameters.Params, images: jax.Array) -> dict[str, jax.Array]:
        network = parameters.merge(graphdef, params)
        maps = network.features(images).values()
        named = {f"stage{index}/map": maps_bhwc for index, maps_bhwc in enumerate(maps)}
        return {**named, "logits": network(images)}

    with jax.default_matmul_precision("highest"):
        found = jax.device_get(run(dict(params), images))
    return [_difference(name, found[name], value) for name, value in expected.items()]


def agrees(differences: list[Difference]) -> bool:
    """Whether the logits are within `TOLERANCE`; not when either side has one that is no number."""
    return all(item.relative <= TOLERANCE for item in differences if item.name == "logits")


def import_timm() -> Any:
    """The timm module, beside a torchvision with or without its compiled operators.

    A torchvision built for CUDA cannot load them beside a CPU torch, and then refuses to be
    imported for want of two operator names. The models use neither; declared, they are enough.

    Raises:
      ValueError: timm or torch is not installed.
    """
    torch = import_torch("verifying")
    try:
        try:
            import timm
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            _definitions.append(library)
            import timm
    except ImportError as error:
        raise ValueError("verifying needs timm: pip install torch torchvision timm") from error
    return timm


def reference_model(config: zoo.ModelConfig) -> Any:
    """timm's module of a configuration, in evaluation mode, with weights of its own.

    Raises:
      ValueError: a configuration that timm cannot build, or timm is not installed.
    """
    import_timm()
    if isinstance(config, PiTConfig):
        return _pit(config).eval()
    if isinstance(config, ViTConfig):
        return _vit(config).eval()
    if isinstance(config, RegNetConfig) and len(config.depths) == TIMM_STAGES:
        return _regnet(config).eval()
    standard = isinstance(config, ResNetConfig) and config.pooling and config.base_width == 64
    if isinstance(config, ResNetConfig) and standard and len(config.depths) == TIMM_STAGES:
        return _resnet(config).eval()
    raise ValueError(
        f"there is no torch reference of {describe(config)} to verify against; convert without "
        "--verify"
    )


def _pit(config: PiTConfig) -> Any:
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


def _vit(config: ViTConfig) -> Any:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    family = VisionTransformerDistilled if config.distilled else VisionTransformer
    return family(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_classes,
        in_chans=config.in_channels,
    )


def _resnet(config: ResNetConfig) -> Any:
    from timm.models.resnet import Bottleneck, ResNet

    block: Any = Bottleneck
    return ResNet(block, config.depths, num_classes=config.num_classes, in_chans=config.in_channels)


def _regnet(config: RegNetConfig) -> Any:
    from timm.models import regnet

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


def _load_reference(
    model: Any, file: WeightFile, config: zoo.ModelConfig, params: Mapping[str, Any]
) -> None:
    """Fills timm's model from the file; what the file lacks, a fresh head, comes from `params`.

    Counts of batches, which nothing is computed with, stay timm's where the file has none.
    """
    torch = import_torch("verifying")
    comparison = compare(file, config)
    ours = {
        name: torch.from_numpy(np.array(value))
        for name, value in to_torch(params, config, "timm").items()
    }
    if comparison.layout == OURS:
        state = ours
    else:
        tensors = {name: torch.from_numpy(value.copy()) for name, value in file.tensors.items()}
        state = _renamed(tensors, config, model)
        if comparison.classes != config.num_classes:
            heads = {row.names["timm"] for row in comparison.table.head}
            state = {name: value for name, value in state.items() if name not in heads}
            state |= {name: value for name, value in ours.items() if name in heads}
        grid = position_grid(file, config)
        if grid and grid != config.grids[0]:
            prefix = comparison.table.prefix
            state["pos_embed"] = _resized(state["pos_embed"], prefix, grid, config.grids[0])
    counts = {
        name: value
        for name, value in model.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    try:
        model.load_state_dict(counts | state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"timm does not load {file.source}: {error}") from error


def _renamed(tensors: dict[str, Any], config: zoo.ModelConfig, model: Any) -> dict[str, Any]:
    """A file's tensors under timm's names, by timm's own renaming where the family has one."""
    from timm.models import pit, regnet

    if isinstance(config, PiTConfig):
        return pit.checkpoint_filter_fn(tensors, model)
    if isinstance(config, RegNetConfig):
        return regnet._filter_fn(tensors)
    return tensors


def _resized(position: Any, prefix: int | None, grid: Any, wanted: Any) -> Any:
    """Positions for another grid, by torch's bicubic interpolation, as DeiT's fine-tuning does."""
    torch = import_torch("verifying")
    if prefix is None:
        return torch.nn.functional.interpolate(position, size=wanted, mode="bicubic")
    maps_bchw = position[:, prefix:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    maps_bchw = torch.nn.functional.interpolate(maps_bchw, size=wanted, mode="bicubic")
    return torch.cat([position[:, :prefix], maps_bchw.flatten(2).transpose(1, 2)], dim=1)


def _difference(name: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    absolute = float(np.max(np.abs(found - expected)))
    return Difference(name, absolute, absolute / (float(np.max(np.abs(expected))) or 1.0))
