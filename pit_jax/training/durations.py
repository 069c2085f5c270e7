"""Durations: options such as "300 epochs", "1000 steps" or "1_281_167 examples", and seconds."""

import dataclasses
import re

from pit_jax.training.config import TrainConfig

UNITS = ("epochs", "steps", "examples")


def to_steps(name: str, duration: str, *, steps_per_epoch: int, batch_size: int) -> int:
    """Converts a duration to steps, rounded to the nearest.

    Args:
      name: name of the option, for the message.
      duration: a number and a unit of `UNITS`, singular or plural; "0.5 epochs" is fine.
      steps_per_epoch: floor(examples / batch size) of the training set.
      batch_size: examples per step.

    Raises:
      ValueError: the text is not a duration.
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
      epoch: length of an epoch, floor(examples / batch size).
      total: length of the run.
      log, evaluate, checkpoint: interval between log lines, evaluations, checkpoints.
    """

    epoch: int
    total: int
    log: int
    evaluate: int
    checkpoint: int


def steps_of(config: TrainConfig, num_examples: int, data: str) -> Steps:
    """Converts the durations of a configuration to steps.

    Args:
      config: options, with durations as text.
      num_examples: size of the training split.
      data: name of the training split, for messages.

    Raises:
      ValueError: the batch is larger than the split, a text is not a duration, or a duration is
        less than a step.
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


def format_seconds(seconds: float) -> str:
    """Formats a time: "1:02:03", "4:05" or "0.8 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
