"""Checkpoints of a run: Orbax, asynchronous, atomic, the damaged ones set aside.

Orbax's own asynchronous save blocks its caller for as long as it takes to plan the writing and to
fetch every array, 0.2 s for 150 small ones. Here the loop waits for no more than the start
of a copy on the devices; all else happens in a thread.

WORKDIR/config.json                     the experiment, the model it builds, versions
WORKDIR/checkpoints/STEP/params         what the optimizer trains, and statistics, ema,
                        /optimizer      its state; each restorable by itself
                        /progress       metrics not yet logged, and of the last evaluation
                        /metrics        of an evaluation of that very state
WORKDIR/checkpoints/damaged-STEP        what could not be read
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
    """A checkpoint could not be written or read; those written before are as they were."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, for use from a thread."""

    def reached_preemption(self, step: int) -> bool:
        """Never: the service counts the loop's questions, and others in between confuse it."""
        del step
        return False


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      workdir: the run directory.
      keep: how many of the newest stay, beside the best.
      best: name of the metric that tells which is the best.
      higher_is_better: of that metric.
    """

    def __init__(
        self, workdir: Path, *, keep: int, best: str = "top1", higher_is_better: bool = True
    ):
        logging.getLogger("absl").addFilter(_is_news)
        self._folder = (workdir / CHECKPOINT_FOLDER).absolute()
        self._keep = keep
        self._best = best
        self._sign = 1.0 if higher_is_better else -1.0
        self._manager = self._open()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._snapshot: Future[Any] | None = None

    def _open(self) -> ocp.CheckpointManager:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot make {self._folder}: {error.strerror or error}; remove what is there, or "
                "choose a --workdir that can be written"
            ) from error
        processes = set(range(jax.process_count()))
        return _Manager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(self._keep),
                        policies.BestN(
                            get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                # Without it Orbax would not store metrics, and forget the best at a restart.
                best_fn=self._rank,
                cleanup_tmp_directories=True,
                enable_background_delete=True,
                create=False,
                # With the processes named they meet through the coordination service. Otherwise
                # through the devices, where a thread would get in between the loop's programs.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes=processes if len(processes) > 1 else None
                ),
            ),
        )

    def _rank(self, metrics: dict[str, float]) -> float:
        return self._sign * metrics[self._best]

    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint; waits for the one being written."""
        self.wait()
        return self._manager.latest_step()

    def prepare(self, state: TrainState) -> Future[Any]:
        """Compiles what copies such states, in the thread, before the first save needs it."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        jitted = jax.jit(_snapshot, out_shardings=(shardings, state.step.sharding))
        lowered = jitted.lower(state)
        self._snapshot = self._thread.submit(lowered.compile)
        return self._snapshot

    def save(
        self, state: TrainState, step: int, progress: Progress, metrics: dict[str, float]
    ) -> None:
        """Starts writing; training may go on at once, and donate the state. A step already saved is
        left alone. Until it is written the devices hold the state twice.

        Args:
          state: after `step` steps.
          step: its number.
          progress: what else a resumed run needs, as JSON.
          metrics: of an evaluation of this very state, which make it comparable; else {}.

        Raises:
          CheckpointError: the last checkpoint could not be written.
        """
        if step == self.latest_step():
            return
        snapshot = self._snapshot or self.prepare(state)
        copied, finite = snapshot.result()(state)
        # The caller's own go on changing while these are written.
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
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        items["progress"] = ocp.args.JsonSave(progress)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics or None)
        self._manager.wait_until_finished()

    def restore_newest(
        self, abstract: TrainState, *, seed: int
    ) -> tuple[TrainState, Progress] | None:
        """The newest state that can be read, on the devices and shardings of `abstract`.

        The seed is the configuration's, and not stored.

        A checkpoint that cannot be read is renamed to damaged-STEP and the one before it taken;
        where there are none, there is None.

        Raises:
          CheckpointError: a checkpoint that holds another model or optimizer; or there were some,
            and none of them can be read.
        """
        lost: list[int] = []
        while (step := self.latest_step()) is not None:
            self._check_structure(step, abstract)
            failure: Exception | None = None
            try:
                restored = self._restore(step, abstract, seed)
            except Exception as error:  # damage shows in whatever way the reading library fails
                failure = error
            if processes.all_agree(failure is None):
                return restored
            self._set_aside(step, failure)
            lost.append(step)
        if lost:
            raise CheckpointError(
                f"no checkpoint in {self._folder} can be read: those of steps "
                f"{', '.join(map(str, lost))} are set aside there as damaged-STEP. Restore them "
                "from a copy; or run the same command again, to start from the beginning"
            )
        return None

    def _restore(self, step: int, abstract: TrainState, seed: int) -> tuple[TrainState, Progress]:
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _items(abstract).items()}
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

    def _check_structure(self, step: int, abstract: TrainState) -> None:
        """Refuses a checkpoint whose arrays have other names or shapes: that is no damage."""
        for item, tree in _items(abstract).items():
            expected = _shapes(tree)
            folder = self.path(step) / item
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    stored = _shapes(checkpointer.metadata(folder).item_metadata.tree)
            except Exception:  # unreadable, which is damage: restoring will say so
                if folder.exists() or not (self.path(step) / "params").exists():
                    continue
                stored = {}
            if stored == expected:
                continue
            names = sorted(
                name
                for name in stored.keys() | expected.keys()
                if stored.get(name) != expected.get(name)
            )
            of = {"optimizer": "optimizer", "ema": "moving average"}.get(item, "model")
            raise CheckpointError(
                f"the checkpoint {self.path(step)} is of another {of}: {len(names)} arrays of its "
                f"{item} differ, first {names[0]}: stored {stored.get(names[0], 'none')}, expected "
                f"{expected.get(names[0], 'none')}. Use another --workdir, or the configuration "
                f"it was written with; to start from its weights, --config.init_from=RUN_DIRECTORY"
            )

    def _set_aside(self, step: int, failure: Exception | None) -> None:
        self._manager.close()
        taken = len(list(self._folder.glob(f"damaged-{step}*")))
        damaged = self._folder / f"damaged-{step}{f'.{taken}' if taken else ''}"
        reason = " ".join(str(failure).split())[:300] if failure else "unreadable elsewhere"
        logger.warning(
            "the checkpoint of step %d cannot be read (%s); moved to %s", step, reason, damaged
        )
        failed: OSError | None = None
        if jax.process_index() == 0:
            try:
                self.path(step).rename(damaged)
            except OSError as error:
                failed = error
        if not processes.all_agree(failed is None):
            raise CheckpointError(
                f"cannot rename {self.path(step)}, which is damaged, to {damaged.name}: "
                f"{failed or 'the first process tells why'}; move it away"
            )
        self._manager = self._open()

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self._folder / str(step)

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

    def close(self) -> None:
        """Ends the writing; what was saved before is on disk then, or `wait` has told why not."""
        self._thread.shutdown()
        try:
            self._manager.close()
        except (OSError, RuntimeError, ValueError) as error:
            logger.warning("closing %s: %s", self._folder, " ".join(str(error).split())[:300])

    def _cannot_save(self, step: int, error: Exception) -> CheckpointError:
        kept = sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdecimal())
        return CheckpointError(
            f"cannot write the checkpoint of step {step} to {self._folder}: "
            f"{' '.join(str(error).split())[:300]}. "
            f"Intact: {', '.join(map(str, kept)) or 'none'}. Make room or mend the folder, then "
            "run the same command again"
        )


def _items(state: TrainState) -> dict[str, Any]:
    """What is stored under which name; what a run does not have is not stored."""
    items = {
        "params": state.params,
        "statistics": state.statistics,
        "ema": state.ema,
        "optimizer": {"state": state.optimizer, "skipped": state.skipped},
    }
    return {name: tree for name, tree in items.items() if tree}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of a tree as it is or as Orbax describes it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _snapshot(state: TrainState) -> tuple[TrainState, jax.Array]:
    """A copy, and whether all of it is finite: the loss of a step does not tell of its update."""
    finite = [
        jnp.isfinite(leaf).all()
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jax.tree.map(jnp.copy, state), jnp.stack(finite).all()


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax warns of every checkpoint without metrics, as most are here, and of every item of one
    that is looked into, for it describes checkpoints as a whole.
    """
    message = record.getMessage()
    return not message.startswith(("Requested `tracked_metric`", "Metadata file does not exist"))
