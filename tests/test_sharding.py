"""Placement of arrays on eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pit_jax import processes, sharding


def test_the_mesh_covers_all_devices():
    assert dict(sharding.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(ValueError, match=r"fsdp=3 does not divide the 8 devices"):
        sharding.make_mesh(fsdp=3)


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
        for name, sharding in sharding.state_shardings(sharding.make_mesh(4), tree).items()
    }
    assert specs["kernel"] == PartitionSpec(None, "fsdp")
    assert specs["odd"] == PartitionSpec(None, "fsdp")
    for name in ("small", "indivisible", "scalar"):
        assert "fsdp" not in specs[name]
    replicated = sharding.state_shardings(sharding.make_mesh(1), tree)
    assert all("fsdp" not in sharding.spec for sharding in replicated.values())


def test_values_survive_the_way_to_the_devices_and_back():
    mesh = sharding.make_mesh(4)
    value = np.arange(64 * 512, dtype=np.float32).reshape(64, 512)
    shardings = sharding.state_shardings(mesh, value)
    placed = sharding.shard(value, shardings)
    assert placed.addressable_shards[0].data.shape == (64, 128)
    np.testing.assert_array_equal(processes.gather({"x": placed})["x"], value)
    batch = sharding.to_global(mesh, {"image": value})["image"]
    assert batch.addressable_shards[0].data.shape == (8, 512)
    np.testing.assert_array_equal(batch, value)


def test_a_batch_that_does_not_divide_is_refused():
    sharding.check_batch_size("config.batch_size", 16)
    with pytest.raises(ValueError, match=r"config.batch_size=20 cannot .* 8 devices.* 16 or 24"):
        sharding.check_batch_size("config.batch_size", 20)
    with pytest.raises(ValueError, match=r"e.g. 8$"):
        sharding.check_batch_size("config.batch_size", 5)


def test_the_mesh_keeps_the_order_of_processes_whatever_order_jax_lists_devices_in(
    monkeypatch: pytest.MonkeyPatch,
):
    in_order = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: in_order[::-1])
    assert sharding.make_mesh(2).devices.ravel().tolist() == in_order
