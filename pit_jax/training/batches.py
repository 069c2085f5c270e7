"""Global training batches on the devices, one ahead of the step that uses them."""

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
    """The global training batches on the devices, from batch `first_batch` on, without end.

    Attributes:
      bad_images: indices of the examples skipped so far, since the start: in this process, and as
        of the last `count_bad_images` in all others.

    The first ones are begun at once, while the step compiles. A thread hands this process's rows to
    the devices one batch ahead: what that takes on a busy host, the step hides. Iterating raises
    TrainingError for an image that does not decode, or one too many.
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
                f"{error}; to go on without such images set config.data.bad_images='skip' and "
                "--allow_config_changes"
                if self._options.bad_images == "error"
                else f"{error}; it is one of more than {self._options.max_bad_images} in a row"
            ) from error
        self._coming = self._thread.submit(self._make)
        self._skip(replaced)
        return batch

    def _make(self) -> tuple[dict[str, jax.Array], set[int]]:
        """A batch, and what had to be replaced in it: to be counted when it is used, not before."""
        rows = dict(next(self._rows))
        replaced = rows.pop("replaced", np.empty(0, np.int32))
        batch = sharding.to_global(self._mesh, rows)
        return batch, {int(index) for index in replaced[replaced >= 0]}

    def count_bad_images(self) -> int:
        """Different examples that the whole job has skipped since its start. All processes have to
        call this at the same steps.

        Raises:
          TrainingError: they are more than `config.data.max_bad_images`; on all processes.
        """
        if self._options.bad_images == "skip" and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            enough = self._options.max_bad_images + 1
            mine = np.full(enough, -1, np.int32)
            known = sorted(self.bad_images)[:enough]
            mine[: len(known)] = known
            everybodys = multihost_utils.process_allgather(mine)
            self.bad_images |= {int(index) for index in everybodys[everybodys >= 0]}
        self._check_limit()
        return len(self.bad_images)

    def _skip(self, replaced: set[int]) -> None:
        for index in sorted(replaced - self.bad_images):
            logger.warning("%s, example %d does not decode: skipped", self._data, index)
        self.bad_images |= replaced
        if jax.process_count() == 1:  # one of several would leave the others waiting for it
            self._check_limit()

    def _check_limit(self) -> None:
        limit = self._options.max_bad_images
        if len(self.bad_images) > limit:
            raise TrainingError(
                f"{len(self.bad_images)} images of {self._data} do not decode, more than "
                f"config.data.max_bad_images={limit}: examples "
                f"{', '.join(map(str, sorted(self.bad_images)[:10]))}, ...; repair the data"
            )
