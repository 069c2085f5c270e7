"""Everything that can be wrong with an experiment is found here, before anything compiles."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from pit_jax import losses, sharding
from pit_jax.data.folders import FolderImages, check_splits
from pit_jax.data.images import check_protocol
from pit_jax.data.sources import Source, open_source
from pit_jax.errors import suggestion
from pit_jax.files import replace_file
from pit_jax.models import parameters, zoo
from pit_jax.optim.masks import layer_decay_scales
from pit_jax.optim.optimizers import make_optimizer
from pit_jax.optim.schedules import Curve, make_schedule, scaled_learning_rate
from pit_jax.training.config import TrainConfig, parse
from pit_jax.training.durations import to_steps
from pit_jax.training.placement import placement
from pit_jax.training.step import Learner
from pit_jax.training.workdir import changes, holds_work, versions, writable
from pit_jax.weights.run_directory import CONFIG_FILE

# As `distillation.teacher_weights`: the teacher's initial parameters, to try a machine with.
UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """Durations of a run, all in steps.

    Attributes:
      epoch: floor(examples / batch size).
      total: of the run.
      log, evaluate, checkpoint: between two of each.
    """

    epoch: int
    total: int
    log: int
    evaluate: int
    checkpoint: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment computes: all that its steps compile from, and neither data nor files.

    Attributes:
      config: its configuration.
      mesh: all devices.
      model_config: the network, and `abstract` its values' shapes.
      teacher_config: the teacher's network; None without distillation.
      learner: what a training step is made of.
      steps: the run's durations.
    """

    config: TrainConfig
    mesh: Mesh
    model_config: Any
    teacher_config: Any | None
    abstract: parameters.Params
    learner: Learner
    steps: Steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(Experiment):
    """An experiment that has passed all checks.

    Attributes:
      workdir: its directory, which exists and can be written.
      train_source: the training split, `eval_source` the held-out one.
    """

    workdir: Path
    train_source: Source
    eval_source: Source


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
    directory = writable(workdir)
    _check_batches(parsed, jax.device_count())
    placement(parsed)  # refuses what cannot be combined
    mesh = sharding.make_mesh(parsed.fsdp)
    check_protocol(parsed.data.eval_protocol)
    # A mistake in the model is told before data is opened, and perhaps prepared.
    _model_config(parsed, parsed.model.num_classes or 1)
    train_source = open_source(parsed.data.name, parsed.data.train_split, parsed.data.data_dir)
    eval_source = open_source(parsed.data.name, parsed.data.eval_split, parsed.data.data_dir)
    train, held_out = train_source.examples, eval_source.examples
    if isinstance(train, FolderImages) and isinstance(held_out, FolderImages):
        check_splits(train, held_out)
    experiment = _experiment(
        parsed,
        mesh,
        num_classes=eval_source.num_classes,
        num_examples=len(train_source),
        data=train_source.name,
    )
    setup = Setup(
        **{field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)},
        workdir=directory,
        train_source=train_source,
        eval_source=eval_source,
    )
    _compare(setup, allow_config_changes)
    return setup


def make_experiment(
    config: config_dict.ConfigDict, mesh: Mesh, *, num_classes: int, num_examples: int
) -> Experiment:
    """What an experiment computes on a mesh of any devices, whether they are there or not.

    Args:
      config: from a config file, with overrides.
      mesh: of `sharding.make_mesh`, for `config.fsdp`.
      num_classes: of its data.
      num_examples: of its training split.

    Raises:
      ValueError: as from `prepare`.
    """
    parsed = parse(config)
    _check_batches(parsed, mesh.size)
    return _experiment(
        parsed,
        mesh,
        num_classes=num_classes,
        num_examples=num_examples,
        data=f"{parsed.data.name}/{parsed.data.train_split}",
    )


