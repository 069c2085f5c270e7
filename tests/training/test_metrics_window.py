"""Metrics are fetched one step late, averaged, and stop a run that is not finite."""

import json
import math

import jax.numpy as jnp
import pytest

from pit_jax.training.errors import TrainingError
from pit_jax.training.metrics_window import MetricsWindow


def metrics(loss: float, learning_rate: float = 0.5, skipped: int = 0, in_a_row: int = 0) -> dict:
    values = {"loss": loss, "top1": 0.5, "gradient_norm": 1.0, "learning_rate": learning_rate}
    return {
        **{name: jnp.float32(value) for name, value in values.items()},
        "skipped": jnp.int32(skipped),
        "skipped_in_a_row": jnp.int32(in_a_row),
    }


def window(on_nonfinite: str, max_skips: int = 3) -> MetricsWindow:
    return MetricsWindow(
        [],
        on_nonfinite=on_nonfinite,
        max_skips=max_skips,
        last_good=lambda: "checkpoints/40",
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
    for step, (loss, in_a_row) in enumerate(zip(losses, [0, 1, 2, 0, 1, 2, 3], strict=True), 1):
        rows.add(step, metrics(loss, in_a_row=in_a_row))
    assert [row["loss"] for row in rows.rows if "loss" in row] == [1.0, 3.0]
    with pytest.raises(
        TrainingError, match="loss was not finite in 3 steps in a row, up to step 7"
    ):
        rows.settle()


def test_learning_rate_and_skips_are_of_the_newest_step_skipped_or_not():
    """This holds too if a checkpoint comes between the step and the log line."""
    rows = window("skip")
    rows.add(1, metrics(2.0, 0.25, skipped=0))
    rows.add(2, metrics(math.nan, 0.5, skipped=1))
    rows.settle()
    saved = json.loads(json.dumps(rows.rows, allow_nan=False))
    resumed = MetricsWindow(saved, on_nonfinite="skip", max_skips=3, last_good=lambda: "")
    for found in (rows.means(), resumed.means()):
        assert found == {
            "loss": 2.0,
            "top1": 0.5,
            "gradient_norm": 1.0,
            "learning_rate": 0.5,
            "skipped": 1,
        }


def test_where_all_steps_were_skipped_there_are_no_means_of_them():
    rows = window("skip")
    rows.add(1, metrics(math.nan, skipped=4))
    rows.add(2, metrics(math.inf, skipped=5))
    rows.settle()
    assert rows.means() == {"learning_rate": 0.5, "skipped": 5}
    assert rows.rows == []
