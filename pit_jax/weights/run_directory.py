"""A run directory: the names of its files, and the parameters that its checkpoints hold.

WORKDIR/config.json         the experiment, the model it trains, versions
WORKDIR/checkpoints/STEP    see `training.checkpoints`
WORKDIR/metrics.jsonl       a line a report
WORKDIR/result.json         metrics of a finished run
WORKDIR/model.safetensors   its weights and their card
"""

import json
import os
from pathlib import Path
from typing import Any

import jax

from pit_jax.models import parameters, zoo

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
WEIGHTS_FILE = "model.safetensors"


def restore_params(run_directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a run's newest checkpoint, for use outside training.

    Returns:
      The nested dict of float32 NumPy arrays (the moving average where the run evaluates that),
      and the model they belong to: {"name": of the zoo, "options": fields of its configuration}.

    Raises:
      ValueError: not a run directory, or one without a complete checkpoint.
    """

    root = Path(run_directory)
    config_file = root / CONFIG_FILE
    if not config_file.is_file():
        raise ValueError(f"{root} is not a run directory: it has no {CONFIG_FILE}")
    record = json.loads(config_file.read_text())
    folder = (root / CHECKPOINT_FOLDER).absolute()
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    if not steps:
        raise ValueError(f"{root} holds no complete checkpoint yet")
    newest = folder / str(steps[-1])
    model = record["model"]
    _, shapes = zoo.abstract(zoo.model_config(model["name"], **model["options"]))
    trained, statistics = parameters.separate(shapes)
    item = "ema" if record["config"]["evaluate_ema"] else "params"
    params = _restore(newest / item, trained)
    if statistics:
        statistics = _restore(newest / "statistics", statistics)
    return parameters.join(params, statistics), model


def _restore(path: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.device_get(checkpointer.restore(path, target))
