"""Evaluation: ranks, padding and sums; which data is accepted for given weights."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.models import parameters, zoo
from pit_jax.tasks.classification.config import Protocol
from pit_jax.tasks.classification.evaluation import evaluate_weights, evaluation_step, zero_sums
from pit_jax.weights.cards import make_card
from pit_jax.weights.read import read
from pit_jax.weights.write import write_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ant", "bee", "cat"):
        (tmp_path / "pictures/val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures/val" / name / "x.png")
    return tmp_path / "pictures"


def evaluate(
    config: ConfigDict, folder: Path, *, classes: int, trained_on: str = ""
) -> dict[str, float]:
    """Evaluates the model of the smallest experiment, with `classes` classes, on the folder."""
    options = {**config.model.options.to_dict(), "image_size": 8, "num_classes": classes}
    model_config = zoo.model_config("pit_ti", **options)
    weights = folder.with_name("model.safetensors")
    card = make_card("pit_ti", model_config, source="a test")
    if trained_on:
        card["evaluation"] = {"data": trained_on}
    write_weights(weights, parameters.split(zoo.build(model_config))[1], card)
    protocol = Protocol(data=f"folder:{folder}", split="val", crop="resize")
    return evaluate_weights(read(weights), protocol, batch_size=8).metrics


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (2, "has 2 classes, .*/val has 3: choose data with the classes"),
        (5, "has 5 classes, .*/val has 3: the labels of a folder number its own classes"),
    ],
)
def test_a_folder_of_other_classes_is_refused(
    config: ConfigDict, folder: Path, classes: int, message: str
):
    with pytest.raises(ValueError, match=message):
        evaluate(config, folder, classes=classes)


def test_a_folder_with_directories_for_all_classes_is_evaluated(config: ConfigDict, folder: Path):
    for name in ("ant", "bee", "cat", "dog", "eel"):
        (folder / "train" / name).mkdir(parents=True)
    assert evaluate(config, folder, classes=5)["count"] == 3


def test_a_head_wider_than_the_data_is_evaluated_where_it_was_trained(
    config: ConfigDict, folder: Path
):
    assert evaluate(config, folder, classes=5, trained_on=f"folder:{folder}")["count"] == 3


def network() -> tuple[Any, parameters.Params]:
    sizes = {"image_size": 8, "patch_size": 2, "stride": 2, "num_classes": 7}
    options = {"widths": (8, 16), "depths": (1, 1), "heads": (1, 2)}
    return parameters.split(zoo.build(zoo.model_config("pit_ti", **sizes, **options)))


def test_evaluation_ranks_nan_last_and_ties_as_argmax():
    class Given:
        """Stands for a model: its images are its logits."""

        def __call__(self, images: jax.Array) -> jax.Array:
            return logits

    logits = jnp.array([[1.0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [jnp.nan] * 7])
    data = {"image": jnp.zeros((3, 8, 8, 3), jnp.uint8), "label": jnp.array([0, 1, 0])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pit_jax.models.parameters.merge", lambda graphdef, params: Given())
        sums = evaluation_step(None).add({}, data, zero_sums())
    assert sums["top1"] == 1
    assert sums["top5"] == 2


def test_evaluation_counts_ranks_and_leaves_padding_out():
    graphdef, params = network()
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 7, 12).astype(np.int32),
    }
    data["label"][[3, 11]] = -1
    sums = jax.jit(evaluation_step(graphdef).add)(params, data, zero_sums())
    sums = jax.jit(evaluation_step(graphdef).add)(params, data, sums)
    scaled = (data["image"] / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    model = parameters.merge(graphdef, params)
    logits = np.asarray(jax.jit(model)(scaled.astype(np.float32)))
    valid = data["label"] >= 0
    order = np.argsort(-logits[valid], axis=1)
    hits = order == data["label"][valid][:, None]
    assert sums["count"] == 2 * 10
    assert sums["top1"] == 2 * hits[:, 0].sum()
    assert sums["top5"] == 2 * hits[:, :5].sum()
    shifted = logits[valid] - logits[valid].max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    expected = -2 * log_p[np.arange(10), data["label"][valid]].sum()
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
