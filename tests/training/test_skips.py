"""Whole runs in which updates are skipped because a loss or gradient is not finite."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from pit_jax.tasks import experiments
from pit_jax.training import step
from pit_jax.training.errors import TrainingError


def poison(monkeypatch: pytest.MonkeyPatch, is_poisoned: Callable[[jax.Array], jax.Array]) -> None:
    """Replaces the images of some steps, counted from one, by NaN."""
    gradient = step._gradient

    def poisoned(task: Any, graphdef: Any, state: Any, *, inputs: Any, **rest: Any) -> Any:
        images = jnp.where(is_poisoned(state.step + 1), jnp.nan, inputs["images"])
        return gradient(task, graphdef, state, inputs={**inputs, "images": images}, **rest)

    monkeypatch.setattr(step, "_gradient", poisoned)


def test_a_run_skips_the_update_of_a_broken_step_and_goes_on(
    config: ConfigDict, workdir: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, lambda number: number == 4)
    config.on_nonfinite, config.log_every, config.tensorboard = "skip", "1 step", False
    assert experiments.train(config, workdir).step == 9

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    lines = [line for line in lines if "train/skipped" in line]
    assert [line["train/skipped"] for line in lines] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert [line["step"] for line in lines if "train/loss" not in line] == [4]
    assert all(line["train/learning_rate"] > 0 for line in lines)


def test_starting_again_does_not_begin_the_count_of_skips_anew(
    config: ConfigDict, workdir: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two skips before the checkpoint and one after it are three in a row."""
    poison(monkeypatch, lambda number: number > 1)
    config.on_nonfinite, config.max_skips, config.checkpoint_every = "skip", 3, "1 step"
    config.tensorboard = False
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"3 steps in a row, up to step 4; .*checkpoints/3"):
            experiments.train(config, workdir)
