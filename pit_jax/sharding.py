"""The device mesh, and how arrays are placed on it.

One mesh ("data", "fsdp") spans all devices of all processes. Batches are split over both axes.
Parameters are replicated; with fsdp > 1 their large axes are split over "fsdp". The compiler
inserts the collectives (`jax.jit` with `NamedSharding` on an Auto mesh).
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
    """Makes the mesh over all devices of all processes.

    Args:
      fsdp: devices that share one copy of the parameters.
      devices: the devices; None for all that JAX finds.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    # Sorted by process, so that the rows one process feeds are contiguous in the global batch.
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
    """Returns the platform of a mesh's devices: "cpu", "gpu", "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding by which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, FSDP_AXIS)))


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns a sharding per array of a (possibly abstract) tree, by size alone.

    Arrays of at least `MIN_SHARDED_SIZE` elements are split along their longest axis that "fsdp"
    divides; all others are replicated. The optimizer's moments have the shapes of their parameters
    and so follow the same rule.
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
    """Makes a global array from a whole one that is the same on every process."""
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def check_batch_size(name: str, batch_size: int, devices: int | None = None) -> None:
    """Refuses a global batch that the devices cannot share evenly.

    Args:
      name: of the option, for the message.
      batch_size: images of the global batch.
      devices: number of devices; None for those that JAX finds.

    Raises:
      ValueError: the message names the option and the nearest sizes that are possible.
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
    """Makes global arrays, split over the batch, from this process's rows (a tree of NumPy)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)
