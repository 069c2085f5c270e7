"""From a program to figures, and figures side by side."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pit_jax.compile_report import chips, kernel_schedules, libtpu, measure, program, text
from pit_jax.compile_report.collectives import Collective
from pit_jax.compile_report.hlo import Module

TINY = Path(__file__).with_name("tiny.py")
ROOT = TINY.parents[2]
# XLA's estimates of the recorded program, loops unrolled.
XLA_CYCLES = 5945 + 3047 + 2 * 100 + 8697 + 2 * 100 + 4514 + 5 * (2663 + 6286)


@pytest.fixture(scope="module")
def module(data_dir: Path) -> Module:
    return Module((data_dir / "compile_report" / "step.hlo.txt").read_text())


def _run(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Runs the program, after a line of Python."""
    code = (
        f"import runpy, sys; {before}; sys.argv = ['compile_report', *sys.argv[1:]]; "
        "runpy.run_module('pit_jax.compile_report', run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"]},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The program's output and saved report for the tiny training step on this machine."""
    output = tmp_path_factory.mktemp("report") / "local.json"
    done = _run(f"--config={TINY}", "--batch_size=48", f"--output={output}")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


def test_cycles_become_seconds_images_and_utilisation(module: Module) -> None:
    kernels = measure.read_kernels(
        module,
        {
            "pit_attention_forward_test.2": kernel_schedules.Schedule("a", 8, 421, 3375, 0),
            "pit_attention_forward_test.3": kernel_schedules.Schedule("b", 8, 421, 3375, 0),
        },
    )
    (kernel,) = kernels
    assert (kernel.name, kernel.calls) == ("pit_attention_forward_test", 2)
    assert (kernel.grid, kernel.bundles, kernel.cycles) == (8, 421, 6750)

    exchange = Collective(
        kind="all-reduce", devices=4, calls=1, asynchronous=0, bytes=4, seconds=1e-5
    )
    found = measure.estimate(
        module,
        kernels,
        [exchange],
        chips.CHIPS["v5e"],
        images=8,
        model_flops=1_000_000_000,
        peak=197e12,
    )
    assert (found.xla_cycles, found.kernel_cycles) == (XLA_CYCLES, 6750)
    assert found.compute_seconds == pytest.approx((XLA_CYCLES + 6750) / 1.5e9)
    assert found.step_seconds == pytest.approx(found.compute_seconds + 1e-5)
    assert found.images_per_second == pytest.approx(8 / found.step_seconds)
    assert found.images_per_second_alone == pytest.approx(8 / found.compute_seconds)
    assert found.mfu == pytest.approx(8 * 1e9 / found.step_seconds / 197e12)
    assert found.unestimated == {}


def test_a_kernel_without_a_schedule_is_told(module: Module) -> None:
    kernels = measure.read_kernels(module, {})
    found = measure.estimate(
        module, kernels, [], chips.CHIPS["v5e"], images=8, model_flops=1, peak=None
    )
    assert found.unestimated == {"kernel pit_attention_forward_test": 2}
    assert found.kernel_cycles == 0
    assert found.mfu is None


def test_what_has_no_estimate_is_told_unless_it_only_names_memory() -> None:
    text = """
ENTRY %main (x: f32[64,64]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %a = f32[64,64]{1,0} copy(%x), backend_config={"window_config":{"estimated_cycles":"100"}}
  %b = f32[64,64]{1,0} custom-call(%a), custom_call_target="ConcatBitcast"
  %c = f32[64,64]{1,0} bitcast(%b)
  %d = f32[] add(%s, %s)
  ROOT %e = f32[64,64]{1,0} sort(%c), dimensions={0}
}
"""
    found = measure.estimate(
        Module(text), [], [], chips.CHIPS["v5e"], images=1, model_flops=1, peak=None
    )
    assert found.xla_cycles == 100
    assert found.unestimated == {"sort": 1}


def test_operations_are_summed_by_source(module: Module) -> None:
    kernels = measure.read_kernels(
        module, {"pit_attention_forward_test.2": kernel_schedules.Schedule("a", 8, 421, 90_000, 0)}
    )
    operations = measure.read_operations(module, kernels)
    assert operations[0].location == "kernel pit_attention_forward_test"
    (body,) = [one for one in operations if one.location.endswith("k.py:26 f.<lambda>")]
    assert (body.calls, body.cycles) == (5, 5 * 6286)
    assert sum(one.share for one in operations) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("complaint", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (20.50G) exceeds available HBM (15.75G).",
            20.5,
        ),
        ("RESOURCE_EXHAUSTED: Used 16.00G of 15.75G hbm. Exceeded hbm capacity by 256M", 16.0),
    ],
)
def test_what_does_not_fit_says_what_it_needs(complaint: str, gib: float) -> None:
    assert program.is_too_large(complaint)
    assert program.needed_bytes(complaint) == gib * 2**30


@pytest.mark.parametrize(
    "complaint",
    [
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space "
        "vmem while allocating on stack for %pit_mlp_branch_backward_50x576.1",
        "INTERNAL: Mosaic failed to compile TPU kernel",
    ],
)
def test_other_failures_are_not_taken_for_a_lack_of_memory(complaint: str) -> None:
    assert not program.is_too_large(complaint)


def test_the_step_of_this_machine(local: tuple[str, dict[str, Any]]) -> None:
    printed, saved = local
    assert saved["model"] == "pit_ti"
    assert (saved["program"], saved["topology"]) == ("train", "local")
    assert (saved["devices"], saved["batch_size"]) == (1, 48)
    assert saved["estimate"] is None
    # XLA does not count products that a library computes.
    assert 0.1 < saved["flops"] / (48 * saved["model_flops"]) < 2
    memory = saved["memory"]
    assert memory["aliased"] > 0.9 * memory["outputs"]  # the state is donated
    assert memory["peak"] >= memory["temporaries"] > 0
    assert re.search(
        r"^pit_ti train on local \(1 x cpu\), 48 images of 32x32, fsdp 1$", printed, re.M
    )
    assert "no exchanges between devices" in printed
    assert "images/s/chip" not in printed


def test_two_reports_side_by_side(local: tuple[str, dict[str, Any]]) -> None:
    saved = local[1]
    larger = {**saved, "bytes_accessed": 2 * saved["bytes_accessed"], "flops": None}
    lines = text.compare(saved, larger).splitlines()
    row = next(line for line in lines if line.startswith("bytes accessed"))
    assert row.endswith("  0.500")
    row = next(line for line in lines if line.startswith("FLOPs of a device"))
    assert row.split()[-1] == "-"


def test_an_estimate_is_called_one(local: tuple[str, dict[str, Any]], module: Module) -> None:
    estimate = measure.estimate(
        module, [], [], chips.CHIPS["v5e"], images=48, model_flops=10**9, peak=197e12
    )
    printed = text.to_text({**local[1], "estimate": dataclasses.asdict(estimate)})
    assert "An estimate, nothing was run" in printed
    assert "docs/performance.md" in printed
    assert re.search(r"^images/s/chip +[\d,]+$", printed, re.M)


def test_without_libtpu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match="pip install libtpu"):
        libtpu.check_installed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=v5e:2x2",), "error: compiling for a TPU needs its compiler, libtpu"),
        (("--topology=v5:2x2",), "error: --topology=v5:2x2: no chip 'v5'; did you mean"),
        (("--compare=missing.json",), "error: cannot read --compare=missing.json"),
        (("--output=missing/x.json",), "error: --output=missing/x.json: no such folder"),
    ],
)
def test_mistakes_end_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = _run(f"--config={TINY}", *arguments, before="sys.modules['libtpu'] = None")
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
