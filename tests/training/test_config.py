"""Configurations: valid ones are accepted, others refused with a message that helps."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from pit_jax.tasks import experiments
from pit_jax.tasks.classification.config import ClassificationConfig
from pit_jax.tasks.experiments import default_config, parse, prepare
from pit_jax.training.errors import TrainingError
from pit_jax.training.setup import record


def test_the_defaults_survive_the_round_trip():
    assert parse(default_config()) == ClassificationConfig()


def test_values_of_all_kinds_arrive(config: ConfigDict):
    config.optimizer.clip_norm = 1
    parsed = parse(config)
    assert parsed.optimizer.clip_norm == 1.0
    assert parsed.model.options["widths"] == (8, 16)
    assert parsed.data.data_dir is None


@pytest.mark.parametrize("key", ["lrr", "model.nam", "optimizer.weight_decy"])
def test_unknown_keys_cannot_be_set(key: str):
    node, name = default_config(), key
    if "." in key:
        parent, name = key.split(".")
        node = node[parent]
    with pytest.raises((KeyError, AttributeError)):
        node[name] = 1


def test_every_problem_is_listed_at_once(config: ConfigDict):
    with config.unlocked(), config.data.unlocked():
        config.duratio = "3 epochs"
        config.data.crop_scale = (0.5,)
        del config.batch_size
        config.batch_size = "many"
    with pytest.raises(
        ValueError, match=r"config\.duratio is not an option; did you mean"
    ) as caught:
        parse(config)
    assert (
        "config.data.crop_scale must be tuple[float, float] such as (0.08, 1.0), found (0.5,)"
    ) in str(caught.value)
    assert "config.batch_size must be int, found 'many'" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 0, "config.batch_size must be at least 1"),
        ("batch_size", 20, "config.batch_size=20 cannot be split over 8 devices"),
        ("batch_size", 128, r"config.batch_size=128 is more than the 100 examples of digits/train"),
        ("eval_batch_size", 12, "config.eval_batch_size=12 cannot be split"),
        ("augment.label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\)"),
        ("fsdp", 3, "fsdp=3 does not divide the 8 devices"),
        ("model.name", "pit_tiny", r"unknown model 'pit_tiny'; did you mean 'pit_ti'\?"),
        ("model.dtype", "float16", "config.model.dtype must be 'bfloat16' or 'float32'"),
        ("model.num_classes", 5, "config.model.num_classes=5 is fewer than the 10 classes"),
        ("model.options", {"width": (8, 16)}, r"has no option 'width'; did you mean 'widths'\?"),
        ("data.name", "digit", r"unknown data set 'digit'; did you mean 'digits'\?"),
        ("data.eval_protocol", "dei", r"unknown evaluation protocol 'dei'; did you mean 'deit'\?"),
        ("data.name", "folder:/nowhere", "looked in /nowhere, found no directory that can be read"),
        ("data.repeats", 0, "config.data.repeats must be at least 1"),
        ("data.randaugment", "rand-m9-mst1", r"config.data.randaugment: unknown section 'mst1'"),
        ("data.augment_on", "gpu", "config.data.augment_on must be 'auto' or 'host' or 'device'"),
        ("data.bad_images", "skp", "config.data.bad_images must be 'error' or 'skip', found 'skp'"),
        ("optimizer.name", "adam", r"must be 'adamw' or .*, found 'adam'; did you mean 'adamw'\?"),
        ("optimizer.warmup", "9 epochs", "warmup='9 epochs' is longer than config.duration='3 ep"),
        (
            "optimizer.frozen",
            ("stage9",),
            "names 'stage9', which is not a part of pit_ti; did you",
        ),
        ("duration", "3", "config.duration must be a number and a unit"),
        ("eval_every", "0 steps", "config.eval_every='0 steps' is less than a step"),
        ("remat", "all", "config.remat must be 'none' or 'dots', found 'all'"),
        ("accumulate", 3, "config.batch_size=32 is no multiple of config.accumulate=3"),
        ("accumulate", 8, r"config.batch_size / config.accumulate=4 cannot be split"),
        ("augment.mixup_alpha", 0.8, r"mix_group=64 must be even and divide config.batch_size=32"),
        ("distillation.kind", "hard", "needs a student with a distillation head.*pit_ti_distilled"),
        ("profile_steps", (3, 2), r"profile_steps must be .* found \(3, 2\)"),
        ("profile_steps", (0, 2), r"profile_steps must be .* found \(0, 2\)"),
        ("profile_steps", (-1, -1), r"profile_steps must be .* found \(-1, -1\)"),
        ("evaluate_ema", True, "config.evaluate_ema needs config.ema_decay"),
    ],
)
def test_an_experiment_that_cannot_run_is_refused_before_it_computes(
    config: ConfigDict, workdir: Path, key: str, value: object, message: str
):
    parent, _, name = key.rpartition(".")
    node = config[parent] if parent else config
    node[name] = value
    if name == "evaluate_ema":
        config.ema_decay = None
    with pytest.raises(ValueError, match=message):
        prepare(config, workdir)
    assert not (workdir / "config.json").exists()


def test_a_workdir_that_cannot_be_written_is_refused(config: ConfigDict, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to --workdir=.*Not a directory"):
        prepare(config, tmp_path / "file" / "run")


def test_an_address_is_no_workdir(config: ConfigDict):
    with pytest.raises(ValueError, match=r"--workdir=gs://bucket/run is an address"):
        prepare(config, "gs://bucket/run")


def test_overrides_are_stored(config: ConfigDict, workdir: Path):
    """`--config.x=y` overrides are stored, as are values of the file and defaults."""
    config.update_from_flattened_dict(
        {"optimizer.weight_decay": 0.125, "model.options.depths": (2, 1), "profile_steps": (2, 2)}
    )
    record(prepare(config, workdir))
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["config"]["optimizer"]["weight_decay"] == 0.125
    assert stored["config"]["model"]["options"]["depths"] == [2, 1]
    assert stored["model"]["options"]["depths"] == [2, 1]
    assert stored["config"]["profile_steps"] == [2, 2]
    assert stored["config"]["batch_size"] == 32
    assert stored["config"]["max_skips"] == 10


@pytest.mark.parametrize("holds", ["checkpoints/3", "checkpoints/damaged-3"])
def test_a_directory_of_another_experiment_is_refused(
    config: ConfigDict, workdir: Path, holds: str
):
    prepare(config, workdir)
    prepare(config, workdir)
    (workdir / holds).mkdir(parents=True)
    config.duration = "4 epochs"
    config.optimizer.weight_decay = 0.1
    with pytest.raises(ValueError, match="belongs to another experiment") as caught:
        prepare(config, workdir)
    assert "config.duration was '3 epochs', now '4 epochs'" in str(caught.value)
    assert "config.optimizer.weight_decay was 0.05, now 0.1" in str(caught.value)
    assert prepare(config, workdir, allow_config_changes=True).steps.total == 12


def test_a_start_that_came_to_nothing_binds_no_other(config: ConfigDict, workdir: Path):
    """After a start without its weights, the corrected command runs in the same directory."""
    config.init_from = str(workdir / "missing.safetensors")
    with pytest.raises(TrainingError, match="there is no file or directory"):
        experiments.train(config, workdir)
    (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()  # cut short, so not complete
    config.init_from = None
    prepare(config, workdir)
    assert json.loads((workdir / "config.json").read_text())["config"]["init_from"] is None


def test_a_result_binds_without_checkpoints(config: ConfigDict, workdir: Path):
    prepare(config, workdir)
    (workdir / "result.json").write_text("{}")
    config.duration = "4 epochs"
    with pytest.raises(ValueError, match="belongs to another experiment"):
        prepare(config, workdir)


def test_folders_whose_splits_number_classes_differently_are_refused(
    config: ConfigDict, workdir: Path, tmp_path: Path
):
    for name in ("train/ant", "raw/bee"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").touch()
    config.data.name = f"folder:{tmp_path}"
    config.data.train_split, config.data.eval_split = "train", "raw"
    with pytest.raises(ValueError, match="number their classes differently"):
        prepare(config, workdir)
