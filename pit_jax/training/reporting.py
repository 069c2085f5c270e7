"""Reports of a run: console lines or a live bar, TensorBoard, metrics.jsonl, curves.png.

A line of metrics.jsonl is in the file before the next checkpoint begins, so that a run killed at
any moment resumes without a gap in it. TensorBoard goes through clu, which imports TensorFlow. One
background thread does this and the drawing, so that neither start-up nor the loop waits for it.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pit_jax.files import replace_file
from pit_jax.training.curves import draw_curves
from pit_jax.training.durations import format_seconds
from pit_jax.training.task import Metric
from pit_jax.weights.run_directory import METRICS_FILE

logger = logging.getLogger(__name__)

CURVES_FILE = "curves.png"


class Reporter:
    """Reports one run; on processes other than the first it does nothing.

    Args:
      workdir: the run directory, for event files, metrics and curves. Metrics of steps after
        `first_step`, written before an interruption, are dropped: those steps run again.
      metrics: metrics of the task, in the order in which lines name them.
      steps_per_epoch: length of an epoch, for the epoch of a line.
      total_steps: number of steps of the run, for the remaining time.
      batch_size: examples per step, for the rate.
      first_step: number of steps done before this start.
      step_utilisation: fraction of the devices' peak at one step per second, or None.
      tensorboard: whether to write event files.
      active: whether this process reports.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        metrics: Sequence[Metric],
        steps_per_epoch: int,
        total_steps: int,
        batch_size: int,
        first_step: int = 0,
        step_utilisation: float | None = None,
        tensorboard: bool = True,
        active: bool = True,
    ):
        self._workdir = workdir
        self._metrics = metrics
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._step_utilisation = step_utilisation
        self._tensorboard = tensorboard
        self._active = active
        self._last_step = first_step
        self._last_time = time.monotonic()
        self._paused = 0.0
        self._waited = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._pending: list[Future[None]] = []
        self._writer: Any = None
        live = active and sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", disable=not live, dynamic_ncols=True
        )
        if active:
            self._continue_metrics(first_step)
            if tensorboard:
                self._submit(self._open_writer)

    def waited(self, seconds: float) -> None:
        """Adds time for which the loop waited for a batch, in seconds."""
        self._waited += seconds

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the live bar to a step whose metrics have been fetched."""
        if not self._bar.disable:
            self._bar.set_postfix_str(self._formatted("train", metrics), refresh=False)
            self._bar.update(step - self._bar.n)

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports training up to `step`, with the rate since the last call and the time left."""
        seconds = max(time.monotonic() - self._last_time - self._paused, 1e-9)
        steps_per_second = (step - self._last_step) / seconds
        found = {
            **metrics,
            "epoch": step / self._steps_per_epoch,
            "images_per_second": steps_per_second * self._batch_size,
            "data_wait_fraction": min(self._waited / seconds, 1.0),
        }
        mfu = ""
        if self._step_utilisation is not None:
            found["mfu"] = steps_per_second * self._step_utilisation
            mfu = f"  MFU {found['mfu']:.1%}"
        # Skipped updates have no loss to report.
        learning = self._formatted("train", found) or "all updates skipped"
        left = (self._total_steps - step) / max(steps_per_second, 1e-9)
        self._say(
            f"step {step}/{self._total_steps}  epoch {found['epoch']:.1f}  {learning}  "
            f"lr {found['learning_rate']:.2e}  "
            f"{found['images_per_second']:,.0f} images/s{mfu}  ETA {format_seconds(left)}"
        )
        self._last_step, self._last_time = step, time.monotonic()
        self._paused = self._waited = 0.0
        self._write("train", step, found)

    def evaluation(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Reports an evaluation; its `seconds` do not count in the rate of training."""
        self._paused += seconds
        self._say(
            f"step {step}/{self._total_steps}  evaluation of {metrics['count']:,} examples: "
            f"{self._formatted('test', metrics)}  ({format_seconds(seconds)})"
        )
        self._write("test", step, metrics)
        names = [metric.name for metric in self._metrics]
        self._submit(draw_curves, self._workdir / METRICS_FILE, self._workdir / CURVES_FILE, names)

    def close(self) -> None:
        """Writes pending reports; raises an error of the writing thread that is not an OSError."""
        self._submit(self._close)
        self._bar.close()
        self._thread.shutdown()
        self._harvest(list(self._pending))

    def _formatted(self, group: str, values: Mapping[str, float]) -> str:
        """Formats the task's metrics that have a value: "test/loss 1.2  test/top1 71.30%"."""
        return "  ".join(
            f"{group}/{metric.name} {values[metric.name]:{metric.format}}"
            for metric in self._metrics
            if metric.name in values
        )

    def _harvest(self, done: list[Future[None]]) -> None:
        """Warns of OSErrors of the writing thread; raises its other errors."""
        for future in done:
            self._pending.remove(future)
            try:
                future.result()
            except OSError as error:
                self._cannot_write(error)

    def _say(self, line: str) -> None:
        self._bar.clear()
        logger.info(line)
        self._bar.refresh()

    def _submit(self, function: Any, *arguments: Any) -> None:
        if not self._active:
            return
        self._harvest([future for future in self._pending if future.done()])
        self._pending.append(self._thread.submit(function, *arguments))

    def _continue_metrics(self, first_step: int) -> None:
        path = self._workdir / METRICS_FILE
        if path.is_file():
            kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= first_step]
            replace_file(path, "".join(kept).encode())

    def _write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        if not self._active:
            return
        named = {f"{group}/{name}": float(value) for name, value in metrics.items()}
        try:
            with (self._workdir / METRICS_FILE).open("a") as file:
                file.write(json.dumps({"step": step, **named}) + "\n")
        except OSError as error:
            self._cannot_write(error)
        if self._tensorboard:
            self._submit(self._write_summary, step, named)

    def _cannot_write(self, error: OSError) -> None:
        """Warns only: metrics are not worth a run, and a checkpoint on a full disk raises."""
        logger.warning("cannot write metrics to %s: %s", self._workdir, error)

    def _open_writer(self) -> None:
        from clu import metric_writers

        self._writer = metric_writers.SummaryWriter(str(self._workdir))

    def _write_summary(self, step: int, metrics: Mapping[str, float]) -> None:
        self._writer.write_scalars(step, metrics)
        self._writer.flush()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _whole_lines(path: Path) -> list[str]:
    """The complete lines of a file; drops one that an interruption cut short."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
