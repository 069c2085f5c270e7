"""Lengths of time in training: "300 epochs", "1000 steps" or "1_281_167 examples"."""

import re

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
