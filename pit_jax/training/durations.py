"""Lengths of time in training: "300 epochs", "1000 steps" or "1_281_167 examples"."""

import dataclasses
import re

from pit_jax.training.config import TrainConfig

UNITS = ("epochs", "steps", "examples")


def to_steps(name: str, duration: str, *, steps_per_epoch: int, batch_size: int) -> int:
    """A duration in whole steps, rounded to the nearest.

    Args:
      name: the option it comes from, for the message.
      duration: a number and a unit of `UNITS`, singular or plural; "0.5 epochs" is fine.
      steps_per_epoch: floor(examples / batch size) of the training set.
      batch_size: images per step.

    Raises:
      ValueError: not such a text.
    """
    match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*(epoch|step|example)s?\s*", duration)
    if match is None:
        raise ValueError(
            f"{name} must be a number and a unit, such as '5 epochs', '1000 steps' or "
            f"'64000 examples', found {duration!r}"
        )
    steps = {"epoch": float(steps_per_epoch), "step": 1.0, "example": 1.0 / batch_size}
    return round(float(match[1].replace("_", "")) * steps[match[2]])


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


def steps_of(config: TrainConfig, num_examples: int, data: str) -> Steps:
    """The durations of a run.

    Args:
      config: with durations as text.
      num_examples: of the training split.
      data: its name, for messages.

    Raises:
      ValueError: a batch larger than the split, a text that is no duration, less than a step.
    """
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
