"""Compares our model with its torch reference, on the same weights and images.

Needs the `torch` extra. The reference is timm's. It loads the tensors of the file by timm's own
renaming, not by our tables, so that a mistake in a table shows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pit_jax.models import parameters, zoo
from pit_jax.models.config import Grid, ModelConfig
from pit_jax.models.torch_names import OURS
from pit_jax.weights.load import to_torch
from pit_jax.weights.match import FLOAT32, Match, abstract_model, describe
from pit_jax.weights.read import import_torch

# Largest difference of the logits, relative to the reference's largest logit. Rounding in float32
# stays below a tenth of it.
TOLERANCE = 1e-4

BATCH = 2

_definitions: list[Any] = []  # torch forgets operators whose library is collected


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest difference of an output, absolute and relative to the reference's largest value."""

    name: str
    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.name:<12} {self.absolute:9.2e} absolute  {self.relative:9.2e} relative"


def verify(found: Match, params: Mapping[str, Any]) -> list[Difference]:
    """Runs a fixed batch through timm's model with a file's tensors and ours with `params`.

    Both run in float32, ours at the highest matmul precision.

    Args:
      found: match of the file that `params` were read from.
      params: nested dict of arrays that fits the configuration.

    Returns:
      Differences of every stage's map (a ViT has one, the last block's), then of the logits.

    Raises:
      ValueError: torch or timm missing; a model or a file that timm does not have or accept.
    """
    torch = import_torch("verifying")
    config = found.config
    height, width = config.image_size
    images = np.random.RandomState(0).standard_normal((BATCH, height, width, config.in_channels))
    images = images.astype(np.float32)

    model = reference_model(config)
    _load_reference(model, found, params)
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
        ours = jax.device_get(run(dict(params), images))
    return [_difference(name, ours[name], value) for name, value in expected.items()]


def agrees(differences: list[Difference]) -> bool:
    """Tells whether the logits are within `TOLERANCE`; NaN on either side is not."""
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


def reference_model(config: ModelConfig) -> Any:
    """timm's module of a configuration, in evaluation mode, with weights of its own.

    Raises:
      ValueError: a configuration that timm cannot build, or timm is not installed.
    """
    import_timm()
    reference = zoo.family_of(config).reference
    model = reference(config) if reference else None
    if model is None:
        raise ValueError(
            f"there is no torch reference of {describe(config)} to verify against; convert without "
            "--verify"
        )
    return model.eval()


def _load_reference(model: Any, found: Match, params: Mapping[str, Any]) -> None:
    """Fills timm's model from the file; what the file lacks, a fresh head, comes from `params`.

    Counts of batches, which nothing is computed with, stay timm's where the file has none.
    """
    torch = import_torch("verifying")
    file, config, table = found.file, found.config, found.table
    ours = {
        name: torch.from_numpy(np.array(value))
        for name, value in to_torch(params, config, "timm").items()
    }
    if found.layout == OURS:
        state = ours
    else:
        state = {name: torch.from_numpy(value.copy()) for name, value in file.tensors.items()}
        renamed = zoo.family_of(config).reference_state
        state = renamed(state, model) if renamed else state
        if found.classes != config.num_classes:
            heads = {row.names["timm"] for row in table.head}
            state = {name: value for name, value in state.items() if name not in heads}
            state |= {name: value for name, value in ours.items() if name in heads}
        if grid := found.other_grid:
            name = next(
                row.names["timm"] for row in table.body if row.path == table.positions[0].path
            )
            state[name] = _resized(state[name], found, grid)
    counts = {
        name: value
        for name, value in model.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    try:
        model.load_state_dict(counts | state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"timm does not load {file.source}: {error}") from error


def _resized(position: Any, found: Match, grid: Grid) -> Any:
    """Positions for another grid, by torch's bicubic interpolation, as DeiT's fine-tuning does."""
    torch = import_torch("verifying")
    prefix, wanted = found.table.positions[0].prefix, found.config.grids[0]
    if prefix is None:
        return torch.nn.functional.interpolate(position, size=wanted, mode="bicubic")
    maps_bchw = position[:, prefix:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    maps_bchw = torch.nn.functional.interpolate(maps_bchw, size=wanted, mode="bicubic")
    return torch.cat([position[:, :prefix], maps_bchw.flatten(2).transpose(1, 2)], dim=1)


def _difference(name: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    absolute = float(np.max(np.abs(found - expected)))
    return Difference(name, absolute, absolute / (float(np.max(np.abs(expected))) or 1.0))
