"""What training changes from step to step, made sharded from the start."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pit_jax import parallel
from pit_jax.models import params as parameters
from pit_jax.models import zoo


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "optimizer"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes.

    Attributes:
      step: steps done, int32 scalar.
      params: the model's parameters, nested dict of float32 arrays.
      optimizer: the optimizer's own state.
    """

    step: jax.Array
    params: parameters.Params
    optimizer: optax.OptState


def create_state(
    model_config: Any, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
    """Initial state; parameters are drawn on the host and each device is sent its shards."""
    _, params = parameters.split(zoo.build(model_config, seed=seed))
    shardings = parallel.state_shardings(mesh, _shapes(model_config, optimizer))
    params = jax.tree.map(parallel.shard, params, shardings.params)
    optimizer_state = jax.jit(optimizer.init, out_shardings=shardings.optimizer)(params)
    return TrainState(parallel.shard(np.int32(0), shardings.step), params, optimizer_state)


def abstract_state(
    model_config: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, nothing computed: what a restore needs."""
    abstract = _shapes(model_config, optimizer)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        parallel.state_shardings(mesh, abstract),
    )


def _shapes(model_config: Any, optimizer: optax.GradientTransformation) -> Any:
    """A `TrainState` of shapes."""

    def initialise(params: parameters.Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.eval_shape(initialise, zoo.abstract(model_config)[1])
