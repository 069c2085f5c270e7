"""Jobs of real processes: equal results on any number of them; one is asked to stop, or killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pit_jax.models import parameters
from pit_jax.weights.run_directory import restore_params

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parents[1] / "tiny.py"
DEADLINE = 240
# One job of each kind runs by default: a job takes up to a minute, most of it to start.
slow = pytest.mark.slow
# train.py, but arrays below its usual minimum size are split over fsdp groups too.
PROGRAM = """
import runpy
from pit_jax import sharding
sharding.MIN_SHARDED_SIZE = 64
runpy.run_path("train.py", run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Job:
    """A training of one or more processes, each with its own devices.

    `extra` has further options for some of the processes, by number.
    """

    def __init__(
        self,
        workdir: Path,
        processes: int,
        devices: int,
        *options: str,
        extra: dict[int, tuple[str, ...]] | None = None,
    ):
        program = [sys.executable, "-c", PROGRAM]
        command = [*program, f"--config={TINY}", f"--workdir={workdir}", *options]
        if processes > 1:
            command += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        self.processes = [
            subprocess.Popen(
                command
                + ([f"--process_id={index}"] if processes > 1 else [])
                + list((extra or {}).get(index, ())),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(processes)
        ]

    def outputs(self) -> list[tuple[str, str]]:
        return [process.communicate(timeout=DEADLINE) for process in self.processes]

    def succeed(self) -> list[str]:
        """Waits for the end; returns the last line of every process."""
        outputs = self.outputs()
        assert [process.returncode for process in self.processes] == [0] * len(outputs), outputs
        return [output.strip().splitlines()[-1] for output, _ in outputs]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended, ended[0].communicate()
            assert time.monotonic() < end
            time.sleep(0.002)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()


@contextlib.contextmanager
def job(
    workdir: Path,
    processes: int,
    devices: int,
    *options: str,
    extra: dict[int, tuple[str, ...]] | None = None,
) -> Iterator[Job]:
    """Starts a job and kills what is left of it at the end."""
    started = Job(workdir, processes, devices, *options, extra=extra)
    try:
        yield started
    finally:
        started.kill()


def complete(workdir: Path, processes: int, devices: int, *options: str) -> list[str]:
    with job(workdir, processes, devices, *options) as started:
        return started.succeed()


def metrics(workdir: Path) -> list[dict[str, float]]:
    """The logged metrics, without those that depend on the clock."""
    timed = ("images_per_second", "data_wait_fraction")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(timed)} for line in lines
    ]


def stored(path: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint's item, saved from any devices."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            checkpointer.metadata(path).item_metadata.tree,
        )
        leaves = jax.tree.leaves_with_path(checkpointer.restore(path, shapes))
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


def assert_same_state(found: Path, expected: Path) -> None:
    """Parameters, moving average, optimizer state and metrics are equal to the bit."""
    last = str(saved_steps(expected)[-1])
    for item in ("params", "ema", "optimizer"):
        left, right = (stored(path / "checkpoints" / last / item) for path in (found, expected))
        assert left.keys() == right.keys()
        assert left
        for name, value in right.items():
            np.testing.assert_array_equal(left[name], value, err_msg=f"{item}{name}")
    assert metrics(found) == metrics(expected)


@pytest.mark.parametrize(
    ("processes", "devices", "fsdp"),
    [
        pytest.param(1, 1, 1, marks=slow),
        pytest.param(2, 2, 1, marks=slow),
        (2, 2, 2),
        pytest.param(4, 1, 4, marks=slow),
    ],
)
def test_equal_results_on_any_devices(
    finished: Path, tmp_path: Path, processes: int, devices: int, fsdp: int
):
    options = ("--config.tensorboard=False", f"--config.fsdp={fsdp}")
    lines = complete(tmp_path, processes, devices, *options)
    assert len(set(lines)) == 1
    assert lines[0].startswith("done: step=9 ")
    expected, found = metrics(finished), metrics(tmp_path)
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left == pytest.approx(right, rel=2e-4)
        for name in ("test/count", "test/top1", "test/top5"):
            assert left.get(name) == right.get(name)
    restored, _ = restore_params(tmp_path)
    assert parameters.count(restored) > 0


LONG = (
    "--config.tensorboard=False",
    "--config.duration=30 steps",
    "--config.checkpoint_every=3 steps",
    "--config.eval_every=10 steps",
    "--config.log_every=7 steps",
    "--config.optimizer.warmup=3 steps",
)


