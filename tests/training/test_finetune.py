"""Starting from trained weights: adapted shapes, frozen parts, slower layers."""

import contextlib
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from pit_jax.models import parameters, zoo
from pit_jax.tasks.experiments import prepare
from pit_jax.training import start
from pit_jax.training.checkpoints import Checkpoints
from pit_jax.training.errors import TrainingError
from pit_jax.training.setup import Experiment
from pit_jax.weights.cards import make_card
from pit_jax.weights.read import read
from pit_jax.weights.verify import reference_model
from pit_jax.weights.write import write_weights


@pytest.fixture
def larger(tmp_path: Path, config: ConfigDict) -> Path:
    """Weights of the same network for images of 16 x 16 pixels and three classes."""
    options = {**config.model.options.to_dict(), "image_size": 16, "num_classes": 3}
    model_config = zoo.model_config("pit_ti", **options)
    values = parameters.split(zoo.build(model_config, seed=1))[1]
    path = tmp_path / "larger.safetensors"
    write_weights(path, values, make_card("pit_ti", model_config, source="a test"))
    return path


def updates(setup: Experiment) -> dict[str, np.ndarray]:
    """Updates of the optimizer for a gradient of ones, by parameter."""
    params, _ = parameters.separate(setup.abstract)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)
    found, _ = setup.optimizer.update(ones, setup.optimizer.init(ones), ones)
    return {path: np.asarray(leaf) for path, leaf in parameters.flatten(found).items()}


def test_positions_are_resized_the_head_replaced_and_both_announced(
    larger: Path, config: ConfigDict, workdir: Path, caplog: pytest.LogCaptureFixture
):
    config.init_from, config.init_head = str(larger), "new"
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        found = parameters.flatten(prepare(config, workdir).task.initial_values())
    assert found["embedding/position"].shape == (1, 4, 4, 8)
    assert found["head/kernel"].shape == (16, 10)
    stored = read(larger).tensors
    np.testing.assert_array_equal(found["pool0/fc/kernel"], stored["pool0/fc/kernel"])
    assert "starting from the weights" in caplog.text
    assert "positions resized from 8 x 8 to 4 x 4" in caplog.text
    assert "its head for 3 classes is left out, fresh head for 10" in caplog.text


def test_a_head_of_other_classes_names_the_option(larger: Path, config: ConfigDict, workdir: Path):
    config.init_from = str(larger)
    with pytest.raises(TrainingError, match=r"head is for 3 .*; here --config\.init_head=new"):
        prepare(config, workdir).task.initial_values()


def test_a_torch_file_is_what_training_starts_from(
    config: ConfigDict, tmp_path: Path, workdir: Path, caplog: pytest.LogCaptureFixture
):
    """The state before the first step computes the same as timm's model with that file."""
    config.init_from = str(tmp_path / "tiny.pth")
    setup = prepare(config, workdir)
    torch.manual_seed(0)
    reference = reference_model(setup.task.network)
    torch.save(reference.state_dict(), config.init_from)
    saved = Checkpoints(workdir, keep=1)
    with caplog.at_level(logging.INFO, logger="pit_jax"), contextlib.closing(saved):
        state, _ = start.start_state(setup, saved)
    assert f"starting from the weights {config.init_from}" in caplog.text
    images = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype("f")
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    for values in jax.device_get((state.params, state.ema)):
        model = parameters.merge(setup.task.model()[0], values)
        np.testing.assert_allclose(jax.jit(model)(images), expected, rtol=1e-4, atol=1e-5)


def test_frozen_parts_do_not_move(config: ConfigDict, workdir: Path):
    config.optimizer.frozen = ("embedding", "class_token", "stage0")
    for path, update in updates(prepare(config, workdir)).items():
        still = path.startswith(("embedding/", "stage0/")) or path == "class_token"
        assert np.any(update) != still, path


def test_the_earlier_a_layer_the_slower_it_learns(config: ConfigDict, workdir: Path):
    even = updates(prepare(config, workdir / "even"))
    config.optimizer.layer_decay = 0.5
    slower = updates(prepare(config, workdir / "decayed"))
    ratio = {path: float(np.mean(slower[path] / even[path])) for path in even}
    assert ratio["head/kernel"] == pytest.approx(1.0)
    assert ratio["stage1/block0/mlp/fc1/kernel"] == pytest.approx(0.5)
    assert ratio["stage0/block0/mlp/fc1/kernel"] == pytest.approx(0.25)
    assert ratio["embedding/conv/kernel"] == pytest.approx(0.125)
