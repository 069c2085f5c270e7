"""The state that training changes from step to step, created sharded."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pit_jax import sharding
from pit_jax.models import parameters


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "seed", "params", "statistics", "optimizer", "ema", "skipped"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes.

    Attributes:
      step: number of steps done, int32 scalar.
      seed: seed of all randomness in steps, int32 scalar. As part of the state, not a constant, it
        lets runs of all seeds share one compiled program.
      params: trained parameters, a nested dict of float32 arrays.
      statistics: running statistics of batch normalisation; {} for a model without any.
      optimizer: state of the optimizer.
      ema: moving average of `params`; {} if none is kept.
      skipped: number of updates skipped in a row, and in total, int32 (2,).
    """

    step: jax.Array
    seed: jax.Array
    params: parameters.Params
    statistics: parameters.Params
    optimizer: optax.OptState
    ema: parameters.Params
    skipped: jax.Array


def initial_state(
    values: parameters.Params, optimizer: optax.GradientTransformation, seed: Any, *, ema: bool
) -> TrainState:
    """Builds the state before the first step from a model's initial values; can be traced."""
    params, statistics = parameters.separate(values)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        statistics=statistics,
        optimizer=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        skipped=jnp.zeros((2,), jnp.int32),
    )


def create_state(
    values: parameters.Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool,
    seed: int,
) -> TrainState:
    """Creates the state before the first step; each device receives only its shards."""
    initialise = functools.partial(initial_state, optimizer=optimizer, ema=ema)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(initialise, values, seed=seed))
    values = jax.tree.map(np.asarray, values)
    placed = jax.tree.map(sharding.shard, values, sharding.state_shardings(mesh, values))
    placed_seed = sharding.shard(np.int32(seed), sharding.replicated(mesh))
    return jax.jit(initialise, out_shardings=shardings)(placed, seed=placed_seed)


def abstract_state(
    values: parameters.Params, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> TrainState:
    """Shapes, dtypes and shardings of the state, with nothing computed."""
    initialise = functools.partial(initial_state, optimizer=optimizer, ema=ema)
    abstract = jax.eval_shape(initialise, values, seed=0)
    return jax.tree.map(_place, abstract, sharding.state_shardings(mesh, abstract))


def _place(leaf: Any, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
