"""Equality with the official PyTorch code, on recorded numbers, and with timm, live.

The recorded numbers are the official network's in double precision, with weights and images that a
rule generates from their names; here the weights go through the table of official names, as a
downloaded file would.
"""

import functools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from pit_jax.models import parameters, zoo
from pit_jax.models.pit.config import PiTConfig
from pit_jax.weights.create import create_model
from pit_jax.weights.load import fit, load_weights, to_torch
from pit_jax.weights.match import FLOAT32, abstract_model, match
from pit_jax.weights.read import WeightFile
from pit_jax.weights.verify import import_timm

# Most of the time is compilation; this saves a third of it and keeps the arithmetic.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}

LABELS = np.array([3, 7])

# Tolerances, relative to the largest magnitude expected; for gradients, to the norm of each.
TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4


def stream(key: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)


def official_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value that the rule gives for an entry of the official state dict."""
    values = stream(f"0/{name}", shape)
    if name in ("pos_embed", "cls_token"):
        values *= 0.5
    elif len(shape) == 1:
        values = 1 + 0.1 * values if name.endswith(".weight") else 0.02 * values
    else:
        values /= np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def official_file(shapes: dict[str, list[int]]) -> WeightFile:
    tensors = {name: official_tensor(name, tuple(shape)) for name, shape in shapes.items()}
    return WeightFile(tensors, "generated")


def images(size: int) -> np.ndarray:
    """Images (2, size, size, 3), float32."""
    channels_first = stream(f"0/image/{size}", (2, 3, size, size)).astype(np.float32)
    return channels_first.transpose(0, 2, 3, 1)


def assert_close(found: Any, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def check_captures(captured: dict[str, jax.Array], oracle: dict[str, np.ndarray]) -> None:
    for stage in range(3):
        maps = np.asarray(captured[f"stage{stage}/map"])  # (B, H, W, C)
        assert_close(captured[f"stage{stage}/tokens"], oracle[f"stage{stage}/tokens"])
        assert_close(maps.mean(axis=(1, 2)), oracle[f"stage{stage}/map_mean"])
        first_row = maps[:, 0, :, :8].transpose(0, 2, 1)  # (B, 8, W)
        assert_close(first_row, oracle[f"stage{stage}/map_row0"])


def but_slow(names: Sequence[str], *quick: str) -> list[Any]:
    """Marks names that are not quick as slow, for CI alone."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="module")
def recorded(data_dir: Path) -> Any:
    return np.load(data_dir / "pit_official.npz")


@pytest.fixture(scope="module")
def official_shapes(data_dir: Path) -> dict[str, dict[str, list[int]]]:
    return json.loads((data_dir / "keys_official.json").read_text())


def of_model(recorded: Any, case: str) -> dict[str, np.ndarray]:
    prefix = f"{case}/"
    return {
        key.removeprefix(prefix): recorded[key] for key in recorded.files if key.startswith(prefix)
    }


def cross_entropy(logits: jax.Array) -> jax.Array:
    return -jax.nn.log_softmax(logits)[np.arange(2), LABELS].mean()


@pytest.mark.parametrize("name", but_slow(zoo.list_models("pit_*"), "pit_ti", "pit_s_distilled"))
def test_forward_and_gradients_equal_the_official_code(
    name: str, recorded: Any, official_shapes: dict[str, dict[str, list[int]]]
) -> None:
    oracle = of_model(recorded, f"{name}@224")
    config = zoo.model_config(name)
    assert isinstance(config, PiTConfig)
    params = fit(match(official_file(official_shapes[name]), config))
    graphdef, _ = abstract_model(config, FLOAT32)

    def loss(params: parameters.Params, images: jax.Array) -> Any:
        model = parameters.merge(graphdef, params)
        outputs, captured = model(images, train=True, capture=("stages",))
        if config.distilled:
            total = (cross_entropy(outputs[0]) + cross_entropy(outputs[1])) / 2
            return total, (model(images), captured, outputs)
        return cross_entropy(outputs), (outputs, captured, None)

    (total, (logits, captured, outputs)), gradients = jax.jit(
        jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK_TO_COMPILE
    )(params, images(224))

    assert_close(logits, oracle["logits"])
    check_captures(captured, oracle)
    assert_close(total, oracle["loss"])
    if config.distilled:
        assert_close(outputs[0], oracle["train_cls"])
        assert_close(outputs[1], oracle["train_dist"])
    by_name = to_torch(gradients, config, "official")
    norms = [
        np.linalg.norm(by_name[key].ravel().astype(np.float64)) for key in official_shapes[name]
    ]
    np.testing.assert_allclose(norms, oracle["grad_norms"], rtol=GRADIENT_TOLERANCE)


@pytest.mark.parametrize("name", but_slow(["pit_ti", "pit_b"], "pit_ti"))
def test_forward_equals_the_official_code_at_384(
    name: str, recorded: Any, official_shapes: dict[str, dict[str, list[int]]]
) -> None:
    config = zoo.model_config(name, image_size=384)
    height, width = config.grids[0]
    shapes = {**official_shapes[name], "pos_embed": [1, config.widths[0], height, width]}
    params = fit(match(official_file(shapes), config))
    graphdef, _ = abstract_model(config, FLOAT32)

    @functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def run(params: parameters.Params, images: jax.Array) -> Any:
        return parameters.merge(graphdef, params)(images, capture=("stages",))

    logits, captured = run(params, images(384))
    oracle = of_model(recorded, f"{name}@384")
    assert_close(logits, oracle["logits"])
    check_captures(captured, oracle)


@pytest.mark.parametrize("name", ["pit_ti", "pit_ti_distilled"])
def test_files_saved_by_torch_give_the_logits_of_timm(name: str, tmp_path: Path) -> None:
    timm = import_timm()
    torch.manual_seed(0)
    reference = timm.create_model(f"{name}_224").eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # no two values equal, LayerNorms included
            parameter.add_(0.05 * torch.randn(parameter.shape))
        # Tokens are so small that the epsilon of the first LayerNorms affects the logits.
        for parameter in (
            reference.pos_embed,
            reference.cls_token,
            *reference.patch_embed.parameters(),
        ):
            parameter.mul_(1e-2)
        batch = torch.randn(2, 3, 224, 224)
        expected = reference(batch).numpy()
    torch.save(reference.state_dict(), tmp_path / "model.pth")
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "model.safetensors")

    model = create_model(name, weights=tmp_path / "model.pth")
    graphdef, params = parameters.split(model)
    run = jax.jit(lambda params, images: parameters.merge(graphdef, params)(images))
    assert_close(run(params, batch.permute(0, 2, 3, 1).numpy()), expected)
    again = load_weights(tmp_path / "model.safetensors", name)
    jax.tree.map(np.testing.assert_array_equal, params, again)
