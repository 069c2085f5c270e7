"""One training step, as a pure function to jit.

    batch -> task.prepare -> model -> task.loss -> gradient -> optimizer -> EMA -> metrics

Randomness is a function of (seed, step): a resumed run draws the same numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pit_jax.models import parameters
from pit_jax.training.state import TrainState
from pit_jax.training.task import Batch, Task

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, parameters.Params, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> TrainStep:
    """Makes the step, which maps (state, constants of the task, global batch) to (next state,
    metrics).

    The metrics are scalars. "loss", the task's own and "gradient_norm" are those of the batch
    before the update. "learning_rate" is that of this update. "skipped" and "skipped_in_a_row"
    count the updates skipped so far.

    Args:
      task: the learning problem: batch, loss, and which parameters move.
      optimizer: optimizer of the parameters, its learning rate included.
      schedule: learning rate by step, for the metrics.
    """
    config = task.config
    graphdef, _ = task.model()

    def train_step(
        state: TrainState, constants: parameters.Params, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        prepare_key, model_key = step_keys(state.seed, state.step)
        inputs = task.prepare(prepare_key, batch)
        (loss, (measured, statistics)), gradient = _gradient(
            task, graphdef, state, constants=constants, inputs=inputs, key=model_key
        )
        norm = optax.tree.norm(gradient)
        moves = task.moves(prepare_key, state.params)
        after = _update(
            optimizer,
            state,
            gradient,
            ema_decay=config.ema_decay,
            statistics=statistics,
            moves=moves,
        )
        if config.on_nonfinite == "skip":
            after = _keep_if(jnp.isfinite(loss) & jnp.isfinite(norm), after, state)
        metrics = {
            **measured,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "skipped": after.skipped[1],
            "skipped_in_a_row": after.skipped[0],
        }
        return after, metrics

    return train_step


def step_keys(seed: int | jax.Array, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of one step: for the preparation of its batch, and for its model."""
    prepare_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return prepare_key, model_key


def loss_function(
    task: Task, graphdef: nnx.GraphDef, statistics: parameters.Params
) -> Callable[..., tuple[jax.Array, tuple[Metrics, Metrics]]]:
    """Makes the function to differentiate, with the rematerialisation of the configuration.

    Returns:
      A function from (params, inputs, key) to (loss, (further metrics, batch statistics)).
    """

    def loss_of(
        params: parameters.Params, inputs: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
        model = parameters.merge(graphdef, parameters.join(params, statistics))
        of_batch: Metrics = {}

        def network(*arrays: Any, capture: tuple[str, ...] = (), **options: Any) -> Any:
            """Calls the model in training mode and keeps the statistics of its batch."""
            wanted = (*capture, "batch_statistics") if statistics else capture
            outputs = model(*arrays, train=True, capture=wanted, **options)
            if not statistics:
                return outputs
            outputs, captured = outputs
            of_batch.update({path: captured.pop(path) for path in parameters.flatten(statistics)})
            return (outputs, captured) if capture else outputs

        loss, measured = task.loss(network, inputs, key)
        return loss, (dict(measured), of_batch)

    if task.config.remat == "none":
        return loss_of
    return jax.checkpoint(loss_of, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)


def _gradient(
    task: Task,
    graphdef: nnx.GraphDef,
    state: TrainState,
    *,
    constants: parameters.Params,
    inputs: Batch,
    key: jax.Array,
) -> Any:
    """((loss, (metrics, statistics)), gradient), averaged over `accumulate` parts of the inputs."""
    loss_of = loss_function(task, graphdef, state.statistics)

    def differentiate(inputs: Batch, key: jax.Array) -> Any:
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        return gradient_of(state.params, task.references(constants, inputs), key)

    parts = task.config.accumulate
    if parts == 1:
        return differentiate(inputs, key)

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, differentiate(*part)), None

    split = jax.tree.map(lambda rows: _interleave(rows, parts), inputs)
    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(differentiate, jax.tree.map(lambda rows: rows[0], split), keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, (split, keys))
    return jax.tree.map(lambda leaf: leaf / parts, sums)


def _interleave(x: jax.Array, parts: int) -> jax.Array:
    """Splits rows (B, ...) into (parts, B / parts, ...)."""
    # Every part takes rows from every device, so that no row moves between devices.
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: parameters.Params,
    *,
    ema_decay: float | None,
    statistics: Metrics,
    moves: parameters.Params | None,
) -> TrainState:
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    if moves is not None:
        params = _where(moves, params, state.params)
        moments = _where(_of_moments(optimizer, moments, moves), moments, state.optimizer)
    ema = state.ema
    if ema_decay is not None:
        ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
    return TrainState(
        step=state.step + 1,
        seed=state.seed,
        params=params,
        statistics=parameters.update_statistics(state.statistics, statistics),
        optimizer=moments,
        ema=ema,
        skipped=state.skipped * jnp.array([0, 1], jnp.int32),
    )


def _where(condition: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(jnp.where, condition, new, old)


def _of_moments(
    optimizer: optax.GradientTransformation, moments: optax.OptState, moves: parameters.Params
) -> Any:
    """Extends `moves` to the optimizer state: moments move with their parameter, counts always."""
    return optax.tree.map_params(
        optimizer, lambda _, move: move, moments, moves, transform_non_params=lambda _: True
    )


def _keep_if(finite: jax.Array, after: TrainState, before: TrainState) -> TrainState:
    """The updated state if everything is finite; else the old one, with the skip counted."""
    skipped = dataclasses.replace(before, step=after.step, skipped=before.skipped + 1)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, skipped)
