"""Exact evaluation: every example of a split counts once, for any batch size and device count.

A task computes its metrics in one of two ways. Running sums stay on the devices and are fetched
once. Outputs that are compared on the host, such as boxes, are gathered batch by batch.
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
      add: maps (parameters, global batch, sums so far) to the sums including this batch.
      zeros: returns the sums before the first batch.
    """

    add: Callable[[parameters.Params, Batch, Sums], Sums]
    zeros: Callable[[], Sums]


def jitted(step: EvaluationStep, mesh: Mesh) -> Any:
    """Jits the step for a mesh; it donates the sums it is given."""
    platform = sharding.platform(mesh)
    return jax.jit(lowerings.compiling_for(platform)(step.add), donate_argnums=2)


def sum_over(
    step: EvaluationStep, mesh: Mesh, batches: Iterable[Any]
) -> Callable[[parameters.Params], dict[str, float]]:
    """Returns a function from parameters to the sums over one pass, on the host.

    Args:
      step: the evaluation's functions.
      mesh: the devices.
      batches: this process's rows of the batches; each call iterates over them once.
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
    """Returns a function from parameters to an iterator over the outputs of one pass: per global
    batch, in order, a tree of NumPy arrays (B, ...) on every process.

    Args:
      step: maps (parameters, global batch) to a tree of arrays (B, ...).
      mesh: the devices.
      batches: this process's rows of the batches; each call iterates over them once.
    """
    rows = sharding.batch_sharding(mesh)
    run = jax.jit(lowerings.compiling_for(sharding.platform(mesh))(step), out_shardings=rows)

    def evaluate(params: parameters.Params) -> Iterator[Any]:
        for batch in batches:
            outputs = run(params, sharding.to_global(mesh, batch))
            yield jax.tree.map(np.asarray, processes.gather(outputs))

    return evaluate
