"""Checkpoints of a run, written by Orbax in the background; each is complete or absent.

WORKDIR/config.json                     the experiment, the model it builds, versions
WORKDIR/checkpoints/STEP/params         trained parameters; likewise statistics and ema
                        /optimizer      state of the optimizer, count of skipped updates
                        /progress       metrics not yet logged, and of the last evaluation
                        /metrics        of an evaluation of this very state
WORKDIR/checkpoints/damaged-STEP        a checkpoint that could not be read

Each item of a step can be restored by itself. `training.recovery` finds the one to resume from.
"""

import copy
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from pit_jax import processes, sharding
from pit_jax.training.state import TrainState
from pit_jax.weights.run_directory import CHECKPOINT_FOLDER

logger = logging.getLogger(__name__)

Progress = dict[str, Any]


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; earlier ones are untouched."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, usable from a thread."""

    def reached_preemption(self, step: int) -> bool:
        """Returns False without asking: the preemption service counts the loop's questions, and
        further ones from this thread would confuse it.
        """
        del step
        return False


class Checkpoints:
    """The checkpoints of one run directory.

    Orbax's own asynchronous save blocks its caller while it plans the writing and fetches every
    array, 0.2 s for 150 small ones. Here the caller waits only for the start of a copy on the
    devices; a thread does the rest.

    Args:
      workdir: the run directory.
      keep: number of newest checkpoints to keep, beside the best.
      best: name of the metric that ranks checkpoints.
      higher_is_better: whether a higher value of that metric is better.
    """

    def __init__(
        self, workdir: Path, *, keep: int, best: str = "top1", higher_is_better: bool = True
    ):
        logging.getLogger("absl").addFilter(_is_relevant)
        self.folder = (workdir / CHECKPOINT_FOLDER).absolute()
        self._keep = keep
        self._best = best
        self._sign = 1.0 if higher_is_better else -1.0
        self._manager = self._open()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._snapshot: Future[Any] | None = None

    def _open(self) -> ocp.CheckpointManager:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot make {self.folder}: {error.strerror or error}; remove what is there, or "
                "choose a --workdir that can be written"
            ) from error
        processes = set(range(jax.process_count()))
        return _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(self._keep),
                        policies.BestN(
                            get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                # Without `best_fn` Orbax stores no metrics, and forgets the best at a restart.
                best_fn=self._rank,
                cleanup_tmp_directories=True,
                enable_background_delete=True,
                create=False,
                # If the processes are named, they synchronise through the coordination service.
                # Otherwise they do so through the devices, where a program started by this thread
                # would come between those of the loop, at other places on other processes.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes=processes if len(processes) > 1 else None
                ),
            ),
        )

    def _rank(self, metrics: dict[str, float]) -> float:
        return self._sign * metrics[self._best]

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; waits for one that is being written."""
        self.wait()
        return self._manager.latest_step()

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / str(step)

    def prepare(self, state: TrainState) -> Future[Any]:
        """Compiles the copy of such a state, in the thread, before the first save needs it."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        jitted = jax.jit(_snapshot, out_shardings=(shardings, state.step.sharding))
        lowered = jitted.lower(state)
        self._snapshot = self._thread.submit(lowered.compile)
        return self._snapshot

    def save(
        self, state: TrainState, step: int, progress: Progress, metrics: dict[str, float]
    ) -> None:
        """Starts writing; the caller may donate the state to the next step at once.

        Until the checkpoint is written, the devices hold the state twice. A step that is saved
        already is left alone.

        Args:
          state: the state after `step` steps.
          step: number of steps done.
          progress: further values that a resumed run needs, as JSON.
          metrics: metrics of this very state, by which it is ranked; {} if it was not evaluated.

        Raises:
          CheckpointError: the previous checkpoint could not be written.
        """
        if step == self.latest_step():
            return
        snapshot = self._snapshot or self.prepare(state)
        copied, finite = snapshot.result()(state)
        # The loop goes on changing its own while the thread writes these.
        progress, metrics = copy.deepcopy((progress, metrics))
        written = self._thread.submit(self._write, copied, finite, step, progress, metrics)
        self._writing = step, written

    def _write(
        self,
        state: TrainState,
        finite: jax.Array,
        step: int,
        progress: Progress,
        metrics: dict[str, float],
    ) -> None:
        if not finite.item():
            raise ValueError("the state of this step has values that are not finite")
        items = {name: ocp.args.StandardSave(tree) for name, tree in items_of(state).items()}
        items["progress"] = ocp.args.JsonSave(progress)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics or None)
        self._manager.wait_until_finished()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._writing is None:
            return
        step, written = self._writing
        self._writing = None
        try:
            written.result()
        except (OSError, RuntimeError, ValueError) as error:
            raise self._cannot_save(step, error) from error

    def _cannot_save(self, step: int, error: Exception) -> CheckpointError:
        kept = sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())
        return CheckpointError(
            f"cannot write the checkpoint of step {step} to {self.folder}: "
            f"{' '.join(str(error).split())[:300]}. "
            f"Intact: {', '.join(map(str, kept)) or 'none'}. Free space or repair the folder, then "
            "run the same command again"
        )

    def restore(self, step: int, abstract: TrainState, seed: int) -> tuple[TrainState, Progress]:
        """State and progress of a step. Damage raises errors of many kinds from the libraries.

        Args:
          step: step of the checkpoint.
          abstract: shapes, dtypes and shardings of the state.
          seed: seed of the configuration; it is not stored.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in items_of(abstract).items()}
        items["progress"] = ocp.args.JsonRestore()
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = TrainState(
            step=sharding.shard(np.int32(step), abstract.step.sharding),
            seed=sharding.shard(np.int32(seed), abstract.seed.sharding),
            params=restored["params"],
            statistics=restored.get("statistics") or {},
            optimizer=restored["optimizer"]["state"],
            ema=restored.get("ema") or {},
            skipped=restored["optimizer"]["skipped"],
        )
        return state, restored["progress"]

    def rename(self, step: int, name: str) -> None:
        """Gives the folder of a step another name, so that it is no checkpoint any more. All
        processes call this together.

        Raises:
          CheckpointError: it cannot be renamed; on all processes.
        """
        self._manager.close()
        failed: OSError | None = None
        if jax.process_index() == 0:
            try:
                self.path(step).rename(self.folder / name)
            except OSError as error:
                failed = error
        if not processes.all_agree(failed is None):
            raise CheckpointError(
                f"cannot rename {self.path(step)}, which is damaged, to {name}: "
                f"{failed or 'see the log of the first process'}; move it away"
            )
        self._manager = self._open()

    def close(self) -> None:
        """Ends the writing. Everything saved is on disk then, or `wait` has raised."""
        self._thread.shutdown()
        try:
            self._manager.close()
        except (OSError, RuntimeError, ValueError) as error:
            logger.warning("closing %s: %s", self.folder, " ".join(str(error).split())[:300])


def items_of(state: TrainState) -> dict[str, Any]:
    """The parts of a state by the names under which they are stored; empty parts are left out."""
    items = {
        "params": state.params,
        "statistics": state.statistics,
        "ema": state.ema,
        "optimizer": {"state": state.optimizer, "skipped": state.skipped},
    }
    return {name: tree for name, tree in items.items() if tree}


def _snapshot(state: TrainState) -> tuple[TrainState, jax.Array]:
    """A copy of the state, and whether all of it is finite, a bool scalar."""
    # The loss does not tell: it was computed before the update.
    finite = [
        jnp.isfinite(leaf).all()
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jax.tree.map(jnp.copy, state), jnp.stack(finite).all()


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drops two warnings of Orbax that come with every checkpoint here: that it has no metrics, as
    most have none, and that a single item was opened, which has no metadata of its own.
    """
    message = record.getMessage()
    return not message.startswith(("Requested `tracked_metric`", "Metadata file does not exist"))
