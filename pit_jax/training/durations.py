"""Durations: options such as "300 epochs", "1000 steps" or "1_281_167 examples", and seconds."""

import re


def split(duration: str) -> tuple[float, str]:
    """Splits a duration into its number and its unit: "epoch", "step" or "example".

    Raises:
      ValueError: the text is not a number and a unit.
    """
    match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*(epoch|step|example)s?\s*", duration)
    if match is None:
        raise ValueError(
            "must be a number and a unit, such as '5 epochs', '1000 steps' or '64000 examples', "
            f"found {duration!r}"
        )
    return float(match[1].replace("_", "")), match[2]


def to_steps(duration: str, *, steps_per_epoch: int, batch_size: int) -> int:
    """Converts a duration to steps, rounded to the nearest.

    Args:
      duration: a number and a unit, singular or plural; "0.5 epochs" is fine.
      steps_per_epoch: floor(examples / batch size) of the training set.
      batch_size: examples per step.

    Raises:
      ValueError: the text is not a duration.
    """
    number, unit = split(duration)
    steps = {"epoch": float(steps_per_epoch), "step": 1.0, "example": 1.0 / batch_size}
    return round(number * steps[unit])


def format_seconds(seconds: float) -> str:
    """Formats a time: "1:02:03", "4:05" or "0.8 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
