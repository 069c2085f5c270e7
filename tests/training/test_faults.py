"""Checkpoints that are damaged, of another model, or cannot be written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from pit_jax.tasks import experiments
from pit_jax.tasks.experiments import prepare
from pit_jax.training import loop
from pit_jax.training.checkpoints import CheckpointError

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parents[1] / "tiny.py"


@pytest.fixture
def interrupted(finished: Path, workdir: Path) -> Path:
    """A run with checkpoints of steps 6 and 9 that has not been finished."""
    shutil.copytree(finished, workdir)
    for name in ("result.json", "model.safetensors"):
        (workdir / name).unlink()
    return workdir


LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
runpy.run_path("train.py", run_name="__main__")
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )


def data_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "/d/" in str(path)]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    interrupted: Path, finished: Path, config: ConfigDict, damage: str, caplog
):
    for path in data_files(interrupted / "checkpoints" / "9"):
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level("INFO", logger="pit_jax"):
        result = experiments.train(config, interrupted)
    assert "checkpoint of step 9 cannot be read" in caplog.text
    assert "resuming after step 6" in caplog.text
    assert (interrupted / "checkpoints" / "damaged-9").is_dir()
    assert result.metrics == experiments.train(config, finished).metrics


def test_a_half_written_checkpoint_is_no_checkpoint(interrupted: Path, config: ConfigDict, caplog):
    folder = interrupted / "checkpoints"
    (folder / "9").rename(folder / "9.orbax-checkpoint-tmp")
    with caplog.at_level("INFO", logger="pit_jax"):
        experiments.train(config, interrupted)
    assert "resuming after step 6" in caplog.text


def test_a_checkpoint_of_another_model_is_refused_and_kept(interrupted: Path, config: ConfigDict):
    config.model.options.widths = (16, 32)
    with pytest.raises(ValueError, match="belongs to another experiment"):
        experiments.train(config, interrupted)
    with pytest.raises(CheckpointError, match=r"another model: \d+ arrays of its params differ"):
        loop.run(prepare(config, interrupted, allow_config_changes=True))
    assert (interrupted / "checkpoints" / "9").is_dir()
    # The directory keeps its experiment.
    config.model.options.widths = (8, 16)
    assert experiments.train(config, interrupted).step == 9


CHANGES = [
    ({"optimizer.name": "sgd"}, "of another optimizer: .* arrays of its optimizer differ"),
    ({"model.name": "pit_ti_distilled"}, "of another model"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_no_checkpoint_counts_as_damaged_because_the_experiment_is_another(
    interrupted: Path, config: ConfigDict, changes: dict[str, Any], message: str
):
    before = (interrupted / "config.json").read_bytes()
    config.update_from_flattened_dict(changes)
    if "optimizer.name" in changes:
        config.optimizer.options = {}
    with pytest.raises(CheckpointError, match=message):
        loop.run(prepare(config, interrupted, allow_config_changes=True))
    folders = {path.name for path in (interrupted / "checkpoints").iterdir() if path.is_dir()}
    assert folders == {"6", "9"}
    assert (interrupted / "config.json").read_bytes() == before


def test_a_moving_average_that_was_not_kept_is_not_damage(
    config: ConfigDict, workdir: Path, tmp_path: Path
):
    config.duration = "2 steps"
    config.optimizer.warmup = "1 step"
    config.ema_decay = None
    config.evaluate_ema = False
    experiments.train(config, workdir)
    config.duration = "3 steps"
    config.ema_decay = 0.9
    with pytest.raises(CheckpointError, match="of another moving average"):
        loop.run(prepare(config, workdir, allow_config_changes=True))
    assert (workdir / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize(
    "changes",
    [{"optimizer.clip_norm": 1.0}, {"optimizer.layer_decay": 0.9}, {"optimizer.frozen": ("head",)}],
)
def test_a_run_continues_with_what_the_optimizer_keeps_no_state_of(
    interrupted: Path, config: ConfigDict, changes: dict[str, Any], caplog
):
    """Clipping is one of these: the message about a loss that is not finite advises it."""
    shutil.rmtree(interrupted / "checkpoints" / "9")
    config.update_from_flattened_dict(changes)
    with caplog.at_level("INFO", logger="pit_jax"):
        result = loop.run(prepare(config, interrupted, allow_config_changes=True))
    assert "resuming after step 6" in caplog.text
    assert result.step == 9


def test_a_full_disk_at_the_start_is_named(workdir: Path):
    limited = LIMITED.replace("(4096, 4096)", "(16, 16)")
    arguments = (f"--config={TINY}", f"--workdir={workdir}", "--config.tensorboard=False")
    ended = run("-c", limited, *arguments)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert re.search(r"error: cannot write \S+config.json: File too large", ended.stderr)


def test_a_full_disk_is_named_and_loses_nothing(workdir: Path):
    """Files are limited to a size that metadata fits into, and parameters do not."""
    arguments = [f"--config={TINY}", f"--workdir={workdir}", "--config.tensorboard=False"]
    first = run("train.py", *arguments, "--config.duration=3 steps")
    assert first.stdout.startswith("done: step=3"), first.stderr
    ended = run("-c", LIMITED, *arguments, "--allow_config_changes")
    assert ended.returncode == 2, ended.stderr
    # Threads of the checkpoint library may still log after the error.
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: cannot write")
    assert "Intact: 3" in errors[0]
    assert (workdir / "checkpoints" / "3").is_dir()
