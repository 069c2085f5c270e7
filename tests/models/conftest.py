"""Torch models with no two weights equal, and ours with the same weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pit_jax.models import parameters
from pit_jax.weights.load import fit
from pit_jax.weights.match import match
from pit_jax.weights.read import WeightFile


@pytest.fixture(scope="session")
def randomised() -> Callable[[Any], Any]:
    """Draws every value of a torch model at random and puts it in evaluation mode. Running
    statistics, and the last scale of each branch, are random too.
    """

    def randomise(model: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif name.endswith("running_mean"):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                value.fill_(7)
            elif value.ndim == 1:
                # Scales around 1, biases around 0.
                center = 0.0 if name.endswith("bias") else 1.0
                value.copy_(center + 0.2 * torch.randn(value.shape, generator=generator))
            else:
                spread = 0.5 if value.shape[0] == 1 else value[0].numel() ** -0.5
                value.copy_(spread * torch.randn(value.shape, generator=generator))
        return model.eval()

    return randomise


@pytest.fixture(scope="session")
def params_of() -> Callable[[Any, Any], parameters.Params]:
    """Parameters of a configuration, taken from a torch model by the table of names."""

    def convert(model: Any, config: Any) -> parameters.Params:
        tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        return fit(match(WeightFile(tensors, "a torch model"), config))

    return convert


@pytest.fixture(scope="session")
def batch() -> Callable[..., tuple[np.ndarray, Any]]:
    """Random images of a shape (B, H, W, 3), for us and for torch."""

    def draw(*shape: int, seed: int = 3) -> tuple[np.ndarray, Any]:
        images = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    return draw


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Asserts equality within a fraction of the largest expected magnitude."""

    def compare(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
        expected = np.asarray(expected)
        assert found.shape == expected.shape
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)

    return compare
