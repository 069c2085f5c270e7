"""A small PiT, its distilled twin, and their torch files, with no two values equal."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pit_jax.models import zoo
from pit_jax.models.pit.config import PiTConfig
from pit_jax.weights.match import parameter_shapes, table_of
from pit_jax.weights.read import WeightFile
from pit_jax.weights.verify import reference_model


@pytest.fixture(scope="session")
def tiny_options() -> dict[str, Any]:
    """Fields that shrink a pit_ti."""
    sizes = {"widths": (8, 16), "depths": (1, 2), "heads": (1, 2)}
    return {**sizes, "image_size": 40, "num_classes": 5}


@pytest.fixture(scope="session")
def tiny(tiny_options: dict[str, Any]) -> PiTConfig:
    config = zoo.model_config("pit_ti", **tiny_options)
    assert isinstance(config, PiTConfig)
    return config


@pytest.fixture(scope="session")
def torch_state(tiny: PiTConfig) -> Callable[[bool], tuple[PiTConfig, dict[str, Any]]]:
    """Makes the small model's configuration and timm's state dict of it, with random values."""

    def make(distilled: bool) -> tuple[PiTConfig, dict[str, Any]]:
        config = dataclasses.replace(tiny, distilled=distilled)
        generator = torch.Generator().manual_seed(0)
        return config, {
            name: torch.randn(value.shape, generator=generator)
            for name, value in reference_model(config).state_dict().items()
        }

    return make


@pytest.fixture(scope="session")
def memory_file() -> Callable[..., WeightFile]:
    """Makes the content of a torch file for a configuration, without torch and without a file."""

    def make(config: Any, layout: str = "official") -> WeightFile:
        shapes = parameter_shapes(config)
        rows = table_of(config).by_name(layout, with_head=config.num_classes > 0)
        random = np.random.RandomState(0)
        tensors = {
            name: random.standard_normal(row.file_shape(shapes[row.path], layout)).astype("f")
            for name, row in rows.items()
        }
        return WeightFile(tensors, "some.pth")

    return make
