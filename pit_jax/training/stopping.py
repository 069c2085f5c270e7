"""Ending early in an orderly way: SIGTERM, Ctrl-C, preemption of any one process.

In a job of several processes JAX's preemption service agrees on a step at which all of them stop;
a single process needs no more than a flag.
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
    """Whether to stop, asked once a step with the number of steps done."""

    def __init__(self) -> None:
        self._asked = False

    def requested(self, step: int) -> bool:
        """True, on all processes at the same step, once any of them was told to end."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler; a second signal ends the process the usual way."""
        del frame
        self._asked = True
        signal.signal(number, signal.SIG_DFL)
        logger.info(
            "%s: saving a checkpoint, then stopping; once more ends at once",
            signal.Signals(number).name,
        )
        if jax.process_count() > 1:
            # Passed on as what the preemption service listens for.
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def orderly() -> Iterator[Stopper]:
    """A `Stopper` that signals reach; handlers are put back afterwards.

    SIGTERM belongs to JAX's preemption service where there are several processes.
    """
    stopper = Stopper()
    numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python delivers signals to the main thread alone
    before = {number: signal.signal(number, stopper.ask) for number in numbers}
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
