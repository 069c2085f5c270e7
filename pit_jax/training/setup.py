"""Everything that can be wrong with an experiment is found here, before anything compiles."""

import dataclasses
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import config_dict

from pit_jax import parallel
from pit_jax.data.images import check_protocol
from pit_jax.data.sources import Source, open_source
from pit_jax.models import params as parameters
from pit_jax.models import zoo
from pit_jax.optim.optimizers import make_optimizer
from pit_jax.optim.schedules import make_schedule, scaled_learning_rate
from pit_jax.training.checkpoints import CONFIG_FILE
from pit_jax.training.config import TrainConfig, parse
from pit_jax.version import __version__
from pit_jax.weights.files import replace_file

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """An experiment that has passed all checks.

    Attributes:
      config: its configuration.
      workdir: its directory, which exists and can be written.
      mesh: all devices.
      model_config: the network, and `graphdef`, `abstract_params` its structure.
      train_source: the training split, `eval_source` the held-out one.
      schedule: learning rate by step; `optimizer` uses it.
      steps_per_epoch: floor(examples / batch size).
      total_steps: steps of the whole run.
    """

    config: TrainConfig
    workdir: Path
    mesh: Mesh
    model_config: Any
    graphdef: nnx.GraphDef
    abstract_params: parameters.Params
    train_source: Source
    eval_source: Source
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    steps_per_epoch: int
    total_steps: int


def prepare(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    allow_config_changes: bool = False,
) -> Setup:
    """Checks an experiment, opens its data and records it in its directory; computes nothing.

    Args:
      config: from a config file, with overrides.
      workdir: the run directory; made where it does not exist.
      allow_config_changes: continue a run of another configuration.

    Raises:
      ValueError: one line that names the option, what was found and what to do.
    """
    parsed = parse(config)
    directory = _writable(Path(workdir).expanduser())
    for name in ("batch_size", "eval_batch_size"):
        parallel.check_batch_size(f"config.{name}", getattr(parsed, name))
    mesh = parallel.make_mesh(parsed.fsdp)
    data = parsed.data
    check_protocol(data.eval_protocol)
    train_source = open_source(data.name, data.train_split, data.data_dir)
    eval_source = open_source(data.name, data.eval_split, data.data_dir)
    steps_per_epoch = len(train_source) // parsed.batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"config.batch_size={parsed.batch_size} is more than the {len(train_source)} examples "
            f"of {train_source.name}; use a smaller batch"
        )
    model_config = model_config_of(parsed, eval_source.num_classes)
    graphdef, abstract_params = zoo.abstract(model_config, dtype=jnp.dtype(parsed.model.dtype))
    schedule = _schedule(parsed, steps_per_epoch)
    optimizer = make_optimizer(
        parsed.optimizer.name,
        schedule,
        weight_decay=parsed.optimizer.weight_decay,
        clip_norm=parsed.optimizer.clip_norm,
        **parsed.optimizer.options,
    )
    setup = Setup(
        config=parsed,
        workdir=directory,
        mesh=mesh,
        model_config=model_config,
        graphdef=graphdef,
        abstract_params=abstract_params,
        train_source=train_source,
        eval_source=eval_source,
        schedule=schedule,
        optimizer=optimizer,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * parsed.epochs,
    )
    _record(setup, allow_config_changes)
    return setup


def model_config_of(config: TrainConfig, num_classes: int) -> Any:
    """The zoo's configuration of `config.model`, for a data set of `num_classes` classes."""
    classes = config.model.num_classes or num_classes
    if classes < num_classes:
        raise ValueError(
            f"config.model.num_classes={classes} is fewer than the {num_classes} classes of "
            f"{config.data.name}"
        )
    return zoo.model_config(
        config.model.name,
        image_size=config.model.image_size,
        num_classes=classes,
        drop_path_rate=config.model.drop_path_rate,
        **config.model.options,
    )


def _schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    optimizer = config.optimizer
    return make_schedule(
        optimizer.schedule,
        peak=scaled_learning_rate(optimizer.base_learning_rate, config.batch_size),
        epochs=config.epochs,
        warmup_epochs=optimizer.warmup_epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_lr=optimizer.warmup_learning_rate,
        min_lr=optimizer.min_learning_rate,
    )


def _writable(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory.absolute()
    except OSError as error:
        raise ValueError(
            f"cannot write to --workdir={directory}: {error.strerror or error}; choose a folder "
            "that can be written"
        ) from error


def _record(setup: Setup, allow_changes: bool) -> None:
    """Stores the experiment in its directory, or compares it with the one stored there.

    Raises:
      ValueError: the directory belongs to another experiment; the differing options are listed.
    """
    path = setup.workdir / CONFIG_FILE
    options = dataclasses.asdict(setup.model_config)
    stored = json.loads(json.dumps({"config": dataclasses.asdict(setup.config)}))["config"]
    if path.is_file():
        before = json.loads(path.read_text())["config"]
        changes = _changes(before, stored)
        if changes and not allow_changes:
            raise ValueError(
                f"{setup.workdir} belongs to another experiment: {'; '.join(changes)}. Use another "
                "--workdir, or --allow_config_changes to continue it with these"
            )
    record = {
        "config": stored,
        "model": {"name": setup.config.model.name, "options": options},
        "versions": versions(),
    }
    if jax.process_index() == 0:
        replace_file(path, (json.dumps(record, indent=2) + "\n").encode())


def _changes(before: dict[str, Any], now: dict[str, Any], path: str = "config") -> list[str]:
    changes: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += _changes(old, new, f"{path}.{key}")
        elif old != new:
            changes.append(f"{path}.{key} was {old!r}, now {new!r}")
    return changes


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"pit_jax": __version__, **installed}
