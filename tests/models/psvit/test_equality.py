"""Equality with an independent implementation: tokens, maps, logits, losses, gradients, resizing.

Weights go through the table of torch names, as a file would.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from pit_jax.cli import convert
from pit_jax.models import parameters
from pit_jax.models.torch_names import Table
from pit_jax.weights.cards import make_card
from pit_jax.weights.load import fit, to_torch
from pit_jax.weights.match import FLOAT32, abstract_model, match, table_of
from pit_jax.weights.read import read

LABELS = np.array([3, 7])

# Relative to the largest magnitude of what is compared; for gradients, to the norm of each.
TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4

TAGS = list(json.loads((Path(__file__).parents[2] / "fixtures/psvit/keys_psvit.json").read_text()))
# The smallest ones; `marks` says who runs the others.
QUICK = {
    *("t1d", "t1d_bn_elu_circular", "t1d_joint_odd", "t1d_groups", "t1d_empty_stages"),
    *("t1d_one_stage", "t2d_odd_k2", "t2d_norm_after"),
}
RESIZED = {
    "t1d": ("48x48", "24x40", "32x32"),
    "t1d_wide": ("64x96",),
    "t1d_odd": ("56x72",),
    "t1d_one_stage": ("48x64",),
    "t2d": ("96x96", "48x80"),
    "t2d_odd": ("72x88",),
    "psvit_1d_tiny16@224": ("256x256",),
    "psvit_1d_tiny8@224": ("256x192",),
    "psvit_2d_tiny@224": ("256x256",),
}


def marks(tag: str) -> list[pytest.MarkDecorator]:
    """CI has the small networks, and one of full size with each kind of pooling."""
    if tag in QUICK:
        return []
    full_size = "@" in tag and tag not in ("psvit_1d_tiny16@224", "psvit_2d_tiny@224")
    return [pytest.mark.full_size if full_size else pytest.mark.slow]


def assert_close(found: Any, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.shape(found) == expected.shape
    scale = max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def cross_entropy(logits: jax.Array, smoothing: float = 0.0) -> jax.Array:
    logs = jax.nn.log_softmax(logits)
    return -((1 - smoothing) * logs[np.arange(2), LABELS] + smoothing * logs.mean(1)).mean()


def check_tokens(oracle: Any, values: dict[str, np.ndarray], tokens: Any, stage: int) -> None:
    if f"stage{stage}/tokens" in values:
        assert_close(tokens, values[f"stage{stage}/tokens"])
        return
    assert_close(tokens.mean(1), values[f"stage{stage}/mean"])
    assert_close(tokens[:, :4, :8], values[f"stage{stage}/head"])
    # One number of thousands: rounding adds up as its square root.
    found = oracle.dot(f"tokens{stage}", tokens)
    np.testing.assert_allclose(found, values[f"stage{stage}/dot"], rtol=0, atol=1e-4)


def check_map(oracle: Any, values: dict[str, np.ndarray], weights: Any, name: str) -> None:
    stage, layer = name.removeprefix("stage").split("/map")
    weights = np.asarray(weights, np.float64)
    assert_close(np.square(weights).sum((2, 3)), values[f"{name}/sumsq"])
    assert_close(np.trace(weights, axis1=2, axis2=3), values[f"{name}/trace"])
    assert_close(weights[:, :, 0, :8], values[f"{name}/row0"])
    assert abs(oracle.dot(f"map{stage}.{layer}", weights) - values[f"{name}/dot"]) < 1e-6
    if f"{name}/full" in values:
        assert_close(weights[0], values[f"{name}/full"])


def check_gradients(oracle: Any, recorded: Any, gradients: dict[str, np.ndarray]) -> None:
    names = list(recorded.facts["shapes"])
    norms = recorded.values["grad_norms"]
    found = [np.linalg.norm(gradients[name].ravel().astype(np.float64)) for name in names]
    # Gradients of the keys' biases are zero but for rounding.
    np.testing.assert_allclose(found, norms, rtol=GRADIENT_TOLERANCE, atol=1e-7)
    dots = [oracle.dot(f"grad/{name}", gradients[name]) for name in names]
    scale = norms / np.sqrt([gradients[name].size for name in names])
    errors = np.abs(np.subtract(dots, recorded.values["grad_dots"]))
    assert (errors <= GRADIENT_TOLERANCE * scale * 4 + 1e-7).all()


@pytest.mark.parametrize(
    "tag",
    [pytest.param(tag, marks=marks(tag)) for tag in TAGS],
)
def test_forward_and_gradients_equal_the_independent_implementation(tag: str, oracle: Any) -> None:
    recorded = oracle.network(tag)
    config, values = recorded.config, recorded.values
    graphdef, _ = abstract_model(config, FLOAT32)
    norm = config.pool_norm == "batch"
    params, statistics = parameters.separate(fit(match(recorded.file, config)))

    def loss(params: parameters.Params, images: jax.Array) -> Any:
        model = parameters.merge(graphdef, parameters.join(params, statistics))
        logits, captured = model(images, capture=("stages", "attention"))
        trained, batch = logits, {}
        if norm:
            trained, batch = model(images, train=True, capture=("batch_statistics",))
        smooth = cross_entropy(trained, 0.1)
        return cross_entropy(trained), (logits, captured, trained, batch, smooth)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, aux), gradients = run(params, oracle.images(config))
    logits, captured, trained, batch, smooth = aux

    assert_close(logits, values["logits"])
    for stage in range(len(config.stage_widths)):
        check_tokens(oracle, values, captured[f"stage{stage}/tokens"], stage)
    maps = {name.rsplit("/", 1)[0] for name in values if "/map" in name}
    for name in maps:
        check_map(oracle, values, captured[f"{name.replace('map', 'block')}/attention"], name)
    assert_close(total, values["loss"])
    assert_close(smooth, values["loss_smooth"])
    everything = parameters.join(gradients, statistics)
    check_gradients(oracle, recorded, to_torch(everything, config, "torch"))
    if norm:
        assert_close(trained, values["train_logits"])
        updated = parameters.join(params, parameters.update_statistics(statistics, batch))
        buffers = to_torch(updated, config, "torch")
        for name in recorded.facts["buffers"]:
            assert_close(buffers[name], values[f"updated/{name}"])


@pytest.mark.parametrize(
    ("tag", "size"),
    [
        pytest.param(tag, size, marks=marks(tag) if "@" in tag else [])
        for tag, sizes in RESIZED.items()
        for size in sizes
    ],
)
def test_positions_of_another_size_are_resized(tag: str, size: str, oracle: Any) -> None:
    recorded, values = oracle.network(tag), oracle.values(f"{tag}->{size}")
    height, width = map(int, size.split("x"))
    config = dataclasses.replace(recorded.config, image_size=(height, width))
    # A file without a card is taken for one of square images.
    card = make_card("psvit_1d_tiny", recorded.config, source="generated")
    file = dataclasses.replace(recorded.file, card=card)
    params = fit(match(file, config))
    found = to_torch(params, config, "torch")
    table: Table = table_of(config)
    for stage in range(len(table.positions)):
        positions = found[f"pos_embed.{stage}"]
        if f"pos_embed.{stage}" in values:
            assert_close(positions, values[f"pos_embed.{stage}"])
        else:
            dot = oracle.dot(f"pos{stage}", positions)
            assert abs(dot - values[f"pos_embed.{stage}/dot"]) < 1e-5
            corner = values[f"pos_embed.{stage}/corner"]
            assert_close(positions[0][tuple(slice(side) for side in corner.shape)], corner)
    graphdef, _ = abstract_model(config, FLOAT32)
    run = jax.jit(lambda params, images: parameters.merge(graphdef, params)(images))
    assert_close(run(params, oracle.images(config)), values["logits"])


@pytest.mark.parametrize("tag", TAGS)
def test_torch_names_and_shapes_are_those_of_the_recorded_files(tag: str, oracle: Any) -> None:
    recorded = oracle.network(tag)
    table = table_of(recorded.config)
    _, shapes = abstract_model(recorded.config, FLOAT32)
    found = {
        name: list(row.file_shape(shapes[row.path], "torch"))
        for name, row in table.by_name("torch").items()
    }
    assert found == {**recorded.facts["shapes"], **recorded.facts["buffers"]}
    buffers = recorded.facts["buffers"]
    assert [name for name in found if name not in buffers] == list(recorded.facts["shapes"])


@pytest.mark.parametrize("tag", ["t1d_bn", "t2d"])
def test_a_torch_file_is_written_as_it_was_read(tag: str, oracle: Any) -> None:
    recorded = oracle.network(tag)
    written = to_torch(fit(match(recorded.file, recorded.config)), recorded.config, "torch")
    assert written.keys() == recorded.file.tensors.keys()
    for name, value in recorded.file.tensors.items():
        np.testing.assert_array_equal(written[name], value)


def test_the_converter_reads_and_writes_torch_files(oracle: Any, tmp_path: Path) -> None:
    recorded = oracle.network("psvit_1d_tiny16@224")
    source, ours, back = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.pth"))
    safetensors.numpy.save_file(recorded.file.tensors, source)
    assert convert.run([f"--input={source}", f"--output={ours}"]) == 0
    assert convert.run([f"--input={ours}", f"--output={back}", "--to=torch"]) == 0
    written = read(back)
    assert list(written.tensors) == list(recorded.facts["shapes"])
    for name, value in recorded.file.tensors.items():
        np.testing.assert_array_equal(written.tensors[name], value)
    assert read(ours).card["model"] == "psvit_1d_tiny"
