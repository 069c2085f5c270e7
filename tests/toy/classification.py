"""An experiment of classification on the toy data set: tests/tiny.py on two colours."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

import pit_jax

TINY = Path(pit_jax.__file__).parents[1] / "tests" / "tiny.py"


def get_config() -> ConfigDict:
    config = runpy.run_path(str(TINY))["get_config"]()
    config.duration = "1 epoch"
    config.data.name = "colours"
    config.data.train_split = config.data.eval_split = "all"
    config.optimizer.warmup = "0 steps"
    config.tensorboard = False
    return config
