"""Checkpoints of a run: Orbax, asynchronous, atomic.

    WORKDIR/config.json              the experiment, the model it builds, versions
    WORKDIR/checkpoints/STEP/        parameters, optimizer state

The data's position and all randomness follow from the step, so nothing else need be kept.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from pit_jax.models import zoo
from pit_jax.training.state import TrainState

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"
BEST_METRIC = "top1"


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      workdir: the run directory.
      keep: how many of the newest stay, beside the best by top-1.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._manager = ocp.CheckpointManager(
            (workdir / CHECKPOINT_FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), policies.BestN(get_metric_fn=_ranking, n=1)]
                ),
                enable_background_delete=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, metrics: dict[str, float]) -> None:
        """Starts writing; training may go on at once. A step already saved is left alone."""
        if step == self.latest_step():
            return
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(state.optimizer),
        )
        self._manager.save(step, args=items, metrics=metrics)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state saved at a step, on the devices and shardings of `abstract`."""
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            optimizer=ocp.args.StandardRestore(abstract.optimizer),
        )
        restored = self._manager.restore(step, args=items)
        counter = jax.device_put(np.int32(step), abstract.step.sharding)
        return TrainState(counter, restored["params"], restored["optimizer"])

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return Path(self._manager.directory) / str(step)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _ranking(metrics: dict[str, float]) -> float:
    return metrics[BEST_METRIC]


def restore_params(run_directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a run's newest checkpoint, for use outside training.

    Returns:
      The nested dict of float32 NumPy arrays, and the model they belong to: {"name": of the zoo,
      "options": fields of its configuration}.

    Raises:
      ValueError: not a run directory, or one without a complete checkpoint.
    """
    root = Path(run_directory)
    config_file = root / CONFIG_FILE
    if not config_file.is_file():
        raise ValueError(f"{root} is not a run directory: it has no {CONFIG_FILE}")
    model = json.loads(config_file.read_text())["model"]
    folder = (root / CHECKPOINT_FOLDER).absolute()
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    if not steps:
        raise ValueError(f"{root} holds no complete checkpoint yet")
    _, shapes = zoo.abstract(zoo.model_config(model["name"], **model["options"]))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes
    )
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder / str(steps[-1]) / "params", target)
    return jax.device_get(params), model
