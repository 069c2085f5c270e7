"""Lengths of time in training, in whole steps."""

import pytest

from pit_jax.training.durations import to_steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("3 epochs", 15),
        ("1 epoch", 5),
        ("0.5 epochs", 2),
        ("0.7 epochs", 4),
        ("1_000 steps", 1000),
        ("1 step", 1),
        ("320 examples", 10),
        ("1_281_167 examples", 40036),
        ("47 examples", 1),
        ("49 examples", 2),
        (" 2epochs ", 10),
    ],
)
def test_a_duration_is_a_number_of_steps_rounded_to_the_nearest(duration: str, steps: int):
    """Epochs of five steps of 32 images."""
    assert to_steps(duration, steps_per_epoch=5, batch_size=32) == steps


@pytest.mark.parametrize(
    "duration", ["3", "epochs", "-1 steps", "3 weeks", "1e3 steps", ".5 epochs", "_ steps"]
)
def test_another_text_is_refused_with_its_option(duration: str):
    with pytest.raises(ValueError, match=r"^must be a number and a unit, such as") as caught:
        to_steps(duration, steps_per_epoch=5, batch_size=32)
    assert repr(duration) in str(caught.value)
