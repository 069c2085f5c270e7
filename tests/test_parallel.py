"""Who takes part, and where arrays live on eight simulated devices."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pit_jax import parallel


def test_the_mesh_covers_all_devices():
    assert dict(parallel.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(ValueError, match=r"fsdp=3 does not divide the 8 devices"):
        parallel.make_mesh(fsdp=3)


def test_only_large_arrays_are_sharded_along_their_longest_divisible_axis():
    tree = {
        "kernel": jax.ShapeDtypeStruct((144, 432), jnp.float32),
        "odd": jax.ShapeDtypeStruct((16386, 4), jnp.float32),
        "small": jax.ShapeDtypeStruct((64, 64), jnp.float32),
        "indivisible": jax.ShapeDtypeStruct((333, 333), jnp.float32),
        "scalar": jax.ShapeDtypeStruct((), jnp.int32),
    }
    specs = {
        name: sharding.spec
        for name, sharding in parallel.state_shardings(parallel.make_mesh(4), tree).items()
    }
    assert specs["kernel"] == PartitionSpec(None, "fsdp")
    assert specs["odd"] == PartitionSpec(None, "fsdp")
    for name in ("small", "indivisible", "scalar"):
        assert "fsdp" not in specs[name]
    replicated = parallel.state_shardings(parallel.make_mesh(1), tree)
    assert all("fsdp" not in sharding.spec for sharding in replicated.values())


def test_values_survive_the_way_to_the_devices_and_back():
    mesh = parallel.make_mesh(4)
    value = np.arange(64 * 512, dtype=np.float32).reshape(64, 512)
    sharding = parallel.state_shardings(mesh, value)
    placed = parallel.shard(value, sharding)
    assert placed.addressable_shards[0].data.shape == (64, 128)
    np.testing.assert_array_equal(parallel.gather({"x": placed})["x"], value)
    batch = parallel.to_global(mesh, {"image": value})["image"]
    assert batch.addressable_shards[0].data.shape == (8, 512)
    np.testing.assert_array_equal(batch, value)


def test_a_batch_that_does_not_divide_is_refused():
    parallel.check_batch_size("config.batch_size", 16)
    with pytest.raises(ValueError, match=r"config.batch_size=20 cannot .* 8 devices.* 16 or 24"):
        parallel.check_batch_size("config.batch_size", 20)
    with pytest.raises(ValueError, match=r"e.g. 8$"):
        parallel.check_batch_size("config.batch_size", 5)


def test_the_mesh_keeps_the_order_of_processes_whatever_order_jax_lists_devices_in(
    monkeypatch: pytest.MonkeyPatch,
):
    in_order = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: in_order[::-1])
    assert parallel.make_mesh(2).devices.ravel().tolist() == in_order


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
    ],
)
def test_a_process_half_described_is_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        parallel.start_processes(**arguments)


def test_a_number_in_the_environment_must_be_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match=r"\$JAX_NUM_PROCESSES must be a number, found 'two'"):
        parallel.start_processes()


@pytest.fixture
def initialised(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What JAX is asked to join, instead of joining."""
    calls: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "a[1-2]",
                "SLURM_NTASKS": "2",
                "SLURM_LOCALID": "0",
            },
            "SLURM",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "a TPU slice on Kubernetes"),
    ],
)
def test_clusters_are_recognised_and_named(
    environment: dict[str, str],
    named: str,
    initialised: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        parallel.start_processes(timeout=77)
    assert f"joining the other processes of {named}" in caplog.text
    assert "process 0 of 1 is in" in caplog.text
    (arguments, options), *others = initialised
    assert not others
    assert arguments == (None, None, None)
    assert options["initialization_timeout"] == 77


def test_plain_hosts_are_described_by_the_environment(
    initialised: list[tuple], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "first:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        parallel.start_processes()
    assert initialised[0][0] == ("first:8476", 4, 3)
    assert "process 3 of 4 waits up to 1800 s for process 0 at first:8476" in caplog.text


def test_a_single_host_joins_nobody(initialised: list[tuple], monkeypatch: pytest.MonkeyPatch):
    parallel.start_processes()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    parallel.start_processes()
    assert not initialised
