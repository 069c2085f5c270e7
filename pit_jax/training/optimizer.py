"""Builds the learning rate schedule and the optimizer of an experiment from its options."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pit_jax.errors import suggestion
from pit_jax.models import parameters
from pit_jax.optim.masks import layer_decay_scales
from pit_jax.optim.optimizers import make_optimizer
from pit_jax.optim.schedules import SCHEDULES, Curve, scaled_learning_rate
from pit_jax.training.config import TrainConfig
from pit_jax.training.durations import to_steps
from pit_jax.training.steps import Steps


def schedule_of(config: TrainConfig, steps: Steps) -> optax.Schedule:
    """Builds the learning rate schedule, a function of the step.

    Raises:
      ValueError: the warm-up is longer than the run, or the "deit" schedule does not get whole
        epochs.
    """
    options = config.optimizer
    warmup = to_steps(options.warmup, steps_per_epoch=steps.epoch, batch_size=config.batch_size)
    if warmup > steps.total:
        raise ValueError(
            f"config.optimizer.warmup={options.warmup!r} is longer than "
            f"config.duration={config.duration!r}"
        )
    # "deit" changes once an epoch; "smooth" is the same curve with a step for an epoch.
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
    return SCHEDULES[options.schedule](curve, unit)


def optimizer_of(
    config: TrainConfig, schedule: optax.Schedule, params: parameters.Params
) -> optax.GradientTransformation:
    """Builds the optimizer, its learning rate included.

    Args:
      config: options of the experiment.
      schedule: learning rate by step.
      params: the trained parameters, or their shapes.

    Raises:
      ValueError: an option is unknown, or a frozen part is not in the model.
    """
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
        # A chain of two, as below, so that a stored state fits with and without frozen parts.
        return optax.chain(optimizer, optax.identity())
    flat = parameters.flatten(params)
    parts = {path[: index.start()] for path in flat for index in re.finditer("/|$", path)}
    for part in options.frozen:
        if part not in parts:
            raise ValueError(
                f"config.optimizer.frozen names {part!r}, which is not a part of "
                f"{config.model.name}{suggestion(part, parts)}"
            )
    moves = {path: not _is_within(path, options.frozen) for path in flat}
    tree = parameters.unflatten(moves)

    def freeze(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda u, moves: u if moves else jnp.zeros_like(u), updates, tree)

    # Not `optax.masked`: it keeps a state, if an empty one, and a stored state would not fit.
    return optax.chain(optimizer, optax.stateless(freeze))


def _is_within(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == part or path.startswith(f"{part}/") for part in parts)
