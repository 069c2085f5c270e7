"""Costs of the trainer beyond the compiled step: on the host, at checkpoints, at the start.

    python benchmarks/trainer.py [--only overhead checkpoint start] [--repeats 5] [--json]

overhead    seconds a step of a whole run takes (dispatch, hand-over of a batch, metrics, logging)
            on a tiny model, next to the same compiled step called in a bare loop on one batch; and
            the same run with its input, whose threads share the cores with the step on a CPU
checkpoint  how long the loop is blocked by a save of a PiT-S-sized state (parameters, two moments
            of AdamW, moving average), next to the time until all of it is on disk
start       from starting train.py on the digits to its first step done, with an empty and with a
            filled compilation cache, next to a bare `import jax` and one addition

Every figure is the median of repeats, with the smallest and the largest. Files are in the operating
system's cache in all repeats but the first.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from measuring import machine

ROOT = Path(__file__).resolve().parents[1]
LOG_STEPS = 100  # the default of config.log_every
BARE_START = "import jax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()"
PREPARE_DATA = "from pit_jax.data.digits import prepare_digits; prepare_digits()"
START_LIMIT = 600


@dataclasses.dataclass(frozen=True)
class Figure:
    """Seconds of all repeats of one measurement."""

    name: str
    seconds: list[float]
    target: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        unit, factor = ("ms", 1e3) if self.median < 1 else ("s", 1.0)
        low, high = min(self.seconds) * factor, max(self.seconds) * factor
        target = "" if self.target is None else f"  target <= {self.target * factor:g} {unit}"
        return (
            f"{self.name:<58} {self.median * factor:9.2f} {unit:<2}  "
            f"({low:.2f} to {high:.2f}, {len(self.seconds)} repeats){target}"
        )


def overhead(repeats: int, scratch: Path) -> list[Figure]:
    """Time per step of a real run and of its compiled step alone; windows of 100 steps."""
    from pit_jax.tasks.experiments import prepare
    from pit_jax.training import loop, start
    from pit_jax.training.batches import TrainBatches
    from pit_jax.training.state import create_state
    from pit_jax.weights.run_directory import METRICS_FILE

    # A run loads its metric writer in the background; here that would fall into what is measured.
    importlib.import_module("clu.metric_writers")
    windows = repeats + 1  # the first one starts the input pipeline
    experiment = prepare(_tiny_experiment(windows * LOG_STEPS), scratch / "overhead")
    state = create_state(
        experiment.task.initial_values(), experiment.optimizer, experiment.mesh, ema=False, seed=0
    )
    compiled = start.compile_step(experiment, state, {})
    batch = next(TrainBatches(experiment, 0))

    def bare_window() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(LOG_STEPS):
            state, metrics = compiled(state, {}, batch)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - began) / LOG_STEPS

    def run_windows(experiment: Any) -> list[float]:
        loop.run(experiment)
        lines = (experiment.workdir / METRICS_FILE).read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "train/images_per_second" in row][1:]
        return [experiment.config.batch_size / row["train/images_per_second"] for row in rows]

    bare_window()
    bare = [bare_window() for _ in range(repeats)]
    with_input = run_windows(experiment)
    again = prepare(_tiny_experiment(windows * LOG_STEPS), scratch / "ready")
    ready = {"train_rows": lambda first_batch: _Ready(batch)}
    with unittest.mock.patch.multiple(again.task, **ready):
        looped = run_windows(again)
    bare += [bare_window() for _ in range(repeats)]
    baseline = statistics.median(bare)
    return [
        Figure("a step, bare compiled step in a loop", bare),
        Figure("a step, in the trainer, batches ready", looped),
        Figure("overhead of the trainer per step", [row - baseline for row in looped], 2e-3),
        Figure("a step, in the trainer, batches decoded by the same cores", with_input),
    ]


class _Ready:
    """One batch again and again, which costs nothing to make, instead of the pipeline's."""

    def __init__(self, batch: dict[str, Any]) -> None:
        rows = jax.device_get(batch)
        self._rows = rows | {"replaced": np.full_like(rows["label"], -1)}

    def start_prefetch(self) -> None:
        """There is nothing to begin."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return dict(self._rows)


def _tiny_experiment(steps: int) -> Any:
    """A network so small that a step consists of little but overhead."""
    from pit_jax.tasks.experiments import default_config

    config = default_config()
    config.batch_size = config.eval_batch_size = 8 * jax.device_count()
    for name in ("duration", "eval_every", "checkpoint_every"):
        config[name] = f"{steps} steps"
    config.log_every = f"{LOG_STEPS} steps"
    config.optimizer.warmup = "10 steps"
    config.augment.flip_probability = 0.0
    config.model.name = "pit_ti"
    config.model.image_size = (8, 8)
    config.model.dtype = "float32"
    config.model.options = {
        "patch_size": 2,
        "stride": 2,
        "widths": (8, 16),
        "depths": (1, 1),
        "heads": (1, 2),
    }
    config.data.name = "digits"
    config.data.eval_split = "test[:64]"
    config.data.eval_protocol = "resize"
    return config


def checkpoint(repeats: int, scratch: Path) -> list[Figure]:
    """How long a save blocks, and how long until it is on disk."""
    from pit_jax import sharding
    from pit_jax.models import parameters, zoo
    from pit_jax.optim.optimizers import make_optimizer
    from pit_jax.training.checkpoints import Checkpoints
    from pit_jax.training.state import create_state

    _, values = parameters.split(zoo.build(zoo.model_config("pit_s"), seed=0))
    state = create_state(
        values, make_optimizer("adamw", 1e-3), sharding.make_mesh(), ema=True, seed=0
    )
    jax.block_until_ready(state)
    blocked, written = [], []
    with contextlib.closing(Checkpoints(scratch / "checkpoint", keep=1)) as saved:
        saved.prepare(state).result()  # a run does so while it starts
        for step in range(repeats + 1):  # the first makes folders and threads
            progress = {"next_batch": step, "window": [], "metrics": {}, "versions": {}}
            began = time.perf_counter()
            saved.save(state, step, progress, {})
            blocked.append(time.perf_counter() - began)
            saved.wait()
            written.append(time.perf_counter() - began)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    return [
        Figure(f"a save of {size:.0f} MB, until it is on disk", written[1:]),
        Figure("stall of the loop by a save", blocked[1:], 50e-3),
        Figure("stall of the loop by the first save of a run", blocked[:1]),
    ]


def start(repeats: int, scratch: Path) -> list[Figure]:
    """From the start of train.py on the digits to its first step done."""
    environment = {**os.environ, "PIT_JAX_CACHE": str(scratch / "cache")}

    def program(text: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=environment, check=True)
        return time.perf_counter() - began

    program(PREPARE_DATA)
    bare = [program(BARE_START) for _ in range(repeats)]
    cold = [
        _first_step(environment, scratch / f"compiled{index}", scratch / f"cold{index}")
        for index in range(repeats)
    ]
    warm = [
        _first_step(environment, scratch / "compiled0", scratch / f"warm{index}")
        for index in range(repeats)
    ]
    return [
        Figure("start of Python, JAX and one compiled addition", bare),
        Figure("start of the digits run to its first step, empty cache", cold),
        Figure("start of the digits run to its first step, filled cache", warm, 10.0),
    ]


def _first_step(environment: dict[str, str], compiled: Path, workdir: Path) -> float:
    """Seconds until a run has logged its first step; the run is then told to end."""
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--config.log_every=1 step"],
        cwd=ROOT,
        env={**environment, "JAX_COMPILATION_CACHE_DIR": str(compiled)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    with _ended(process):
        for line in process.stderr or ():
            said.append(line)
            if re.search(r" step 1/\d+ ", line):
                return time.perf_counter() - began
    raise RuntimeError(f"train.py ended before its first step: {''.join(said[-20:])}")


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leaves no process behind."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=START_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


MEASUREMENTS: dict[str, Callable[[int, Path], list[Figure]]] = {
    "overhead": overhead,
    "checkpoint": checkpoint,
    "start": start,
}


def main() -> None:
    """Runs the chosen measurements; prints a table, and JSON on request."""
    parser = argparse.ArgumentParser(description="Cost of the trainer beyond its compiled step.")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", help="where checkpoints are written; default: for temporary")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON as well")
    options = parser.parse_args()
    described = machine()
    for name, value in described.items():
        print(f"{name:<10} {value}")
    report: dict[str, Any] = {"machine": described}
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="pit_jax_", dir=options.directory) as scratch:
            figures = MEASUREMENTS[name](options.repeats, Path(scratch))
        print(f"\n{name}")
        for figure in figures:
            print(figure, flush=True)
        report[name] = [dataclasses.asdict(row) | {"median": row.median} for row in figures]
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
