"""What a run leaves on disk while it runs."""

import json
import logging
from pathlib import Path

import pytest

from pit_jax.training.reporting import METRICS_FILE, Reporter

TRAINING = {"loss": 2.0, "top1": 0.5, "learning_rate": 0.1}
TEST = {"loss": 1.5, "top1": 0.6, "top5": 0.9, "count": 10}


def reporter(workdir: Path, first_step: int = 0) -> Reporter:
    return Reporter(
        workdir,
        steps_per_epoch=5,
        total_steps=10,
        batch_size=8,
        first_step=first_step,
        tensorboard=False,
    )


def steps(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / METRICS_FILE).read_text().splitlines()]


def test_a_line_is_in_the_file_at_once(tmp_path: Path):
    """A run may be killed right after the checkpoint that follows: the line does not come again."""
    killed = reporter(tmp_path)
    killed.training(2, TRAINING)
    assert steps(tmp_path) == [2]
    killed.evaluation(4, TEST, 0.1)
    assert steps(tmp_path) == [2, 4]
    killed.close()


def test_lines_after_the_checkpoint_and_half_lines_are_dropped(tmp_path: Path):
    with (tmp_path / METRICS_FILE).open("w") as file:
        file.write('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    resumed = reporter(tmp_path, first_step=4)
    resumed.training(6, TRAINING)
    resumed.close()
    assert steps(tmp_path) == [2, 4, 6]


def test_a_disk_that_refuses_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / METRICS_FILE).mkdir()
    with caplog.at_level(logging.WARNING):
        report = reporter(tmp_path)
        report.training(2, TRAINING)
        report.close()
    assert "cannot write metrics to" in caplog.text
