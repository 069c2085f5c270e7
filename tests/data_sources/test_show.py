"""The picture of a batch."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from pit_jax.data import show

CONFIG = Path(__file__).parents[1] / "training" / "tiny.py"


@pytest.fixture
def config() -> ConfigDict:
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.augment.mixup_alpha = 0.8
    config.augment.mix_group = 16
    return config


def test_the_second_of_two_rows_is_mixed(config: ConfigDict, tmp_path: Path):
    show.show(config, tmp_path / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    height = picture.shape[0] // 8
    differing = np.abs(picture[height : 2 * height] - picture[:height]).mean()
    assert differing > 1
    config.augment.mixup_alpha = 0.0
    show.show(config, tmp_path / "plain.png")
    plain = np.asarray(Image.open(tmp_path / "plain.png").convert("RGB")).astype(int)
    assert np.abs(plain - picture).max() > 50


def test_a_label_names_the_classes_above_the_smoothing():
    smoothed = np.full(10, 0.01)
    assert show.label(smoothed + 0.9 * np.eye(10)[3]) == "3 (0.91)"
    mixed = smoothed + 0.6 * np.eye(10)[3] + 0.3 * np.eye(10)[7]
    assert show.label(mixed) == "3 (0.61), 7 (0.31)"


def test_a_picture_that_cannot_be_written_is_named(config: ConfigDict, tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot write --out=.*No such file.*choose"):
        show.show(config, tmp_path / "nowhere" / "grid.png")
