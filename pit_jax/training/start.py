"""Start of a run: initial or restored state, constants on the devices, compiled steps."""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax

from pit_jax import sharding
from pit_jax.models import parameters
from pit_jax.ops import lowerings
from pit_jax.training.checkpoints import Checkpoints, Progress
from pit_jax.training.durations import format_seconds
from pit_jax.training.recovery import restore_newest
from pit_jax.training.setup import Experiment
from pit_jax.training.state import TrainState, abstract_state, create_state
from pit_jax.training.step import make_train_step
from pit_jax.training.task import Params, Shapes

logger = logging.getLogger(__name__)


def overview(experiment: Experiment) -> None:
    """Logs parameters, task, length of the run and devices."""
    from clu import parameter_overview

    trained, _ = parameters.separate(experiment.abstract)
    logger.info(
        "parameters of %s:\n%s",
        experiment.config.model.name,
        parameter_overview.get_parameter_overview(trained, include_stats=False),
    )
    logger.info(
        "%s parameters, %s; %d steps of %d examples on %d %s device(s) of %d process(es)",
        f"{parameters.count(trained):,}",
        experiment.task.summary(),
        experiment.steps.total,
        experiment.config.batch_size,
        jax.device_count(),
        jax.devices()[0].device_kind,
        jax.process_count(),
    )


def start_state(experiment: Experiment, saved: Checkpoints) -> tuple[TrainState, Progress]:
    """State and progress of the newest readable checkpoint, or of the task's initial values."""
    config = experiment.config
    ema = config.ema_decay is not None
    abstract = abstract_state(experiment.abstract, experiment.optimizer, experiment.mesh, ema=ema)
    restored = restore_newest(saved, abstract, seed=config.seed)
    if restored is not None:
        logger.info("resuming after step %d of %s", int(restored[0].step), experiment.workdir)
        return restored
    values = experiment.task.initial_values()
    state = create_state(values, experiment.optimizer, experiment.mesh, ema=ema, seed=config.seed)
    return state, {}


def constants(experiment: Experiment) -> Params:
    """Places the task's constants on the devices."""
    values = experiment.task.constants()
    return jax.tree.map(sharding.shard, values, sharding.state_shardings(experiment.mesh, values))


def abstract_batches(experiment: Experiment) -> tuple[Shapes, ...]:
    """Shapes and shardings of the global training batches."""
    shapes = experiment.task.batch_shapes(experiment.config.batch_size)
    return tuple(placed(batch, experiment) for batch in shapes)


def placed(batch: Shapes, experiment: Experiment) -> Shapes:
    """Adds to the shapes of a global batch its sharding over the experiment's devices."""
    rows = sharding.batch_sharding(experiment.mesh)
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows)
        for name, leaf in batch.items()
    }


def jitted_step(experiment: Experiment, state: Any) -> Any:
    """Jits the training step; it donates the state it is given.

    Args:
      experiment: the experiment.
      state: a `TrainState` of arrays, or of shapes with shardings.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(experiment.task, experiment.optimizer, experiment.schedule)
    return jax.jit(
        lowerings.compiling_for(sharding.platform(experiment.mesh))(step),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(experiment.mesh)),
    )


def compile_step(experiment: Experiment, state: Any, constants: Any) -> Callable[..., Any]:
    """Compiles the training step ahead of time, for every batch shape of the task.

    Args:
      experiment: the experiment.
      state: a `TrainState` of arrays, or of shapes with shardings.
      constants: constants of the task, as arrays or shapes with shardings.

    Returns:
      A function from (state, constants, batch) to (state, metrics).
    """
    began = time.monotonic()
    step = jitted_step(experiment, state)
    compiled = {
        _shapes(batch): step.lower(state, constants, batch).compile()
        for batch in abstract_batches(experiment)
    }
    logger.info("compiled the training step in %s", format_seconds(time.monotonic() - began))
    if len(compiled) == 1:
        return next(iter(compiled.values()))

    def step_by_shape(state: Any, constants: Any, batch: Any) -> Any:
        shapes = _shapes(batch)
        if shapes not in compiled:
            raise ValueError(
                f"no step is compiled for a batch of {dict(shapes)}: its shapes are not among "
                "those of `Task.batch_shapes`"
            )
        return compiled[shapes](state, constants, batch)

    return step_by_shape


def _shapes(batch: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((name, tuple(leaf.shape)) for name, leaf in batch.items()))
