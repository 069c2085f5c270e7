"""On which data weights are evaluated, and on which not."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from pit_jax.models import parameters, zoo
from pit_jax.training.evaluation import Protocol, evaluate_weights
from pit_jax.weights.cards import make_card
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
    """The model of the smallest experiment, with so many classes, on the folder."""
    options = {**config.model.options.to_dict(), "image_size": 8, "num_classes": classes}
    model_config = zoo.model_config("pit_ti", **options)
    weights = folder.with_name("model.safetensors")
    card = make_card("pit_ti", model_config, source="a test")
    if trained_on:
        card["evaluation"] = {"data": trained_on}
    write_weights(weights, parameters.split(zoo.build(model_config))[1], card)
    protocol = Protocol(data=f"folder:{folder}", split="val", crop="resize")
    return evaluate_weights(weights, protocol=protocol, batch_size=8)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (2, "tells 2 classes apart, .*/val has 3: choose data with the classes"),
        (5, "tells 5 classes apart, .*/val has 3: the labels of a folder number its own classes"),
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
