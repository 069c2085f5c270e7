"""Joining a job, as the environment or the user describes it, and what is refused."""

import importlib.machinery
import importlib.util
import logging
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import jax
import pytest
from jax._src import clusters

from pit_jax import processes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"coordinator": "here:1"},
            "--num_processes, --process_id not given: a process on a plain",
        ),
        ({"num_processes": 2, "process_id": 0}, "--coordinator not given"),
        (
            {"coordinator": "here:1", "num_processes": 2, "process_id": 2},
            "is not one of 2 processes",
        ),
        (
            {"coordinator": "here", "num_processes": 2, "process_id": 0},
            "--coordinator=here must be HOST:PORT, e.g. here:8476",
        ),
    ],
)
def test_a_process_half_described_is_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        processes.start_processes(**arguments)


def test_a_number_in_the_environment_must_be_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match=r"\$JAX_NUM_PROCESSES must be a number, found 'two'"):
        processes.start_processes()


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the launcher of the tests themselves, if there is one."""
    of_launchers = (
        "KUBERNETES_",
        "MEGASCALE_",
        "MV2_",
        "OMPI_",
        "PMI_",
        "RANK",
        "SLURM_",
        "WORLD_",
    )
    for name in os.environ:
        if name.startswith((*of_launchers, "JOB_COMPLETION", "TPU_WORKER", "TPU_PROCESS")):
            monkeypatch.delenv(name)


def surround(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def initialised(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Records what JAX is asked to join, instead of joining."""
    calls: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "a[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
OPEN_MPI_4 = OPEN_MPI | {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
GKE = {
    "TPU_WORKER_HOSTNAMES": "a,b",
    "TPU_WORKER_ID": "1",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "a",
}
INDEXED_JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}


@pytest.mark.parametrize(
    ("environment", "cluster", "process"),
    [
        (SLURM, clusters.SlurmCluster, "process 3 of 4 (SLURM)"),
        (
            SLURM | {"PMI_SIZE": "4", "PMI_RANK": "3"},
            clusters.SlurmCluster,
            "process 3 of 4 (SLURM)",
        ),
        (OPEN_MPI_4, clusters.OmpiCluster, "process 1 of 2 (Open MPI)"),
        (GKE, clusters.GkeTpuCluster, "process 3 of 4 (a TPU slice on Kubernetes)"),
        (INDEXED_JOB, clusters.K8sCluster, "process 2 of ? (Kubernetes)"),
    ],
)
def test_clusters_that_jax_knows_are_joined_and_named(
    environment: dict[str, str],
    cluster: type[clusters.ClusterEnv],
    process: str,
    *,
    initialised: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    surround(monkeypatch, environment)
    # Pretend a machine with chips and an installed client of Kubernetes.
    monkeypatch.setattr(clusters.cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    kubernetes = MagicMock(__spec__=importlib.machinery.ModuleSpec("kubernetes", None))
    monkeypatch.setitem(sys.modules, "kubernetes", kubernetes)
    assert cluster.is_env_present()
    if cluster is not clusters.K8sCluster:
        said = f"process {cluster.get_process_id()} of {cluster.get_process_count()} "
        assert process.startswith(said)
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        processes.start_processes(timeout=77)
    assert f"{process} waits up to 77 s for the others; if this hangs" in caplog.text
    assert "process 0 of 1 is in" in caplog.text
    (arguments, options), *others = initialised
    assert not others
    assert arguments == (None, None, None)
    assert options["initialization_timeout"] == 77


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            OPEN_MPI,
            r"process 1 of 2 \(Open MPI\) does not find the others: \$OMPI_MCA_orte_hnp_uri is not "
            r"set; give each --coordinator=HOST:PORT of process 0, --num_processes=2 and its "
            r"--process_id \(here 1\), or --num_processes=1",
        ),
        ({"PMI_SIZE": "8", "PMI_RANK": "5"}, r"process 5 of 8 \(MPI\) does .* --num_processes=8 "),
        # mpiexec starts one proxy per node by srun.
        (SLURM | {"PMI_SIZE": "8", "PMI_RANK": "5"}, r"process 5 of 8 \(MPI\)"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, r"process 0 of 2 \(torchrun\) does .* unknown to JAX"),
        (
            INDEXED_JOB,
            r"process 2 of \? \(Kubernetes\) does .* kubernetes is not installed; .*"
            r" --num_processes=N ",
        ),
    ],
)
def test_a_process_whose_others_jax_cannot_find_is_refused(
    environment: dict[str, str],
    message: str,
    initialised: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
):
    surround(monkeypatch, environment)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        processes.start_processes()
    processes.start_processes(num_processes=1)
    assert not initialised
    processes.start_processes("first:8476", 2, 1)
    assert initialised[0][0] == ("first:8476", 2, 1)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"JAX_NUM_PROCESSES": "1"},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        # The shell of a batch script is not a task of a step.
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"} | INDEXED_JOB,
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_process_on_its_own_joins_nobody(
    environment: dict[str, str], initialised: list[tuple], monkeypatch: pytest.MonkeyPatch
):
    surround(monkeypatch, environment)
    processes.start_processes()
    assert not initialised


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("coordinator_address should be defined."), "coordinator_address should be def"),
        (RuntimeError("Pods within a job need a headless service"), "Pods within a job need"),
        (KeyError("OMPI_COMM_WORLD_LOCAL_RANK"), "'OMPI_COMM_WORLD_LOCAL_RANK'"),
    ],
)
def test_what_jax_lacks_is_an_error_that_says_what_to_give(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=rf"process 1 of 2 cannot join .* at here:1: {reason}"):
        processes.start_processes("here:1", 2, 1)
    surround(monkeypatch, SLURM)
    with pytest.raises(ValueError, match=rf"3 of 4 \(SLURM\) .*: {reason}.*; give each --coord"):
        processes.start_processes()


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_a_tpu_vm_is_recognised_by_its_devices(
    device: str,
    initialised: list[tuple],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    installed = {"libtpu"}
    monkeypatch.setattr(processes, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    # JAX sets this at import if it finds no chips.
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS")
    processes.start_processes()
    assert not initialised  # no device
    (tmp_path / "dev" / device).parent.mkdir(parents=True)
    (tmp_path / "dev" / device).touch()
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        processes.start_processes()
    assert "process ? of ? (a TPU slice) waits up to 1800 s" in caplog.text
    assert len(initialised) == 1
    for forbidden in ({"TPU_SKIP_MDS_QUERY": "1"}, {"JAX_PLATFORMS": "cpu"}):
        with monkeypatch.context() as without:
            surround(without, forbidden)
            processes.start_processes()
    installed.clear()
    processes.start_processes()
    assert len(initialised) == 1


def test_plain_hosts_are_described_by_the_environment(
    initialised: list[tuple], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "first:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        processes.start_processes()
    assert initialised[0][0] == ("first:8476", 4, 3)
    assert "process 3 of 4 waits up to 1800 s for process 0 at first:8476" in caplog.text
