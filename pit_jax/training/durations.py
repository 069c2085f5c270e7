"""Lengths of time in training: "300 epochs", "1000 steps" or "1_281_167 examples"."""

import re


def split(duration: str) -> tuple[float, str]:
    """The number and the unit of a duration: "epoch", "step" or "example".

    Raises:
      ValueError: not a number and a unit.
    """
    match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*(epoch|step|example)s?\s*", duration)
    if match is None:
        raise ValueError(
            "must be a number and a unit, such as '5 epochs', '1000 steps' or '64000 examples', "
            f"found {duration!r}"
        )
    return float(match[1].replace("_", "")), match[2]


def to_steps(duration: str, *, steps_per_epoch: int, batch_size: int) -> int:
    """A duration in whole steps, rounded to the nearest.

    Args:
      duration: a number and a unit, singular or plural; "0.5 epochs" is fine.
      steps_per_epoch: floor(examples / batch size) of the training set.
      batch_size: images per step.

    Raises:
      ValueError: not such a text.
    """
    number, unit = split(duration)
    steps = {"epoch": float(steps_per_epoch), "step": 1.0, "example": 1.0 / batch_size}
    return round(number * steps[unit])
