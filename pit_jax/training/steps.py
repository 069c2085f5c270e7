"""Durations of a run, converted to whole steps."""

import dataclasses

from pit_jax.training.config import TrainConfig
from pit_jax.training.durations import to_steps


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
      ValueError: the batch is larger than the split, or a duration is less than a step.
    """
    epoch = num_examples // config.batch_size
    if not epoch:
        raise ValueError(
            f"config.batch_size={config.batch_size} is more than the {num_examples} examples of "
            f"{data}; use a smaller batch"
        )
    found = {
        name: to_steps(getattr(config, name), steps_per_epoch=epoch, batch_size=config.batch_size)
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
