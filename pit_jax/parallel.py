"""Processes, their devices, the mesh they form, and where arrays live on it.

One mesh ("data", "fsdp") over all devices of all processes. Batches are split over both axes;
parameters are replicated, or, with fsdp > 1, their large axes are split over "fsdp". The compiler
places the collectives (`jax.jit` with `NamedSharding` on an Auto mesh).
"""

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

logger = logging.getLogger(__name__)

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"
# Smaller arrays cost more to gather than they save: biases, norms, class tokens.
MIN_SHARDED_SIZE = 2**14


# What launchers leave in the environment of a job that JAX knows how to join.
_CLUSTER_VARIABLES = {
    "SLURM": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_LOCALID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "Kubernetes": ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
    "a TPU slice on Kubernetes": ("TPU_WORKER_HOSTNAMES",),
}


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 1800,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins this process to the others of its job; does nothing for a job of one process.

    To be called before anything touches a device. TPU slices, SLURM, Kubernetes and Open MPI are
    recognised by JAX; on plain hosts the three arguments, or the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, say who is who.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: of the job.
      process_id: of this process, from 0.
      timeout: seconds to wait for the others; whole pods can take many minutes to start.
      heartbeat_timeout: seconds after which a silent process counts as dead and the others end.

    Raises:
      ValueError: only some of the three given, or a number out of range.

    When the others do not come in time JAX ends the process, with DEADLINE_EXCEEDED in its message.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number(num_processes, "JAX_NUM_PROCESSES")
    process_id = _number(process_id, "JAX_PROCESS_ID")
    if num_processes == 1 or not _has_others(coordinator, num_processes, process_id, timeout):
        return
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=heartbeat_timeout,
    )
    logger.info(
        "process %d of %d is in, with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def _has_others(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> bool:
    """Whether there are processes to join; says which, since joining may take a while."""
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        cluster = _cluster()
        if cluster:
            logger.info("joining the other processes of %s; a hang means some are missing", cluster)
        return cluster is not None
    if missing:
        raise ValueError(
            f"--{', --'.join(missing)} not given: a process on a plain host needs --coordinator, "
            "--num_processes and --process_id together"
        )
    if not 0 <= int(process_id or 0) < int(num_processes or 0):
        raise ValueError(f"--process_id={process_id} is not one of {num_processes} processes")
    logger.info(
        "process %s of %s waits up to %d s for %s; if this hangs, start the same command on every "
        "host and see that they reach %s",
        process_id,
        num_processes,
        timeout,
        "the others" if process_id == 0 else f"process 0 at {coordinator}",
        coordinator,
    )
    return True


def _number(value: int | None, variable: str) -> int | None:
    if value is not None or variable not in os.environ:
        return value
    try:
        return int(os.environ[variable])
    except ValueError as error:
        raise ValueError(f"${variable} must be a number, found {os.environ[variable]!r}") from error


def _cluster() -> str | None:
    """What kind of cluster started this process, if any."""
    for name, variables in _CLUSTER_VARIABLES.items():
        if all(variable in os.environ for variable in variables):
            return name
    # A TPU VM created by hand announces itself by its devices, and has libtpu to drive them.
    accelerators = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    on_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    drivable = importlib.util.find_spec("libtpu") is not None
    return "a TPU slice" if accelerators and drivable and not on_cpu else None


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


def gather(tree: Any) -> Any:
    """Whole arrays on the host of every process, as NumPy, from arrays sharded in any way."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def all_agree(value: bool) -> bool:
    """Whether it holds on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
