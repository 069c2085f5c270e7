"""The mesh that all devices form, and where arrays live on it.

One mesh ("data", "fsdp") over all devices of all processes. Batches are split over both axes;
parameters are replicated, or, with fsdp > 1, their large axes are split over "fsdp". The compiler
places the collectives (`jax.jit` with `NamedSharding` on an Auto mesh).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"
# Smaller arrays cost more to gather than they save: biases, norms, class tokens.
MIN_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices of all processes, `fsdp` of them to a parameter shard group.

    Args:
      fsdp: devices of a shard group.
      devices: the devices; None for those that are there.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    # In the order of processes: the rows that one feeds are contiguous in the global batch.
    # `jax.make_mesh` follows the wiring instead, and refuses several slices or GPU hosts.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) % fsdp:
        raise ValueError(
            f"fsdp={fsdp} does not divide the {len(devices)} devices; choose a divisor of "
            f"{len(devices)}"
        )
    return Mesh(
        np.asarray(devices).reshape(-1, fsdp),
        (DATA_AXIS, FSDP_AXIS),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def platform(mesh: Mesh) -> str:
    """Of a mesh's devices: "cpu", "gpu", "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, FSDP_AXIS)))


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding per array of a (possibly abstract) tree, by size alone.

    Arrays of at least `MIN_SHARDED_SIZE` elements are split along their longest axis that "fsdp"
    divides; all others are replicated. The optimizer's moments have their parameters' shapes, so
    they follow the same rule.
    """
    fsdp = mesh.shape[FSDP_AXIS]

    def rule(leaf: Any) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp > 1 and divisible and np.prod(leaf.shape) >= MIN_SHARDED_SIZE:
            spec[max(divisible, key=lambda axis: leaf.shape[axis])] = FSDP_AXIS
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, tree)


def shard(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A global array from a whole one that every process holds alike."""
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def check_batch_size(name: str, batch_size: int, devices: int | None = None) -> None:
    """Refuses a global batch that the devices, so many or those that are there, cannot share
    evenly.

    Raises:
      ValueError: naming the option and the nearest sizes that would do.
    """
    devices = devices or jax.device_count()
    if batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise ValueError(
            f"{name}={batch_size} cannot be split over {devices} devices; use a multiple, "
            f"e.g. {near}"
        )


def to_global(mesh: Mesh, local: Any) -> Any:
    """Global arrays, split over the batch, from the rows this process holds (a tree of NumPy)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)
