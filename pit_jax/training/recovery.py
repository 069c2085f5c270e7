"""Recovery from checkpoints: the newest readable one is restored, damaged ones are set aside."""

import logging
from typing import Any

import jax
import orbax.checkpoint as ocp

from pit_jax import processes
from pit_jax.training.checkpoints import CheckpointError, Checkpoints, Progress, items_of
from pit_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def restore_newest(
    saved: Checkpoints, abstract: TrainState, *, seed: int
) -> tuple[TrainState, Progress] | None:
    """State and progress of the newest checkpoint that can be read; None if there are none.

    A checkpoint that cannot be read is renamed to damaged-STEP, and the one before it is tried.

    Args:
      saved: the checkpoints of the run.
      abstract: shapes, dtypes and shardings of the state.
      seed: seed of the configuration; it is not stored.

    Raises:
      CheckpointError: a checkpoint holds another model or optimizer, or none of those that exist
        can be read.
    """
    lost: list[int] = []
    while (step := saved.latest_step()) is not None:
        _check_structure(saved, step, abstract)
        failure: Exception | None = None
        try:
            restored = saved.restore(step, abstract, seed)
        except Exception as error:  # the libraries that read raise many kinds of errors at damage
            failure = error
        if processes.all_agree(failure is None):
            return restored
        _set_aside(saved, step, failure)
        lost.append(step)
    # A run that has lost all its work must not start over unnoticed.
    if lost:
        raise CheckpointError(
            f"no checkpoint in {saved.folder} can be read: those of steps "
            f"{', '.join(map(str, lost))} are set aside there as damaged-STEP. Restore them "
            "from a copy, or run the same command again to start from the beginning"
        )
    return None


def _check_structure(saved: Checkpoints, step: int, abstract: TrainState) -> None:
    """Refuses a checkpoint whose arrays have other names or shapes; that is not damage."""
    for item, tree in items_of(abstract).items():
        expected = _shapes(tree)
        folder = saved.path(step) / item
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                stored = _shapes(checkpointer.metadata(folder).item_metadata.tree)
        except Exception:
            # Metadata that cannot be read is damage, which restoring will find. An item that is
            # absent beside others was never stored.
            if folder.exists() or not (saved.path(step) / "params").exists():
                continue
            stored = {}
        if stored == expected:
            continue
        names = sorted(
            name
            for name in stored.keys() | expected.keys()
            if stored.get(name) != expected.get(name)
        )
        part = {"optimizer": "optimizer", "ema": "moving average"}.get(item, "model")
        raise CheckpointError(
            f"the checkpoint {saved.path(step)} is of another {part}: {len(names)} arrays of its "
            f"{item} differ, first {names[0]}: stored {stored.get(names[0], 'none')}, expected "
            f"{expected.get(names[0], 'none')}. Use another --workdir, or the configuration "
            "it was written with; to start from its weights, --config.init_from=RUN_DIRECTORY"
        )


def _set_aside(saved: Checkpoints, step: int, failure: Exception | None) -> None:
    earlier = len(list(saved.folder.glob(f"damaged-{step}*")))
    name = f"damaged-{step}{f'.{earlier}' if earlier else ''}"
    reason = "unreadable on another process"
    if failure is not None:
        reason = " ".join(str(failure).split())[:300]
    logger.warning(
        "the checkpoint of step %d cannot be read (%s); moved to %s",
        step,
        reason,
        saved.folder / name,
    )
    saved.rename(step, name)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path, of a tree of arrays or of Orbax's description of one."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
