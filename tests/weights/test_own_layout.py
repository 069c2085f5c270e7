"""A family without torch names writes its files and reads them everywhere."""

import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

import pit_jax
from pit_jax.cli.convert import run
from pit_jax.models import parameters, zoo
from pit_jax.models.family import Family
from pit_jax.tasks import experiments
from pit_jax.tasks.classification.config import Protocol
from pit_jax.tasks.classification.evaluation import evaluate_weights
from pit_jax.weights.cards import make_card
from pit_jax.weights.match import identify
from pit_jax.weights.read import read
from pit_jax.weights.write import write_weights


@pytest.fixture
def weights(toy: Family, tmp_path: Path) -> Path:
    """A file of a toy_b for five classes."""
    config = zoo.model_config("toy_b", num_classes=5, hidden=3)
    path = tmp_path / "toy.safetensors"
    params = parameters.split(zoo.build(config, seed=1))[1]
    write_weights(path, params, make_card("toy_b", config, source="a test"))
    return path


def flat(model: pit_jax.models.zoo.Model) -> dict[str, np.ndarray]:
    return parameters.flatten(jax.device_get(parameters.split(model)[1]))


def test_its_file_loads(weights: Path) -> None:
    model = pit_jax.load_model(weights)
    assert (model.config.hidden, model.config.num_classes) == (3, 5)
    created = pit_jax.create_model("toy_b", weights=weights, num_classes=5, hidden=3)
    loaded = pit_jax.load_weights(weights, model.config)
    for other in (flat(created), parameters.flatten(loaded)):
        for path, value in flat(model).items():
            np.testing.assert_array_equal(other[path], value)


def test_its_head_is_known(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"weights": weights, "hidden": 3}
    with pytest.raises(ValueError, match="its head is for 5 classes, expected 7"):
        pit_jax.create_model("toy_b", num_classes=7, **options)
    with caplog.at_level(logging.WARNING):
        model = pit_jax.create_model("toy_b", num_classes=7, head="new", **options)
        headless = pit_jax.create_model("toy_b", num_classes=0, **options)
    assert "for 5 classes is left out, fresh head for 7" in caplog.text
    assert "for 5 classes is left out, no head" in caplog.text
    assert flat(model)["head/bias"].shape == (7,)
    assert flat(headless).keys() == {"hidden/kernel", "hidden/bias"}
    with pytest.raises(ValueError, match=r"fit toy_s:\n  its card says toy_b with .*den=3"):
        pit_jax.create_model("toy_s", num_classes=5, weights=weights)


def test_a_file_of_torch_is_none_of_its(toy: Family, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"toy_s:\n  2 missing: .*\n  1 unknown: conv\.w"):
        pit_jax.create_model("toy_s", num_classes=5, weights=tmp_path / "x.pth")


def test_it_converts_to_our_files_alone(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "again.safetensors"
    assert run([f"--input={weights}", f"--output={output}"]) == 0
    card = read(output).card
    assert card is not None
    assert (card["model"], card["layout"], card["options"]) == ("toy_b", "pit_jax", {"hidden": 3})
    capsys.readouterr()
    for flags, message in (
        (["--to=torch"], "error: toy_b has no torch layout, so it cannot be written"),
        (["--to=torch", "--layout=timm"], "error: toy_b has no torch layout"),
        (["--verify"], "error: there is no torch reference of this Toy"),
    ):
        assert run([f"--input={weights}", f"--output={output}", *flags]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_its_runs_are_read_and_evaluated(toy: Family, config: ConfigDict, tmp_path: Path) -> None:
    config.model.name = "toy_s"
    config.model.drop_path_rate = 0.0
    config.model.options = {"hidden": 4}
    result = experiments.train(config, tmp_path / "run")
    protocol = Protocol(data="digits", split="test[:37]", crop="resize")
    finished = identify(read(tmp_path / "run"))
    found = evaluate_weights(read(tmp_path / "run"), protocol)
    assert (found.model, found.metrics["count"]) == ("toy_s", 37)
    assert found.metrics["loss"] == pytest.approx(result.metrics["test/loss"], rel=1e-5)
    # An interrupted run has checkpoints alone.
    (tmp_path / "run" / "model.safetensors").unlink()
    interrupted = identify(read(tmp_path / "run"))
    assert interrupted.config == finished.config
    for path, value in finished.file.tensors.items():
        np.testing.assert_array_equal(interrupted.file.tensors[path], value)
