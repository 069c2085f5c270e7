"""The smallest real experiment: an eighth of the digits, a PiT of a few thousand parameters."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from pit_jax.training import loop
from pit_jax.training.config import default_config


def tiny_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 32
    config.eval_batch_size = 16
    config.duration = "3 epochs"
    config.log_every = "2 steps"
    config.ema_decay = 0.9
    config.augment.flip_probability = 0.0
    config.model.name = "pit_ti"
    config.model.image_size = (8, 8)
    config.model.dtype = "float32"
    config.model.drop_path_rate = 0.1
    config.model.options = {
        "patch_size": 2,
        "stride": 2,
        "widths": (8, 16),
        "depths": (1, 1),
        "heads": (1, 2),
    }
    config.data.name = "digits"
    config.data.train_split = "train[:100]"
    config.data.eval_split = "test[:37]"
    config.data.eval_protocol = "resize"
    config.optimizer.base_learning_rate = 0.1
    config.optimizer.warmup = "1 epoch"
    return config


@pytest.fixture
def config() -> ConfigDict:
    return tiny_config()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an uninterrupted run; to be read, or copied first."""
    workdir = tmp_path_factory.mktemp("finished")
    loop.train(tiny_config(), workdir)
    return workdir
