"""Files that a run writes while it runs, and its lines on the terminal."""

import io
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from pit_jax.tasks.classification.task import Classification
from pit_jax.training.curves import draw_curves
from pit_jax.training.profile import Profile
from pit_jax.training.reporting import CURVES_FILE, Reporter
from pit_jax.weights.run_directory import METRICS_FILE

TRAINING = {"loss": 2.0, "top1": 0.5, "learning_rate": 0.1}
TEST = {"loss": 1.5, "top1": 0.6, "top5": 0.9, "count": 10}


def reporter(workdir: Path, first_step: int = 0, step_utilisation: float | None = None) -> Reporter:
    return Reporter(
        workdir,
        metrics=Classification.metrics,
        steps_per_epoch=5,
        total_steps=10,
        batch_size=8,
        first_step=first_step,
        step_utilisation=step_utilisation,
        tensorboard=False,
    )


def steps(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / METRICS_FILE).read_text().splitlines()]


def test_a_line_is_in_the_file_at_once(tmp_path: Path):
    """A run killed right after the next checkpoint does not write the line again."""
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The bar redraws one line with rate, time left, loss and accuracy."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    report = reporter(tmp_path)
    for step in (1, 2, 3):
        report.step(step, {"loss": 2.25 - step / 4, "top1": 0.125 * step})
        time.sleep(0.11)
    report.close()
    drawn = terminal.getvalue().split("\r")
    assert any("2/10" in line and "train/loss 1.7500  train/top1 25.00%" in line for line in drawn)
    assert any("step/s" in line and "<" in line for line in drawn)


def test_a_log_file_gets_plain_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys):
    report = reporter(tmp_path)
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        report.step(2, TRAINING)
        report.training(2, TRAINING)
    report.close()
    assert "step 2/10  epoch 0.4  train/loss 2.0000  train/top1 50.00%  lr 1.00e-01" in caplog.text
    assert "images/s" in caplog.text
    assert "ETA" in caplog.text
    assert "\r" not in capsys.readouterr().err


def test_utilisation_is_logged_where_the_peak_is_known(tmp_path: Path):
    """The step takes a thousandth of the FLOPs that the devices do in a second."""
    report = reporter(tmp_path, step_utilisation=1e-3)
    report.training(2, TRAINING)
    report.close()
    row = json.loads((tmp_path / METRICS_FILE).read_text())
    assert row["train/mfu"] == pytest.approx(row["train/images_per_second"] / 8 * 1e-3)


def test_a_line_of_skipped_steps_alone_is_valid_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    report = reporter(tmp_path)
    with caplog.at_level(logging.INFO, logger="pit_jax"):
        report.training(2, {"learning_rate": 0.1, "skipped": 2})
    report.evaluation(2, TEST, 0.1)
    report.close()
    first, _ = map(json.loads, (tmp_path / METRICS_FILE).read_text().splitlines())
    assert first["train/skipped"] == 2
    assert "train/loss" not in first
    assert "step 2/10  epoch 0.4  all updates skipped  lr 1.00e-01" in caplog.text
    assert (tmp_path / CURVES_FILE).is_file()


def test_curves_are_drawn_at_the_end_of_every_evaluation(tmp_path: Path):
    report = reporter(tmp_path)
    report.training(2, TRAINING)
    report.evaluation(2, TEST, 0.1)
    report.close()
    first = (tmp_path / CURVES_FILE).read_bytes()
    assert Image.open(io.BytesIO(first)).format == "PNG"
    report = reporter(tmp_path, first_step=2)
    report.evaluation(4, TEST, 0.1)
    report.close()
    assert (tmp_path / CURVES_FILE).read_bytes() != first


def test_curves_of_an_evaluation_alone_are_drawn_without_a_warning(tmp_path: Path):
    (tmp_path / METRICS_FILE).write_text('{"step": 2, "test/loss": 1.5, "test/top1": 0.6}\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(tmp_path / METRICS_FILE, tmp_path / CURVES_FILE, ["loss", "top1"])
    assert (tmp_path / CURVES_FILE).is_file()


def test_a_profile_of_the_steps_asked_for(tmp_path: Path):
    profile = Profile(tmp_path, 2, 3, total_steps=4)
    double = jax.jit(lambda x: x * 2)
    results = [profile.traced(step, double, jnp.float32(step)) for step in (1, 2, 3, 4)]
    profile.close()
    assert [float(result) for result in results] == [2, 4, 6, 8]
    assert len(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == 1


@pytest.mark.parametrize(("first", "last"), [(11, 12), (9, 11)])
def test_a_profile_beyond_the_run_is_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: int, last: int
):
    Profile(tmp_path, first, last, total_steps=10)
    assert f"config.profile_steps=({first}, {last}) goes beyond the last step, 10" in caplog.text
    caplog.clear()
    Profile(tmp_path, 9, 10, total_steps=10)
    Profile(tmp_path, 0, 0, total_steps=10)
    assert not caplog.text
