"""What a run says: console lines, TensorBoard, metrics.jsonl.

TensorBoard goes through clu, which imports TensorFlow; one background thread does that and all
writing, so that neither start-up nor the loop waits for it.
"""

import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class Reporter:
    """Reports one run; on processes other than the first it does nothing.

    Args:
      workdir: the run directory, where the event files and metrics.jsonl go.
      steps_per_epoch: to say where the run is.
      total_steps: to say when it ends.
      batch_size: images of a step, for the rate.
      first_step: steps done before this start.
      active: whether this process is the one that reports.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        steps_per_epoch: int,
        total_steps: int,
        batch_size: int,
        first_step: int = 0,
        active: bool = True,
    ):
        self._workdir = workdir
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._active = active
        self._last_step = first_step
        self._last_time = time.monotonic()
        self._paused = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._pending: list[Future[None]] = []
        self._writer: Any = None
        self._submit(self._open)

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of training up to `step`, with the rate since the last call and the time left."""
        now = time.monotonic()
        seconds = max(now - self._last_time - self._paused, 1e-9)
        steps_per_second = (step - self._last_step) / seconds
        rate = steps_per_second * self._batch_size
        left = (self._total_steps - step) / max(steps_per_second, 1e-9)
        self._last_step, self._last_time, self._paused = step, now, 0.0
        epoch = step / self._steps_per_epoch
        logger.info(
            "step %d/%d  epoch %.1f  loss %.4f  top1 %.2f %%  lr %.2e  %s images/s  ETA %s",
            step,
            self._total_steps,
            epoch,
            metrics["loss"],
            100 * metrics["top1"],
            metrics["learning_rate"],
            f"{rate:,.0f}",
            duration(left),
        )
        self._write("train", step, {**metrics, "images_per_second": rate, "epoch": epoch})

    def evaluation(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Metrics of an evaluation that took `seconds`, which the training rate leaves out."""
        self._paused += seconds
        logger.info(
            "step %d/%d  evaluation of %s images: top1 %.2f %%  top5 %.2f %%  loss %.4f  (%s)",
            step,
            self._total_steps,
            f"{metrics['count']:,}",
            100 * metrics["top1"],
            100 * metrics["top5"],
            metrics["loss"],
            duration(seconds),
        )
        self._write("test", step, metrics)

    def close(self) -> None:
        """Writes what is left; raises what the writing thread met."""
        self._submit(self._close)
        self._thread.shutdown()
        for future in self._pending:
            future.result()

    def _submit(self, function: Any, *arguments: Any) -> None:
        if not self._active:
            return
        for future in [future for future in self._pending if future.done()]:
            future.result()
            self._pending.remove(future)
        self._pending.append(self._thread.submit(function, *arguments))

    def _write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        named = {f"{group}/{name}": float(value) for name, value in metrics.items()}
        self._submit(self._write_now, step, named)

    def _open(self) -> None:
        from clu import metric_writers

        self._writer = metric_writers.SummaryWriter(str(self._workdir))

    def _write_now(self, step: int, named: dict[str, float]) -> None:
        with (self._workdir / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, **named}) + "\n")
        self._writer.write_scalars(step, named)
        self._writer.flush()

    def _close(self) -> None:
        self._writer.close()


def duration(seconds: float) -> str:
    """ "1:02:03", "4:05" or "0.8 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
