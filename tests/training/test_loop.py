"""Whole runs: to the end, started again, resumed from the middle, and the files they write."""

import json
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import pit_jax
from pit_jax.models import parameters
from pit_jax.tasks import experiments
from pit_jax.tasks.classification.task import Classification
from pit_jax.tasks.experiments import prepare
from pit_jax.training import loop
from pit_jax.training.batches import TrainBatches
from pit_jax.training.errors import TrainingError
from pit_jax.training.start import compile_step
from pit_jax.training.state import create_state
from pit_jax.weights.read import read
from pit_jax.weights.run_directory import restore_params


def events(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_weights(workdir: Path) -> dict[str, np.ndarray]:
    params, _ = restore_params(workdir)
    return parameters.flatten(params)


def test_a_run_leaves_its_result_metrics_and_weights(finished: Path):
    result = json.loads((finished / "result.json").read_text())
    assert result["step"] == 9
    assert result["metrics"]["test/count"] == 37
    assert result["metrics"]["test/top1"] * 37 == pytest.approx(
        round(result["metrics"]["test/top1"] * 37)
    )
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0
    assert result["versions"]["jax"] == jax.__version__
    assert Path(result["checkpoint"]).is_dir()
    lines = events(finished)
    assert [line["step"] for line in lines if "test/top1" in line] == [3, 6, 9]
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6, 8, 9]
    assert list(finished.glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (finished / "checkpoints").iterdir() if path.is_dir()) == [
        "6",
        "9",
    ]


def test_training_learns(finished: Path):
    losses = [line["test/loss"] for line in events(finished) if "test/loss" in line]
    assert losses[-1] < losses[0] - 0.02


def test_the_step_takes_over_the_memory_of_its_state(config: ConfigDict, workdir: Path):
    setup = prepare(config, workdir)
    state = create_state(setup.task.initial_values(), setup.optimizer, setup.mesh, ema=True, seed=0)
    batch = next(TrainBatches(setup, 0))
    compile_step(setup, state, {})(state, {}, batch)
    moments = jax.tree.leaves([state.params, state.ema, state.optimizer])
    assert all(leaf.is_deleted() for leaf in moments)


def test_the_step_is_compiled_once_and_ahead(
    config: ConfigDict, workdir: Path, caplog: pytest.LogCaptureFixture
):
    config.duration = "2 epochs"
    with jax.log_compiles(), caplog.at_level("INFO", logger="pit_jax"):
        experiments.train(config, workdir)
    compiled = [line for line in caplog.messages if line.startswith("Compiling jit(train_step)")]
    assert len(compiled) == 1
    steps = [index for index, line in enumerate(caplog.messages) if line.startswith("step ")]
    assert caplog.messages.index(compiled[0]) < steps[0]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_share_of_time_waited_for_data_is_logged(
    config: ConfigDict, workdir: Path, monkeypatch: pytest.MonkeyPatch, steps: int
):
    """All waiting counts, also in steps after a log line, an evaluation or a checkpoint."""

    pause = 0.1

    class Slow(TrainBatches):
        def __next__(self) -> dict[str, jax.Array]:
            time.sleep(pause)
            return super().__next__()

    monkeypatch.setattr(loop, "TrainBatches", Slow)
    config.log_every = f"{steps} steps"
    experiments.train(config, workdir)
    lines = [line for line in events(workdir) if "train/data_wait_fraction" in line]
    assert len(lines) == 9 // steps
    for line in lines:
        seconds = steps * config.batch_size / line["train/images_per_second"]
        assert 0.99 * steps * pause <= line["train/data_wait_fraction"] * seconds <= seconds


def test_a_finished_run_is_only_reported(finished: Path, config: ConfigDict, caplog):
    before = (finished / "result.json").read_bytes()
    with caplog.at_level("INFO", logger="pit_jax"):
        result = experiments.train(config, finished)
    assert "is finished; nothing to do" in caplog.text
    assert "compiled" not in caplog.text
    assert str(result).startswith("done: step=9 test/top1=0.")
    assert (finished / "result.json").read_bytes() == before


