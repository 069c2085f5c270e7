"""End to end with the TPU compiler, whose files are read. Needs libtpu, but no TPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.libtpu

TINY = Path(__file__).with_name("tiny.py")
ROOT = TINY.parents[2]


def _run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sharded_training_step_on_a_slice(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    printed = _run(
        "-m",
        "pit_jax.compile_report",
        f"--config={TINY}",
        "--config.fsdp=2",
        "--topology=v5e:2x2",
        f"--output={output}",
    )
    saved = json.loads(output.read_text())
    estimate, memory = saved["estimate"], saved["memory"]
    assert (saved["devices"], saved["device_kind"]) == (4, "TPU v5 lite")
    assert saved["fits"]
    assert 0 < memory["arguments"] < memory["peak"] < memory["available"] == 15.75 * 2**30
    assert memory["aliased"] > 0.9 * memory["outputs"]
    # The model's FLOPs, less those of the branches' kernels, more for pooling and the optimizer.
    assert 0.1 < saved["flops"] / (8 * saved["model_flops"]) < 1
    assert 1e4 < estimate["xla_cycles"] < 1e7
    assert 0 < estimate["mfu"] < 0.3
    names = {kernel["name"] for kernel in saved["kernels"]}
    assert {name.rsplit("_", 2)[1] for name in names} == {"forward", "backward"}
    # Eight images: one per program, or all in one if their sequences are short.
    grids: dict[str, set[int]] = {name.rsplit("_", 1)[1]: set() for name in names}
    for kernel in saved["kernels"]:
        grids[kernel["name"].rsplit("_", 1)[1]].add(kernel["grid"])
    assert grids == {"226x64": {8}, "65x128": {1}}
    assert all(kernel["bundles"] > 100 for kernel in saved["kernels"])
    assert estimate["kernel_cycles"] == sum(kernel["cycles"] for kernel in saved["kernels"])
    kinds = {one["kind"] for one in saved["collectives"]}
    assert {"all-gather", "all-reduce"} <= kinds
    assert {one["devices"] for one in saved["collectives"]} >= {2, 4}
    assert estimate["step_seconds"] > estimate["collective_seconds"] > 0
    assert len(saved["operations"]) == 10
    assert any("pit_jax/ops/pooling.py" in one["location"] for one in saved["operations"])
    assert any(one["backward"] for one in saved["operations"])
    assert not estimate["unknown_loops"]
    assert "images/s/chip" in printed


def test_what_does_not_fit_says_by_how_much() -> None:
    printed = _run(
        "-m",
        "pit_jax.compile_report",
        f"--config={TINY}",
        "--topology=v5e:1x1",
        "--program=inference",
        "--batch_size=33554432",
    )
    assert "DOES NOT FIT" in printed
    # The images alone are 96 GiB of the chip's 15.75.
    found = re.search(r"([\d,]+)\.\d+ GiB too much", printed)
    assert found is not None
    assert int(found[1].replace(",", "")) > 96 - 15
    assert "images/s/chip" not in printed


def test_without_schedules_kernels_are_named_and_not_counted(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    printed = _run(
        "-m",
        "pit_jax.compile_report",
        f"--config={TINY}",
        "--topology=v5e:1x1",
        "--program=inference",
        "--noschedules",
        f"--output={output}",
    )
    kernels = json.loads(output.read_text())["kernels"]
    assert kernels
    assert all(kernel["bundles"] is None for kernel in kernels)
    assert all(f"kernel {kernel['name']}" in printed for kernel in kernels)


KERNEL = """
from pit_jax.compile_report import chips, kernel_schedules, libtpu, measure
from pit_jax.compile_report.hlo import Module
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import SingleDeviceSharding

def body(x, out):
    def square(head, carry):
        out[0, head] = jnp.dot(x[0, head], x[0, head])
        return carry
    jax.lax.fori_loop(0, 3, square, 0)

def both(x):
    block = pl.BlockSpec((1, 3, 128, 128), lambda image: (image, 0, 0, 0))
    call = pl.pallas_call(
        body, grid=(16,), in_specs=[block], out_specs=block, name="kernel_of_test",
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    )
    return call(call(x) + 1)

device = libtpu.devices(chips.parse_slice("v5e:1x1"))[0]
x = jax.ShapeDtypeStruct((16, 3, 128, 128), jnp.float32, sharding=SingleDeviceSharding(device))
module = Module(jax.jit(both).lower(x).compile().as_text())
calls = [step.instruction.name for step in module.steps if step.instruction.is_kernel]
found = kernel_schedules.read_folder(libtpu.load(), calls)
for schedule in found.values():
    print(len(calls), schedule.grid, schedule.bundles, schedule.executed, schedule.unknown_loops)
"""


def test_the_schedule_of_a_kernel() -> None:
    calls, grid, bundles, executed, unknown = map(int, _run("-c", KERNEL).splitlines()[0].split())
    assert (calls, grid, unknown) == (2, 16, 0)
    # A product of three 128 x 128 matrices is at least 3 x 16 pushes of eight rows.
    assert 48 < bundles < 3000
    assert 16 * bundles <= executed < 16 * bundles + 100
