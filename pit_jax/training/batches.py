"""Global training batches, moved to the devices one ahead of the step that uses them."""

import logging
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from pit_jax import sharding
from pit_jax.data.loading import BadImageError
from pit_jax.training.errors import TrainingError
from pit_jax.training.setup import Experiment

logger = logging.getLogger(__name__)


class TrainBatches:
    """Endless iterator over the global training batches on the devices, from `first_batch` on.

    The first batches are read while the step compiles. A thread moves this process's rows to the
    devices one batch ahead, so that the running step hides the transfer. Iterating raises
    TrainingError at an image that does not decode, or at one more than may be skipped.

    Attributes:
      bad_images: indices of the examples skipped since this start by this process; those of other
        processes are added by `count_bad_images`.
    """

    def __init__(self, experiment: Experiment, first_batch: int):
        self._data = experiment.task.data
        self._options = experiment.config.data
        self._mesh = experiment.mesh
        self._rows = iter(experiment.task.train_rows(first_batch))
        if hasattr(self._rows, "start_prefetch"):
            self._rows.start_prefetch()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pit_jax batches")
        self._coming = self._thread.submit(self._make)
        self.bad_images: set[int] = set()

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, jax.Array]:
        try:
            batch, replaced = self._coming.result()
        except BadImageError as error:
            raise TrainingError(
                f"{error}; to continue without such images set config.data.bad_images='skip' and "
                "--allow_config_changes"
                if self._options.bad_images == "error"
                else f"{error}; more than {self._options.max_bad_images} in a row do not decode"
            ) from error
        self._coming = self._thread.submit(self._make)
        self._skip(replaced)
        return batch

    def _make(self) -> tuple[dict[str, jax.Array], set[int]]:
        """A batch, and the indices of the examples replaced in it."""
        rows = dict(next(self._rows))
        replaced = rows.pop("replaced", np.empty(0, np.int32))
        batch = sharding.to_global(self._mesh, rows)
        # Counted when the batch is used: the count must not depend on how far ahead it is made.
        return batch, {int(index) for index in replaced[replaced >= 0]}

    def count_bad_images(self) -> int:
        """Number of distinct examples that all processes have skipped since this start. All
        processes call this at the same steps.

        Raises:
          TrainingError: more than `config.data.max_bad_images`; on all processes.
        """
        if self._options.bad_images == "skip" and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # Arrays of one length on every process; one index over the limit is enough to stop.
            enough = self._options.max_bad_images + 1
            mine = np.full(enough, -1, np.int32)
            known = sorted(self.bad_images)[:enough]
            mine[: len(known)] = known
            gathered = multihost_utils.process_allgather(mine)
            self.bad_images |= {int(index) for index in gathered[gathered >= 0]}
        self._check_limit()
        return len(self.bad_images)

    def _skip(self, replaced: set[int]) -> None:
        for index in sorted(replaced - self.bad_images):
            logger.warning("%s, example %d does not decode: skipped", self._data, index)
        self.bad_images |= replaced
        # One process of several must not stop alone: the others would wait for it.
        if jax.process_count() == 1:
            self._check_limit()

    def _check_limit(self) -> None:
        limit = self._options.max_bad_images
        if len(self.bad_images) > limit:
            raise TrainingError(
                f"{len(self.bad_images)} images of {self._data} do not decode, more than "
                f"config.data.max_bad_images={limit}: examples "
                f"{', '.join(map(str, sorted(self.bad_images)[:10]))}, ...; repair the data"
            )
