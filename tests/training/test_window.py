"""Metrics on their way from the device, and when they stop a run."""

import math

import jax.numpy as jnp
import pytest

from pit_jax.training.window import TrainingError, Window


def metrics(loss: float) -> dict:
    values = {"loss": loss, "top1": 0.5, "gradient_norm": 1.0, "learning_rate": 0.1, "skipped": 0.0}
    return {name: jnp.float32(value) for name, value in values.items()}


def window(on_nonfinite: str, max_skips: int = 3) -> Window:
    return Window(
        [], on_nonfinite=on_nonfinite, max_skips=max_skips, last_good=lambda: "checkpoints/40"
    )


def test_metrics_come_a_step_late():
    rows = window("stop")
    assert rows.add(1, metrics(2.0)) is None
    fetched = rows.add(2, metrics(3.0))
    assert fetched is not None
    assert fetched["loss"] == 2.0
    rows.settle()
    assert rows.means()["loss"] == 2.5
    assert rows.rows == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_metric_and_checkpoint(loss: float):
    rows = window("stop")
    rows.add(41, metrics(loss))
    with pytest.raises(
        TrainingError, match=rf"loss is {loss} at step 41; .*checkpoint: checkpoints/40"
    ):
        rows.settle()


def test_skipped_steps_are_left_out_and_a_run_of_them_stops():
    rows = window("skip")
    losses = [1.0, math.nan, math.nan, 3.0, math.nan, math.nan, math.nan]
    for step, loss in enumerate(losses[:-1], start=1):
        rows.add(step, metrics(loss))
    rows.add(len(losses), metrics(losses[-1]))
    assert [row["loss"] for row in rows.rows] == [1.0, 3.0]
    with pytest.raises(
        TrainingError, match="loss was not finite in 3 steps in a row, up to step 7"
    ):
        rows.settle()
