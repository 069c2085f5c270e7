"""Graceful shutdown: SIGTERM, Ctrl-C or preemption of any process ends a run after a step.

In a job of several processes JAX's preemption service agrees on a step at which all of them stop.
A single process only sets a flag.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class Stopper:
    """Tells the loop, once per step, whether to stop."""

    def __init__(self) -> None:
        self._asked = False

    def requested(self, step: int) -> bool:
        """Whether any process was asked to stop; True on all processes at the same step.

        Args:
          step: number of steps done.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: asks to stop. A second signal ends the process at once."""
        del frame
        self._asked = True
        signal.signal(number, signal.SIG_DFL)
        logger.info(
            "%s: saving a checkpoint, then stopping; a second signal ends the run at once",
            signal.Signals(number).name,
        )
        if jax.process_count() > 1:
            # The preemption service listens for SIGTERM alone.
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def graceful_shutdown() -> Iterator[Stopper]:
    """Yields a `Stopper` that handles signals; the previous handlers are restored afterwards."""
    stopper = Stopper()
    # With several processes, SIGTERM belongs to JAX's preemption service.
    numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python allows signal handlers in the main thread only
    before = {number: signal.signal(number, stopper.ask) for number in numbers}
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
