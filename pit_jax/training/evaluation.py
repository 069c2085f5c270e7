"""Exact evaluation: every example of a split counted once, whatever the batch and the devices.

Two ways to metrics. Running sums stay on the devices and cross to the host once. Outputs that are
compared on the host, such as boxes or ranks over the whole split, are gathered batch by batch.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pit_jax import processes, sharding
from pit_jax.models import parameters
from pit_jax.ops import lowerings

Sums = dict[str, jax.Array]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class EvaluationStep:
    """An evaluation by running sums, as two pure functions.

    Attributes:
      add: (parameters, global batch, sums so far) to the sums with this batch.
      zeros: makes the sums of no batch.
    """

    add: Callable[[parameters.Params, Batch, Sums], Sums]
    zeros: Callable[[], Sums]


def jitted(step: EvaluationStep, mesh: Mesh) -> Any:
    """The step as it runs on a mesh; the sums given to it are consumed."""
    platform = sharding.platform(mesh)
    return jax.jit(lowerings.compiling_for(platform)(step.add), donate_argnums=2)


def sum_over(
    step: EvaluationStep, mesh: Mesh, batches: Iterable[Any]
) -> Callable[[parameters.Params], dict[str, float]]:
    """A function from parameters to the sums over one pass, on the host.

    Args:
      step: adds a batch.
      mesh: the devices.
      batches: this process's rows of the batches, iterated anew at each call.
    """
    add = jitted(step, mesh)

    def evaluate(params: parameters.Params) -> dict[str, float]:
        sums = jax.device_put(step.zeros(), sharding.replicated(mesh))
        for batch in batches:
            sums = add(params, sharding.to_global(mesh, batch), sums)
        return {name: value.item() for name, value in jax.device_get(sums).items()}

    return evaluate


def outputs_over(
    step: Callable[[parameters.Params, Batch], Any], mesh: Mesh, batches: Iterable[Any]
) -> Callable[[parameters.Params], Iterator[Any]]:
    """A function from parameters to the outputs for every batch of one pass, whole and in order, as
    NumPy arrays on every process.

    Args:
      step: (parameters, global batch) to a tree of arrays that begin with the batch axis.
      mesh: the devices.
      batches: this process's rows of the batches, iterated anew at each call.
    """
    rows = sharding.batch_sharding(mesh)
    run = jax.jit(lowerings.compiling_for(sharding.platform(mesh))(step), out_shardings=rows)

    def evaluate(params: parameters.Params) -> Iterator[Any]:
        for batch in batches:
            outputs = run(params, sharding.to_global(mesh, batch))
            yield jax.tree.map(np.asarray, processes.gather(outputs))

    return evaluate
