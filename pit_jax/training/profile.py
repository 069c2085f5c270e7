"""A profile of some training steps, for TensorBoard's profiler or xprof."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import jax

logger = logging.getLogger(__name__)


class Profile:
    """Traces steps `first` to `last` of a run, both included; (0, 0) traces nothing.

    Args:
      workdir: the run directory; the trace goes to its plugins/profile folder.
      first: step that starts the trace.
      last: step that ends it.
    """

    def __init__(self, workdir: Path, first: int, last: int):
        self._workdir = workdir
        self._first = first
        self._last = last
        self._running = False

    @contextlib.contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Surrounds a step."""
        if step == self._first:
            jax.profiler.start_trace(self._workdir)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self._running and step == self._last:
            # What is still queued belongs to the profile.
            jax.effects_barrier()
            jax.profiler.stop_trace()
            self._running = False
            logger.info("profile of steps %d to %d in %s", self._first, step, self._workdir)
