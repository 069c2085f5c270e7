"""Profiling of some training steps, for TensorBoard's profiler or xprof."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Profile:
    """Traces steps `first` to `last` of a run, both included; (0, 0) traces nothing.

    Args:
      workdir: the run directory; the trace goes to its plugins/profile folder.
      first: step that starts the trace.
      last: step that ends the trace.
      total_steps: number of steps of the run; a warning is logged if `last` is beyond it.
    """

    def __init__(self, workdir: Path, first: int, last: int, *, total_steps: int):
        self._workdir = workdir
        self._first = first
        self._last = last
        self._running = False
        if last > total_steps:
            logger.warning(
                "config.profile_steps=(%d, %d) goes beyond the last step, %d: %s",
                first,
                last,
                total_steps,
                "nothing will be traced" if first > total_steps else "the trace ends there",
            )

    def traced(self, step: int, function: Callable[..., Result], *arguments: object) -> Result:
        """Calls a step's function, inside the trace where one is wanted; returns its result."""
        if step == self._first:
            jax.profiler.start_trace(self._workdir)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if step == self._last:
            # Steps run asynchronously: without waiting, the trace would miss the last ones.
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Ends a running trace and writes it; safe to call when a run ends early."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info("profile from step %d on in %s", self._first, self._workdir)
