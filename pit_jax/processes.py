"""Joining the processes of a job; what they agree on and gather from each other."""

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

logger = logging.getLogger(__name__)

# Launchers that JAX recognises, and others: the variables in which they give the number of
# processes and this process's number. Open MPI is another from version 5 on (`_obstacle`).
_KNOWN = {
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
_UNKNOWN = {
    "MPI": ("PMI_SIZE", "PMI_RANK"),
    "MVAPICH": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    "torchrun": ("WORLD_SIZE", "RANK"),
}
# All three are set in a SLURM step; not in the shell of a batch script, which is no task of a job.
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID")
# Where JAX finds process 0 of an Open MPI job; version 5 does not set it.
_OPEN_MPI_ADDRESS = "OMPI_MCA_orte_hnp_uri"


@dataclasses.dataclass(frozen=True)
class _Job:
    """The job that this process belongs to.

    Attributes:
      processes: their number; None if only JAX can find out.
      process_id: number of this process, from 0.
      coordinator: "host:port" of process 0; None if JAX has to find it.
      launcher: what started the processes; None if the user describes the job.
      obstacle: reason why JAX cannot find the other processes, if one is known.
    """

    processes: int | None = None
    process_id: int | None = None
    coordinator: str | None = None
    launcher: str | None = None
    obstacle: str | None = None

    def __str__(self) -> str:
        process_id, processes = (
            "?" if number is None else number for number in (self.process_id, self.processes)
        )
        launcher = f" ({self.launcher})" if self.launcher else ""
        return f"process {process_id} of {processes}{launcher}"

    def announce(self, timeout: int) -> None:
        """Logs what the process waits for, and what to check if it waits in vain."""
        first = f"process 0 at {self.coordinator}" if self.coordinator else "process 0"
        waits_for = first if self.coordinator and self.process_id else "the others"
        logger.info(
            "%s waits up to %d s for %s; if this hangs, check that the same command has started on "
            "every host and reaches %s",
            *(self, timeout, waits_for, first),
        )

    def failure(self, reason: object) -> ValueError:
        """Returns the error to raise when JAX does not find the other processes."""
        if self.coordinator:
            return ValueError(f"{self} cannot join the others at {self.coordinator}: {reason}")
        processes = "N" if self.processes is None else self.processes
        here = "" if self.process_id is None else f" (here {self.process_id})"
        return ValueError(
            f"{self} does not find the others: {reason}; give each --coordinator=HOST:PORT of "
            f"process 0, --num_processes={processes} and its --process_id{here}, or "
            "--num_processes=1 to a process on its own"
        )


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 1800,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins this process to its job; does nothing if the job is a single process, by the arguments
    or by the environment.

    Call this before anything touches a device. JAX recognises TPU slices, SLURM, Kubernetes and
    Open MPI up to version 4; on plain hosts the three arguments, or the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, describe the job.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: number of processes of the job.
      process_id: number of this process, from 0.
      timeout: seconds to wait for the others; whole pods can take many minutes to start.
      heartbeat_timeout: seconds after which a silent process counts as dead and the others end.

    Raises:
      ValueError: only some of the three given, a number out of range, or a launcher's process for
        which JAX does not find the others.

    If the others do not come in time, JAX ends the process, with DEADLINE_EXCEEDED in its message.
    """
    description = (
        coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        _number(num_processes, "JAX_NUM_PROCESSES"),
        _number(process_id, "JAX_PROCESS_ID"),
    )
    job = _described_job(*description) if description != (None, None, None) else _find_job()
    if job is None:
        return
    if job.obstacle:
        raise job.failure(job.obstacle)
    job.announce(timeout)
    try:
        jax.distributed.initialize(
            *description,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        # Gaps in a cluster's API, metadata or variables are raised as one of these.
        raise job.failure(f"{error or type(error).__name__}".rstrip(".")) from error
    logger.info(
        "process %d of %d is in, with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def _described_job(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> _Job | None:
    """Returns the job that the user describes; None for a single process.

    Raises:
      ValueError: the description is incomplete or contradicts itself.
    """
    if num_processes == 1:
        return None
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"--{', --'.join(missing)} not given: a process on a plain host needs --coordinator, "
            "--num_processes and --process_id together"
        )
    if not str(coordinator).rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator={coordinator} must be HOST:PORT, e.g. {coordinator}:8476")
    if not 0 <= int(process_id or 0) < int(num_processes or 0):
        raise ValueError(f"--process_id={process_id} is not one of {num_processes} processes")
    return _Job(num_processes, process_id, coordinator)


def _number(value: int | None, variable: str) -> int | None:
    if value is not None or variable not in os.environ:
        return value
    try:
        return int(os.environ[variable])
    except ValueError as error:
        raise ValueError(f"${variable} must be a number, found {os.environ[variable]!r}") from error


def _find_job() -> _Job | None:
    """Returns the job of several processes that the environment describes; None for a process on
    its own.
    """
    known = [*_launched(_KNOWN), *_tpu_pods()]
    # Launchers start each other, as mpiexec starts its proxies by srun: the one that started most
    # processes started this one.
    job = max([*known, *_launched(_UNKNOWN)], key=lambda job: job.processes or 0, default=None)
    if job and (job.processes or 0) > 1:
        return job
    return None if known else _job_of_unknown_size()


def _launched(launchers: dict[str, tuple[str, str]]) -> list[_Job]:
    """Returns what each launcher that stands in the environment says of this process."""
    return [
        _Job(_number(None, count), _number(None, number), None, launcher, _obstacle(launcher))
        for launcher, (count, number) in launchers.items()
        if count in os.environ and number in os.environ
        if launcher != "SLURM" or all(variable in os.environ for variable in _SLURM_STEP)
    ]


def _obstacle(launcher: str) -> str | None:
    if launcher == "Open MPI" and _OPEN_MPI_ADDRESS not in os.environ:
        return f"${_OPEN_MPI_ADDRESS} is not set"
    return None if launcher in _KNOWN else "unknown to JAX"


def _tpu_pods() -> list[_Job]:
    """Returns the job of a GKE pod with TPUs, of one slice or several; none elsewhere."""
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None:
        return []
    per_slice = len(hosts.split(","))
    worker = _number(None, "TPU_WORKER_ID")
    if worker is not None:
        worker += per_slice * (_number(None, "MEGASCALE_SLICE_ID") or 0)
    slices = _number(None, "MEGASCALE_NUM_SLICES") or 1
    return [_Job(per_slice * slices, worker, launcher="a TPU slice on Kubernetes")]


def _job_of_unknown_size() -> _Job | None:
    """Returns a job whose size only an API or a metadata server knows, which JAX will ask."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        installed = importlib.util.find_spec("kubernetes") is not None
        return _Job(
            process_id=_number(None, "JOB_COMPLETION_INDEX"),
            launcher="Kubernetes",
            obstacle=None if installed else "the package kubernetes is not installed",
        )
    # A TPU VM created by hand shows by its devices and by libtpu, which drives them. JAX sets
    # TPU_SKIP_MDS_QUERY at import if it has found no chips, and then does not ask for the others.
    accelerators = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    on_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    drivable = importlib.util.find_spec("libtpu") is not None
    asks = "TPU_SKIP_MDS_QUERY" not in os.environ
    is_tpu = accelerators and drivable and asks and not on_cpu
    return _Job(launcher="a TPU slice") if is_tpu else None


def gather(tree: Any) -> Any:
    """Returns whole arrays as NumPy on every process, from arrays sharded in any way."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def all_agree(value: bool) -> bool:
    """Returns whether `value` is true on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(value)).all())
