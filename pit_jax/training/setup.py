"""Checks of an experiment, all before anything compiles."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from pit_jax import options, sharding
from pit_jax.files import replace_file
from pit_jax.models import parameters
from pit_jax.training.config import TrainConfig
from pit_jax.training.optimizer import optimizer_of, schedule_of
from pit_jax.training.steps import Steps, steps_of
from pit_jax.training.task import Params, Task
from pit_jax.training.workdir import changes, holds_work, upgraded, versions, writable
from pit_jax.weights.run_directory import CONFIG_FILE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment that has passed all checks; its steps compile from this alone.

    Attributes:
      task: the learning problem, with its network and data.
      mesh: all devices.
      optimizer: optimizer of the parameters, its learning rate included.
      schedule: learning rate by step.
      steps: durations of the run.
      workdir: the run directory, which exists and can be written; None for an experiment that is
        compiled and never run.
    """

    task: Task
    mesh: Mesh
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps: Steps
    workdir: Path | None = None

    @property
    def config(self) -> TrainConfig:
        """Options of the experiment."""
        config: TrainConfig = self.task.config
        return config

    @property
    def abstract(self) -> Params:
        """Shapes of the model's values."""
        return self.task.model()[1]

    @property
    def directory(self) -> Path:
        """The run directory; raises ValueError if there is none."""
        if self.workdir is None:
            raise ValueError("this experiment has no run directory: it was made only to compile")
        return self.workdir


def prepare(
    task: type[Task],
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    allow_config_changes: bool = False,
) -> Experiment:
    """Checks an experiment, opens its data and records it in its directory; computes nothing.

    Args:
      task: the learning problem.
      config: options from a config file, with overrides.
      workdir: the run directory; created if it does not exist.
      allow_config_changes: continue a run of another configuration.

    Raises:
      OptionsError: mistakes in the options, a line each.
      ValueError: the experiment cannot run. The line names the option, what was found and what to
        do.
    """
    parsed = options.parse(task.config_class, config)
    directory = writable(workdir)
    _check_batches(parsed, jax.device_count())
    mesh = sharding.make_mesh(parsed.fsdp)
    opened = task.open(parsed)
    opened.check()
    experiment = dataclasses.replace(_experiment(opened, mesh), workdir=directory)
    _compare(experiment, allow_config_changes)
    return experiment


def make_experiment(
    task: type[Task], config: config_dict.ConfigDict, mesh: Mesh, *, trains: bool = True
) -> Experiment:
    """Makes an experiment to compile: without data, on a mesh of devices that need not exist.

    Args:
      task: the learning problem.
      config: options from a config file, with overrides.
      mesh: a mesh from `sharding.make_mesh`, for `config.fsdp`.
      trains: whether it must be able to train; False for an experiment that is only evaluated.

    Raises:
      ValueError: as `prepare`.
    """
    parsed = options.parse(task.config_class, config)
    _check_batches(parsed, mesh.size)
    opened = task.without_data(parsed)
    if trains:
        opened.check()
    return _experiment(opened, mesh)


def _experiment(task: Task, mesh: Mesh) -> Experiment:
    config: TrainConfig = task.config
    steps = steps_of(config, task.num_examples, task.data)
    _check_gates(config, steps)
    schedule = schedule_of(config, steps)
    trained, _ = parameters.separate(task.model()[1])
    return Experiment(
        task=task,
        mesh=mesh,
        optimizer=optimizer_of(config, schedule, trained),
        schedule=schedule,
        steps=steps,
    )


def _check_batches(config: TrainConfig, devices: int) -> None:
    sharding.check_batch_size("config.eval_batch_size", config.eval_batch_size, devices)
    sharding.check_batch_size("config.batch_size", config.batch_size, devices)
    if config.accumulate > 1:
        part = config.batch_size // config.accumulate
        sharding.check_batch_size("config.batch_size / config.accumulate", part, devices)


def _check_gates(config: TrainConfig, steps: Steps) -> None:
    """Refuses a gate after an epoch without an evaluation."""
    for epoch in config.min_metric_at:
        step = epoch * steps.epoch
        if step > steps.total or (step % steps.evaluate and step != steps.total):
            raise ValueError(
                f"config.min_metric_at names epoch {epoch}, after which there is no evaluation: "
                f"config.duration={config.duration!r}, config.eval_every={config.eval_every!r}"
            )


def record_of(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON values: its configuration, the model built from it, versions."""
    return {
        "config": dataclasses.asdict(experiment.config),
        "model": {
            "name": experiment.config.model.name,
            "options": dataclasses.asdict(experiment.task.network),
        },
        "versions": versions(),
    }


def record(experiment: Experiment) -> None:
    """Stores the experiment in its directory.

    Raises:
      OSError: the file cannot be written.
    """
    if jax.process_index() == 0:
        text = json.dumps(record_of(experiment), indent=2) + "\n"
        replace_file(experiment.directory / CONFIG_FILE, text.encode())


def _compare(experiment: Experiment, allow_changes: bool) -> None:
    """Compares the experiment with the one recorded in its directory, or records it.

    A failed start does not bind the directory to its configuration. All processes of a job decide
    the same: none saves a checkpoint before all have passed this.

    Raises:
      ValueError: the directory belongs to another experiment, whose differing options are listed;
        or the experiment cannot be recorded.
    """
    path = experiment.directory / CONFIG_FILE
    if not path.is_file() or not holds_work(experiment.directory):
        try:
            record(experiment)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
        return
    if allow_changes:
        # Recorded by the loop, once the checkpoint has shown that it fits the new configuration.
        return
    defaults = dataclasses.asdict(type(experiment.config)())
    before = upgraded(json.loads(path.read_text())["config"], defaults)
    differing = changes(before, json.loads(json.dumps(record_of(experiment)))["config"])
    if differing:
        raise ValueError(
            f"{experiment.directory} belongs to another experiment: {'; '.join(differing)}. Use "
            "another --workdir, or --allow_config_changes to continue it with these"
        )
