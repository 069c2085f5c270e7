"""Experiments from configurations: the trainer's functions for the task that `config.task` names.

config = default_config()
config.model.name = "pit_ti"
result = train(config, "runs/first")
"""

import os

from jax.sharding import Mesh
from ml_collections import config_dict

from pit_jax import options
from pit_jax.option_dict import to_config_dict
from pit_jax.tasks import registry
from pit_jax.training import loop, setup
from pit_jax.training.config import TrainConfig
from pit_jax.training.task import Task


def default_config(task: str = "classification") -> config_dict.ConfigDict:
    """The defaults of a task's options, as a ConfigDict locked to its keys and types.

    Raises:
      ValueError: the task is unknown.
    """
    config = to_config_dict(registry.find(task).config_class)
    config.task = task
    return config


def parse(config: config_dict.ConfigDict) -> TrainConfig:
    """Converts a configuration to checked options.

    Raises:
      OptionsError: lists every unknown name, wrong type and value out of range.
      ValueError: the task is unknown.
    """
    parsed: TrainConfig = options.parse(task_of(config).config_class, config)
    return parsed


def prepare(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    allow_config_changes: bool = False,
) -> setup.Experiment:
    """Checks an experiment and opens its data; see `training.setup.prepare`."""
    return setup.prepare(
        task_of(config), config, workdir, allow_config_changes=allow_config_changes
    )


def make_experiment(
    config: config_dict.ConfigDict, mesh: Mesh, *, trains: bool = True
) -> setup.Experiment:
    """Makes an experiment to compile, without data; see `training.setup.make_experiment`."""
    return setup.make_experiment(task_of(config), config, mesh, trains=trains)


def train(
    config: config_dict.ConfigDict, workdir: str | os.PathLike[str]
) -> loop.Result | loop.Interrupted:
    """Trains an experiment; resumes it if its directory has checkpoints.

    Raises:
      ValueError: the experiment cannot run; nothing has been computed.
      TrainingError: the loss is not finite, or the run cannot continue for another reason.
      CheckpointError: a checkpoint cannot be written, or is of another model.
    """
    return loop.run(prepare(config, workdir))


def task_of(config: config_dict.ConfigDict) -> type[Task]:
    """Looks up the task that a configuration names.

    Raises:
      ValueError: no task has that name.
    """
    return registry.find(config.get("task", "classification"))