def _experiment(
    config: TrainConfig, mesh: Mesh, *, num_classes: int, num_examples: int, data: str
) -> Experiment:
    model_config = _model_config(config, num_classes)
    teacher_config = _teacher_config(config, model_config)
    steps = _steps(config, num_examples, data)
    _check_gates(config, steps)
    graphdef, abstract = zoo.abstract(model_config, dtype=jnp.dtype(config.model.dtype))
    teacher = None
    if teacher_config is not None:
        teacher, _ = zoo.abstract(teacher_config, dtype=jnp.dtype(config.model.dtype))
    schedule = _schedule(config, steps)
    learner = Learner(
        graphdef=graphdef,
        num_classes=model_config.num_classes,
        optimizer=_optimizer(config, schedule, parameters.separate(abstract)[0]),
        schedule=schedule,
        teacher=teacher,
    )
    return Experiment(
        config=config,
        mesh=mesh,
        model_config=model_config,
        teacher_config=teacher_config,
        abstract=abstract,
        learner=learner,
        steps=steps,
    )


def _check_batches(config: TrainConfig, devices: int) -> None:
    sharding.check_batch_size("config.eval_batch_size", config.eval_batch_size, devices)
    sharding.check_batch_size("config.batch_size", config.batch_size, devices)
    if config.accumulate > 1:
        part = config.batch_size // config.accumulate
        sharding.check_batch_size("config.batch_size / config.accumulate", part, devices)
    augment = config.augment
    mixes = augment.mix_probability > 0 and (augment.mixup_alpha > 0 or augment.cutmix_alpha > 0)
    if mixes and (augment.mix_group % 2 or config.batch_size % augment.mix_group):
        raise ValueError(
            f"config.augment.mix_group={augment.mix_group} must be even and divide "
            f"config.batch_size={config.batch_size}"
        )


def _steps(config: TrainConfig, num_examples: int, data: str) -> Steps:
    epoch = num_examples // config.batch_size
    if not epoch:
        raise ValueError(
            f"config.batch_size={config.batch_size} is more than the {num_examples} examples of "
            f"{data}; use a smaller batch"
        )
    found = {
        name: to_steps(
            f"config.{name}",
            getattr(config, name),
            steps_per_epoch=epoch,
            batch_size=config.batch_size,
        )
        for name in ("duration", "log_every", "eval_every", "checkpoint_every")
    }
    for name, steps in found.items():
        if steps < 1:
            raise ValueError(f"config.{name}={getattr(config, name)!r} is less than a step")
    return Steps(
        epoch=epoch,
        total=found["duration"],
        log=found["log_every"],
        evaluate=found["eval_every"],
        checkpoint=found["checkpoint_every"],
    )


def _check_gates(config: TrainConfig, steps: Steps) -> None:
    """Refuses a gate at whose epoch nothing is evaluated."""
    for epoch in config.min_top1_at:
        step = epoch * steps.epoch
        if step > steps.total or (step % steps.evaluate and step != steps.total):
            raise ValueError(
                f"config.min_top1_at names epoch {epoch}, after which there is no evaluation: "
                f"config.duration={config.duration!r}, config.eval_every={config.eval_every!r}"
            )


def _model_config(config: TrainConfig, num_classes: int) -> Any:
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


def _teacher_config(config: TrainConfig, student: Any) -> Any | None:
    options = config.distillation
    if options.kind == "none":
        return None
    losses.check_distillation(options.kind, options.alpha, options.temperature)
    if not getattr(student, "distilled", False):
        name = f"{config.model.name}_distilled"
        fitting = name if name in zoo.rows() else "a *_distilled model"
        raise ValueError(
            f"config.distillation.kind={options.kind!r} needs a student with a distillation head, "
            f"which {config.model.name} has not: set config.model.name to {fitting}"
        )
    if options.teacher_weights == UNTRAINED and config.data.name != "synthetic":
        raise ValueError(
            f"config.distillation.teacher_weights={UNTRAINED!r} is for config.data.name="
            f"'synthetic' alone, found {config.data.name!r}: such a teacher has nothing to teach"
        )
    if not options.teacher_weights:
        raise ValueError(
            "config.distillation.teacher_weights is not set: the papers' teacher is "
            "'hf:timm/regnety_160.deit_in1k' (name that tag: the plain name is another set of "
            "weights), or regnety_160-a5fe301d.pth of the DeiT authors by way of "
            "convert_torch_weights.py --model=regnety_160"
        )
    sizes = {"image_size": config.model.image_size, "num_classes": student.num_classes}
    return zoo.model_config(options.teacher, **{**sizes, **options.teacher_options})