@pytest.mark.parametrize("lost", [["9"], ["6", "9"]])
def test_an_interrupted_run_continues_bit_identically(
    finished: Path, config: ConfigDict, workdir: Path, lost: list[str]
):
    """The run goes back to an earlier checkpoint; without any it starts from the beginning."""
    shutil.copytree(finished, workdir)
    for name in ("result.json", "model.safetensors"):
        (workdir / name).unlink()
    for step in lost:
        shutil.rmtree(workdir / "checkpoints" / step)
    experiments.train(config, workdir)
    again, first = (last_weights(directory) for directory in (workdir, finished))
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    results = [json.loads((path / "result.json").read_text()) for path in (workdir, finished)]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_sharded_parameters_train_like_replicated_ones(
    finished: Path, config: ConfigDict, workdir: Path, monkeypatch
):
    monkeypatch.setattr("pit_jax.sharding.MIN_SHARDED_SIZE", 64)
    config.fsdp = 4
    experiments.train(config, workdir)
    losses = [
        [line["train/loss"] for line in events(path) if "train/loss" in line]
        for path in (workdir, finished)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    results = [json.loads((path / "result.json").read_text()) for path in (workdir, finished)]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=1e-5)


def test_the_state_is_sharded_where_it_is_large(config: ConfigDict, workdir: Path, monkeypatch):
    monkeypatch.setattr("pit_jax.sharding.MIN_SHARDED_SIZE", 64)
    config.fsdp = 4
    setup = prepare(config, workdir)
    values = setup.task.initial_values()
    state = create_state(values, setup.optimizer, setup.mesh, ema=False, seed=0)
    kernel = state.params["stage1"]["block0"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == kernel.shape]
    assert len(moments) == 2
    assert all(leaf.addressable_shards[0].data.size == leaf.size // 4 for leaf in moments)


def test_a_loss_that_is_not_finite_stops_the_run(config: ConfigDict, workdir: Path):
    config.optimizer.base_learning_rate = 1e30
    config.optimizer.warmup = "0 steps"
    with pytest.raises(
        TrainingError, match=r"(loss|gradient_norm) is .* at step \d.*last good checkpoint"
    ):
        experiments.train(config, workdir)
    assert not (workdir / "result.json").exists()


def test_weights_to_start_from_are_taken_or_named(
    finished: Path, config: ConfigDict, workdir: Path
):
    config.init_from = str(finished)
    values = parameters.flatten(prepare(config, workdir).task.initial_values())
    exported = read(finished).tensors
    for name, value in values.items():
        np.testing.assert_array_equal(value, exported[name])
    config.init_from = str(finished / "nothing.pth")
    with pytest.raises(TrainingError, match=r"config\.init_from=.*there is no file or directory"):
        experiments.train(config, workdir.with_name("other"))


def test_weights_evaluate_to_the_accuracy_of_training(finished: Path):
    expected = json.loads((finished / "result.json").read_text())["metrics"]
    for source in (finished, finished / "model.safetensors"):
        file = read(source)
        protocol = Classification.evaluation_options(file)
        assert (protocol.data, protocol.split) == ("digits", "test[:37]")
        found = Classification.evaluate(file, protocol, batch_size=9).metrics
        assert found["top1"] == expected["test/top1"]
        assert found["count"] == 37
        assert found["loss"] == pytest.approx(expected["test/loss"], rel=1e-5)


def test_an_unfinished_run_serves_its_newest_checkpoint(finished: Path, workdir: Path):
    shutil.copytree(finished, workdir)
    (workdir / "model.safetensors").unlink()
    params, model = restore_params(workdir)
    assert model["name"] == "pit_ti"
    created = pit_jax.create_model("pit_ti", weights=workdir, **model["options"])
    loaded = parameters.flatten(parameters.split(created)[1])
    for name, value in parameters.flatten(params).items():
        np.testing.assert_array_equal(loaded[name], value)


def test_a_run_is_loaded_with_all_its_options(finished: Path):
    model = pit_jax.load_model(finished)
    assert (model.config.image_size, model.config.num_classes) == ((8, 8), 10)
    loaded = parameters.flatten(parameters.split(model)[1])
    for name, value in last_weights(finished).items():
        np.testing.assert_array_equal(loaded[name], value)


def test_a_directory_without_checkpoints_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="not a run directory"):
        restore_params(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        restore_params(tmp_path)


def test_the_exported_weights_are_those_of_the_last_checkpoint(finished: Path):
    exported = read(finished / "model.safetensors")
    assert exported.card is not None
    assert exported.card["model"] == "pit_ti"
    restored = last_weights(finished)
    assert exported.tensors.keys() == restored.keys()
    for name, value in restored.items():
        np.testing.assert_array_equal(exported.tensors[name], value)
