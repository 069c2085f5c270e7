"""Joining the processes of a job, and what they agree on and gather from one another."""

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

logger = logging.getLogger(__name__)

# Variables with the number of processes and of this one, as launchers set them; JAX's own first.
_OPEN_MPI = ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_SLURM = ("SLURM", "SLURM_NTASKS", "SLURM_PROCID")
_UNKNOWN_TO_JAX = (
    ("MPI", "PMI_SIZE", "PMI_RANK"),
    ("MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("torchrun", "WORLD_SIZE", "RANK"),
)
# Only all together do they make a task of a step, as `srun` starts it.
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the environment tells of the job that this process belongs to.

    Attributes:
      launcher: what started it.
      processes: how many there are; None where only JAX can find out.
      process_id: of this one.
      obstacle: why JAX cannot find the others, if it is known that it cannot.
    """

    launcher: str
    processes: int | None = None
    process_id: int | None = None
    obstacle: str | None = None

    def __str__(self) -> str:
        process_id, processes = (
            "?" if number is None else number for number in (self.process_id, self.processes)
        )
        return f"process {process_id} of {processes} ({self.launcher})"

    def refusal(self, reason: object) -> str:
        """What to say when JAX does not find the others, and what to do then."""
        processes = "N" if self.processes is None else self.processes
        here = "" if self.process_id is None else f" (here {self.process_id})"
        return (
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
    """Joins this process to the others of its job; does nothing where the arguments or the
    environment say that there is one process.

    To be called before anything touches a device. TPU slices, SLURM, Kubernetes and Open MPI up to
    version 4 are recognised by JAX; on plain hosts the three arguments, or the environment
    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, say who is who.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: of the job.
      process_id: of this process, from 0.
      timeout: seconds to wait for the others; whole pods can take many minutes to start.
      heartbeat_timeout: seconds after which a silent process counts as dead and the others end.

    Raises:
      ValueError: only some of the three given, a number out of range, or a launcher's process for
        which JAX does not find the others.

    When the others do not come in time JAX ends the process, with DEADLINE_EXCEEDED in its message.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number(num_processes, "JAX_NUM_PROCESSES")
    process_id = _number(process_id, "JAX_PROCESS_ID")
    if num_processes == 1:
        return
    job = None
    if coordinator is None and num_processes is None and process_id is None:
        job = _job()
        if job is None:
            return
        _announce_found(job, timeout)
    else:
        _check_description(coordinator, num_processes, process_id)
        _announce_described(coordinator, num_processes, process_id, timeout)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        # Whatever a cluster's API, metadata or variables lack comes as one of these.
        reason = f"{error or type(error).__name__}".rstrip(".")
        if job:
            raise ValueError(job.refusal(reason)) from error
        raise ValueError(
            f"process {process_id} of {num_processes} cannot join the others at {coordinator}: "
            f"{reason}"
        ) from error
    logger.info(
        "process %d of %d is in, with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def _announce_found(job: _Job, timeout: int) -> None:
    """Raises ValueError where it is known that JAX does not find the others."""
    if job.obstacle:
        raise ValueError(job.refusal(job.obstacle))
    logger.info(
        "%s waits up to %d s for the others; if this hangs, see that all of them have started and "
        "reach process 0",
        job,
        timeout,
    )


def _announce_described(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
    logger.info(
        "process %s of %s waits up to %d s for %s; if this hangs, start the same command on every "
        "host and see that they reach %s",
        process_id,
        num_processes,
        timeout,
        "the others" if process_id == 0 else f"process 0 at {coordinator}",
        coordinator,
    )


def _check_description(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
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


def _number(value: int | None, variable: str) -> int | None:
    if value is not None or variable not in os.environ:
        return value
    try:
        return int(os.environ[variable])
    except ValueError as error:
        raise ValueError(f"${variable} must be a number, found {os.environ[variable]!r}") from error


def _job() -> _Job | None:
    """The job of several processes that this one belongs to; None for a process on its own."""
    recognised = [job for job in (_open_mpi(), _slurm(), _tpu_pods()) if job]
    others = [_told(*launcher, obstacle="unknown to JAX") for launcher in _UNKNOWN_TO_JAX]
    # Launchers start one another, as mpiexec does its proxies by srun: the one that started most
    # processes started this one.
    job = max(
        recognised + [job for job in others if job],
        key=lambda job: job.processes or 0,
        default=None,
    )
    if job and (job.processes or 0) > 1:
        return job
    return None if recognised else _of_unknown_size()


def _told(launcher: str, count: str, number: str, obstacle: str | None = None) -> _Job | None:
    if count not in os.environ or number not in os.environ:
        return None
    return _Job(launcher, _number(None, count), _number(None, number), obstacle)


def _open_mpi() -> _Job | None:
    # Where process 0 is stands in here alone; Open MPI 5 does not set it.
    found = "OMPI_MCA_orte_hnp_uri" in os.environ
    return _told(*_OPEN_MPI, obstacle=None if found else "$OMPI_MCA_orte_hnp_uri is not set")


def _slurm() -> _Job | None:
    return _told(*_SLURM) if all(name in os.environ for name in _SLURM_STEP) else None


def _tpu_pods() -> _Job | None:
    """Pods of GKE with TPUs, in one slice or several."""
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None:
        return None
    of_a_slice = len(hosts.split(","))
    worker = _number(None, "TPU_WORKER_ID")
    if worker is not None:
        worker += of_a_slice * (_number(None, "MEGASCALE_SLICE_ID") or 0)
    slices = _number(None, "MEGASCALE_NUM_SLICES") or 1
    return _Job("a TPU slice on Kubernetes", of_a_slice * slices, worker)


def _of_unknown_size() -> _Job | None:
    """A job whose number of processes only an API or a metadata server tells."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        installed = importlib.util.find_spec("kubernetes") is not None
        return _Job(
            "Kubernetes",
            process_id=_number(None, "JOB_COMPLETION_INDEX"),
            obstacle=None if installed else "the package kubernetes is not installed",
        )
    # A TPU VM created by hand announces itself by its devices, and has libtpu to drive them; JAX
    # forbids itself to ask for the others where it has not found any chips.
    accelerators = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    on_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    drivable = importlib.util.find_spec("libtpu") is not None
    asks = "TPU_SKIP_MDS_QUERY" not in os.environ
    return _Job("a TPU slice") if accelerators and drivable and asks and not on_cpu else None


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
