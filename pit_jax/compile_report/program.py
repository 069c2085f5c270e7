"""Compiles the programs to report on: the trainer's own steps, for devices that need not exist."""

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import config_dict

from pit_jax import sharding
from pit_jax.compile_report import libtpu
from pit_jax.tasks.experiments import make_experiment
from pit_jax.training import evaluation, start
from pit_jax.training.setup import Experiment
from pit_jax.training.state import abstract_state

PROGRAMS = ("train", "inference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled step.

    Attributes:
      experiment: the experiment that the step belongs to.
      program: one of `PROGRAMS`.
      executable: the compiled program; None if it does not fit in memory.
      too_large: the compiler's message if the program does not fit, else None.
      trace_seconds: time until the program went to the compiler.
      compile_seconds: time in the compiler.
      load: load average of the machine after compilation, and number of its cores.
    """

    experiment: Experiment
    program: str
    executable: Any
    too_large: str | None
    trace_seconds: float
    compile_seconds: float
    load: tuple[float, int]

    @property
    def batch_size(self) -> int:
        """Examples per step over all devices."""
        return self.experiment.config.batch_size


def experiment_on(
    config: config_dict.ConfigDict,
    devices: Sequence[jax.Device],
    *,
    batch_size: int | None = None,
    program: str = "train",
) -> Experiment:
    """Makes an experiment for given devices; its data is not needed.

    Args:
      config: options from a config file.
      devices: all devices of the job.
      batch_size: examples per step over all devices; None for the configuration's.
      program: one of `PROGRAMS`.

    Raises:
      ValueError: the configuration is not valid, or not for this number of devices.
    """
    config = config.copy_and_resolve_references()
    chosen = config.batch_size if program == "train" else config.eval_batch_size
    config.batch_size = config.eval_batch_size = batch_size or chosen
    if len(devices) % config.fsdp:
        raise ValueError(
            f"config.fsdp={config.fsdp} does not divide the {len(devices)} devices; choose a "
            f"divisor of {len(devices)}"
        )
    return make_experiment(
        config,
        sharding.make_mesh(config.fsdp, devices),
        trains=program == "train",
    )


def compile_program(experiment: Experiment, program: str) -> Compiled:
    """Compiles the trainer's training step or evaluation step as it would run.

    Removes the schedules that libtpu wrote for an earlier program.

    Args:
      experiment: an experiment from `experiment_on`.
      program: one of `PROGRAMS`.
    """
    libtpu.forget()
    began = time.monotonic()
    lowered = _lower_train(experiment) if program == "train" else _lower_inference(experiment)
    handed = time.monotonic()
    executable, too_large = None, None
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_too_large(str(error)):
            raise
        too_large = str(error)
    return Compiled(
        experiment=experiment,
        program=program,
        executable=executable,
        too_large=too_large,
        trace_seconds=handed - began,
        compile_seconds=time.monotonic() - handed,
        load=(round(os.getloadavg()[0], 1), os.cpu_count() or 1),
    )


def _lower_train(experiment: Experiment) -> jax.stages.Lowered:
    keeps_average = experiment.config.ema_decay is not None
    state = abstract_state(
        experiment.abstract, experiment.optimizer, experiment.mesh, ema=keeps_average
    )
    constants = _sharded(experiment.task.abstract_constants(), experiment)
    # The first of several shapes is the largest.
    batch = start.abstract_batches(experiment)[0]
    return start.jitted_step(experiment, state).lower(state, constants, batch)


def _lower_inference(experiment: Experiment) -> jax.stages.Lowered:
    values = _sharded(experiment.abstract, experiment)
    step, shapes = experiment.task.inference(experiment.config.eval_batch_size)
    batch = start.placed(shapes, experiment)
    everywhere = sharding.replicated(experiment.mesh)
    sums = jax.tree.map(lambda leaf: _place(leaf, everywhere), jax.eval_shape(step.zeros))
    return evaluation.jitted(step, experiment.mesh).lower(values, batch, sums)


def _sharded(values: Any, experiment: Experiment) -> Any:
    shardings = sharding.state_shardings(experiment.mesh, values)
    return jax.tree.map(_place, values, shardings)


def _place(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def is_too_large(complaint: str) -> bool:
    """Whether a compiler's message is of a program that does not fit in a device's memory, rather
    than, for example, of a kernel that does not fit in VMEM.
    """
    return "RESOURCE_EXHAUSTED" in complaint and "memory space vmem" not in complaint


def needed_bytes(complaint: str) -> int | None:
    """Bytes of memory that a program which does not fit needs, from the compiler's message."""
    found = re.search(r"(?:Used |\()([\d.]+)([KMGT]?)(?: of|\) exceeds)", complaint)
    if not found:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(found[1]) * units[found[2]])
