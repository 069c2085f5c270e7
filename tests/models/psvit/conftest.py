"""Numbers of an independent implementation in double precision, tests/fixtures/psvit.

Weights and images follow a rule from their names, so that no weights are stored.
"""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pit_jax.models.psvit.config import PSViTConfig
from pit_jax.weights.read import WeightFile

# Our fields by those of the recorded configurations.
FIELDS = {
    "kind": "pooling",
    "image": "image_size",
    "patch": "patch_size",
    "dims": "stage_widths",
    "heads": "heads",
    "classes": "num_classes",
    "mlp_ratio": "mlp_ratio",
    "pool_kernel": "pool_kernel",
    "pool_norm": "pool_norm",
    "pool_act": "pool_activation",
    "pool_padding": "pool_padding",
    "cls_pool": "class_pool",
    "stage_pos": "stage_positions",
    "head_norm": "head_norm",
}


def stream(key: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(f"0/{key}".encode())).standard_normal(shape)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The rule's value for an entry of a state dict."""
    values = stream(name, shape)
    if name.startswith(("pos_embed", "cls_token")):
        values *= 0.5
    elif name.endswith("running_var"):
        values = np.exp(0.1 * values)
    elif len(shape) == 1:
        values = 1 + 0.1 * values if name.endswith(".weight") else 0.02 * values
    else:
        values /= np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One recorded network.

    Attributes:
      config: of the network.
      facts: tokens, parameters, counts of multiply-accumulates, shapes, and shapes of buffers.
      values: recorded numbers by name.
    """

    config: PSViTConfig
    facts: dict[str, Any]
    values: dict[str, np.ndarray]

    @property
    def file(self) -> WeightFile:
        """The weights as a torch file has them."""
        shapes = {**self.facts["shapes"], **self.facts["buffers"]}
        return WeightFile({name: tensor(name, tuple(s)) for name, s in shapes.items()}, "generated")


class Oracle:
    """All recorded networks by their tags; "TAG->HxW" is one resized."""

    stream = staticmethod(stream)

    def __init__(self, folder: Path):
        self._facts = json.loads((folder / "keys_psvit.json").read_text())
        self._values = np.load(folder / "networks.npz")

    @property
    def tags(self) -> list[str]:
        return list(self._facts)

    def network(self, tag: str) -> Recorded:
        facts = self._facts[tag]
        given = {
            ours: tuple(value) if isinstance(value := facts["config"][theirs], list) else value
            for theirs, ours in FIELDS.items()
        }
        cells = "|".join("".join(map(str, groups)) or "0" for groups in facts["config"]["groups"])
        config = PSViTConfig(cells=cells, empty_stages=True, **given)
        return Recorded(config, facts, self.values(tag))

    def values(self, tag: str) -> dict[str, np.ndarray]:
        prefix = f"{tag}/"
        names = [name for name in self._values.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._values[name] for name in names}

    def images(self, config: PSViTConfig) -> np.ndarray:
        """(2, H, W, 3), float32."""
        height, width = config.image_size
        size = f"{height}" if height == width else f"{height}x{width}"
        channels_first = stream(f"image/{size}", (2, 3, height, width)).astype(np.float32)
        return channels_first.transpose(0, 2, 3, 1)

    def dot(self, label: str, values: Any) -> float:
        """Checksum that no two arrays share."""
        flat = np.asarray(values, np.float64).ravel()
        return float(flat @ stream(f"checksum/{label}", flat.shape) / np.sqrt(flat.size))


@pytest.fixture(scope="session")
def oracle(data_dir: Path) -> Oracle:
    return Oracle(data_dir / "psvit")