def saved_steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def half_written(workdir: Path) -> set[str]:
    """Checkpoints that are being written, or were when a run was killed."""
    return {path.name for path in (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Longer runs on one and on two processes."""
    directories = {}
    for processes in (1, 2):
        directories[processes] = tmp_path_factory.mktemp(f"uninterrupted{processes}")
        complete(directories[processes], processes, 1, *LONG)
    return directories


@pytest.mark.parametrize("processes", [pytest.param(1, marks=slow), 2])
def test_a_run_killed_three_times_ends_bit_identically(
    uninterrupted: dict[int, Path], tmp_path: Path, processes: int
):
    rng = np.random.default_rng()
    first, second = sorted(rng.integers(3, 25, 2).tolist())
    print("killed after steps", first, second, "and during a save")
    for killed_at in (first, None, second):
        before = half_written(tmp_path)
        with job(tmp_path, processes, 1, *LONG) as started:
            if killed_at is None:
                started.wait_until(lambda before=before: bool(half_written(tmp_path) - before))
            else:
                started.wait_until(
                    lambda step=killed_at: max(saved_steps(tmp_path), default=0) >= step
                )
                time.sleep(rng.uniform(0, 0.05))  # some steps later
    complete(tmp_path, processes, 1, *LONG)
    assert_same_state(tmp_path, uninterrupted[processes])


@pytest.mark.parametrize(
    ("processes", "told", "number"),
    [
        pytest.param(1, 0, signal.SIGINT, marks=slow),
        pytest.param(2, 0, signal.SIGTERM, marks=slow),
        (2, 1, signal.SIGTERM),
    ],
)
def test_a_process_told_to_end_saves_and_the_run_continues(
    uninterrupted: dict[int, Path],
    tmp_path: Path,
    processes: int,
    told: int,
    number: signal.Signals,
):
    with job(tmp_path, processes, 1, *LONG) as started:
        started.wait_until(lambda: bool(saved_steps(tmp_path)))
        started.processes[told].send_signal(number)
        lines = started.succeed()
    assert len(set(lines)) == 1
    assert lines[0].startswith("interrupted: step=")
    assert "run the same command again to continue" in lines[0]
    step = int(lines[0].split("step=")[1].split()[0])
    assert saved_steps(tmp_path)[-1] == step < 30
    assert not (tmp_path / "result.json").exists()
    complete(tmp_path, processes, 1, *LONG)
    assert_same_state(tmp_path, uninterrupted[processes])


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 1), (2, 2, "--config.fsdp=2")), pytest.param((2, 1), (1, 1), marks=slow)],
)
def test_resuming_on_other_processes_keeps_the_batches(
    uninterrupted: dict[int, Path],
    tmp_path: Path,
    before: tuple[int, int],
    after: tuple[int, int, str] | tuple[int, int],
):
    """Values are equal up to rounding, which grows over the steps."""
    with job(tmp_path, *before, *LONG) as started:
        started.wait_until(lambda: bool(saved_steps(tmp_path)))
    complete(tmp_path, *after, *LONG, "--allow_config_changes")
    for left, right in zip(metrics(tmp_path), metrics(uninterrupted[1]), strict=True):
        assert left == pytest.approx(right, rel=5e-3)


FOR_EVER = (
    "--config.duration=100000 steps",
    "--heartbeat=10",
    "--config.tensorboard=False",
)


def ends_with_a_message(process: subprocess.Popen, within: float) -> None:
    """The message of a process that lost another: JAX's, or the trainer's if a step fails."""
    began = time.monotonic()
    _, errors = process.communicate(timeout=DEADLINE)
    assert time.monotonic() - began < within
    assert process.returncode not in (0, 2)
    assert "another task died" in errors or "error: this process of several ends" in errors


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=slow)])
def test_the_others_end_when_a_process_dies(tmp_path: Path, killed: int):
    with job(tmp_path, 2, 1, *FOR_EVER) as started:
        started.wait_until(lambda: bool(saved_steps(tmp_path)))
        started.processes[killed].kill()
        ends_with_a_message(started.processes[1 - killed], within=60)


BAD = ("--config.data.name=imagenet2012", "--config.data.data_dir=/nowhere")


@pytest.mark.parametrize(
    "bad", [pytest.param((0,), marks=slow), (1,), pytest.param((0, 1), marks=slow)]
)
def test_a_process_that_cannot_run_ends_at_once_and_the_others_soon(
    tmp_path: Path, bad: tuple[int, ...]
):
    with job(tmp_path, 2, 1, *FOR_EVER, extra=dict.fromkeys(bad, BAD)) as started:
        for index in bad:
            output, errors = started.processes[index].communicate(timeout=60)
            assert (output, started.processes[index].returncode) == ("", 2), errors
            assert errors.splitlines()[-1].startswith("error: imagenet2012 is not prepared")
        for index in {0, 1} - set(bad):
            ends_with_a_message(started.processes[index], within=60)


def test_a_process_whose_others_do_not_come_gives_up(tmp_path: Path):
    with job(tmp_path, 2, 1, "--timeout=5") as started:
        began = time.monotonic()
        started.processes[1].kill()
        _, errors = started.processes[0].communicate(timeout=60)
    assert time.monotonic() - began > 5
    assert started.processes[0].returncode != 0
    assert "process 0 of 2 waits up to 5 s for the others" in errors
    assert "DEADLINE_EXCEEDED" in errors