def _schedule(config: TrainConfig, steps: Steps) -> optax.Schedule:
    options = config.optimizer
    warmup = to_steps(
        "config.optimizer.warmup",
        options.warmup,
        steps_per_epoch=steps.epoch,
        batch_size=config.batch_size,
    )
    if warmup > steps.total:
        raise ValueError(
            f"config.optimizer.warmup={options.warmup!r} is longer than "
            f"config.duration={config.duration!r}"
        )
    # The per-epoch schedule counts whole epochs; the smooth one is given a step for an epoch.
    unit = steps.epoch if options.schedule == "deit" else 1
    if steps.total % unit or warmup % unit:
        raise ValueError(
            "config.optimizer.schedule='deit' changes once an epoch: give config.duration and "
            f"config.optimizer.warmup in whole epochs of {unit} steps, found {steps.total} and "
            f"{warmup} steps"
        )
    curve = Curve(
        peak=scaled_learning_rate(options.base_learning_rate, config.batch_size),
        epochs=steps.total // unit,
        warmup_epochs=warmup // unit,
        warmup_lr=options.warmup_learning_rate,
        min_lr=options.min_learning_rate,
    )
    return make_schedule(options.schedule, curve, steps_per_epoch=unit)


def _optimizer(
    config: TrainConfig, schedule: optax.Schedule, params: parameters.Params
) -> optax.GradientTransformation:
    options = config.optimizer
    scales = None
    if options.layer_decay is not None:
        scales = layer_decay_scales(params, options.layer_decay)
    optimizer = make_optimizer(
        options.name,
        schedule,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        layer_scales=scales,
        **options.options,
    )
    if not options.frozen:
        return optax.chain(optimizer, optax.identity())  # so that a stored state fits both
    flat = parameters.flatten(params)
    parts = {path[: index.start()] for path in flat for index in re.finditer("/|$", path)}
    for part in options.frozen:
        if part not in parts:
            raise ValueError(
                f"config.optimizer.frozen names {part!r}, which is no part of {config.model.name}"
                f"{suggestion(part, parts)}"
            )
    moves = {path: not _is_within(path, options.frozen) for path in flat}
    tree = parameters.unflatten(moves)

    def freeze(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, moves: u if moves else jnp.zeros_like(u), updates, tree)

    # Not `optax.masked`, which keeps a state, if an empty one.
    return optax.chain(optimizer, optax.stateless(freeze))


def _is_within(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == part or path.startswith(f"{part}/") for part in parts)


def record_of(setup: Setup) -> dict[str, Any]:
    """The experiment as JSON: its configuration, the model that follows from it, versions."""
    return {
        "config": dataclasses.asdict(setup.config),
        "model": {
            "name": setup.config.model.name,
            "options": dataclasses.asdict(setup.model_config),
        },
        "versions": versions(),
    }


def record(setup: Setup) -> None:
    """Stores the experiment in its directory, for what continues or reads it.

    Raises:
      OSError: it cannot be written.
    """
    if jax.process_index() == 0:
        text = json.dumps(record_of(setup), indent=2) + "\n"
        replace_file(setup.workdir / CONFIG_FILE, text.encode())


def _compare(setup: Setup, allow_changes: bool) -> None:
    """Compares the experiment with the one that the directory belongs to, or makes it this one's.

    A start that came to nothing, for weights that were not there perhaps, binds no other. All
    processes of a job see alike whether it did: none saves anything before all are past this.

    Raises:
      ValueError: another one; the differing options are listed. Or it cannot be recorded.
    """
    path = setup.workdir / CONFIG_FILE
    if not path.is_file() or not holds_work(setup.workdir):
        try:
            record(setup)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
        return
    if allow_changes:
        return  # what the directory holds has to fit first
    before = json.loads(path.read_text())["config"]
    differing = changes(before, json.loads(json.dumps(record_of(setup)))["config"])
    if differing:
        raise ValueError(
            f"{setup.workdir} belongs to another experiment: {'; '.join(differing)}. Use another "
            "--workdir, or --allow_config_changes to continue it with these"
        )
