"""Weights files and run directories that earlier code wrote still load and resume.

`fixtures/before_house/` was written by version 0.1.0 at commit 463bf3d, before the package was
divided into floors: the run of `tests/tiny.py` with `tensorboard=False`, interrupted after
its second epoch, and the weights that it ends with; a ViT and a RegNet of some hundred parameters.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

import pit_jax
from pit_jax.models import parameters
from pit_jax.tasks import experiments


@pytest.fixture(scope="session")
def earlier(data_dir: Path) -> Path:
    return data_dir / "before_house"


@pytest.mark.parametrize("name", ["run", "vit_ti", "regnety_160"])
def test_a_weights_file_loads_bit_for_bit(earlier: Path, name: str):
    file = earlier / f"{name}.safetensors"
    found = parameters.flatten(parameters.split(pit_jax.load_model(file))[1])
    expected = safetensors.numpy.load_file(file)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_an_interrupted_run_continues_to_the_same_weights(
    earlier: Path, tmp_path: Path, config: ConfigDict
):
    with tarfile.open(earlier / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    config.tensorboard = False
    result = experiments.train(config, tmp_path / "run")
    assert result.step == 9
    expected = safetensors.numpy.load_file(earlier / "run.safetensors")
    found = safetensors.numpy.load_file(result.weights)
    for path, value in expected.items():
        # Machines differ in the last bits of a sum; after three steps of AdamW by little more.
        np.testing.assert_allclose(found[path], value, rtol=0, atol=1e-5)
    before = json.loads((earlier / "result.json").read_text())["metrics"]
    assert result.metrics["test/top1"] == before["test_top1"]
    np.testing.assert_allclose(result.metrics["test/loss"], before["test_loss"], rtol=1e-5)


def test_the_result_of_an_earlier_run_is_told_in_the_words_of_now(
    earlier: Path, tmp_path: Path, config: ConfigDict
):
    """A finished run is only reported; its options and metrics had other names."""
    with tarfile.open(earlier / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copy(earlier / "result.json", tmp_path / "run")
    config.tensorboard = False
    result = experiments.train(config, tmp_path / "run")
    assert str(result).startswith("done: step=9 test/top1=0.1892 ")
