"""The paper's settings as configs: their values, and that their ingredients run."""

import dataclasses
import functools
import itertools
import json
import logging
import math
import re
import runpy
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pit_jax.models import parameters, zoo
from pit_jax.models.psvit.family import PUBLISHED, cost_as_printed
from pit_jax.tasks import experiments
from pit_jax.tasks.classification.config import ClassificationConfig
from pit_jax.tasks.classification.task import Classification
from pit_jax.tasks.experiments import parse, prepare
from pit_jax.training import loop, start
from pit_jax.training.batches import TrainBatches
from pit_jax.training.state import create_state
from pit_jax.weights.read import read
from pit_jax.weights.run_directory import restore_params

ROOT = Path(__file__).parents[2]

PITS = ("pit_ti", "pit_xs", "pit_s", "pit_b")
VITS = ("vit_ti", "vit_s", "vit_b")
DEITS = ("deit_ti", "deit_s", "deit_b")
PAIRS = [f"{pair},{kind}" for pair in zoo.POOLING_PAIRS for kind in ("pooling", "no_pooling")]
MODELS = {
    "vanilla": (*PITS, *VITS, "resnet50", "resnet50_nopool"),
    "cutmix": (*PITS, *VITS),
    "deit": (*PITS, *DEITS),
    "distill": tuple(f"{name}_distilled" for name in (*PITS, *DEITS)),
    "pooling_ablation": tuple(PAIRS),
    "psvit": tuple(PUBLISHED),
}

# The settings: a row per option, a column per setting.
TABLE: dict[str, tuple[Any, Any, Any, Any]] = {
    "duration": ("100 epochs", "100 epochs", "300 epochs", "300 epochs"),
    "batch_size": (1024,) * 4,
    "optimizer.name": ("adamp",) * 4,
    "optimizer.options": ({"wd_ratio": 0.01, "nesterov": True},) * 4,
    "optimizer.base_learning_rate": (5e-4,) * 4,
    "optimizer.schedule": ("deit",) * 4,
    "optimizer.warmup": ("5 epochs",) * 4,
    "optimizer.warmup_learning_rate": (1e-6,) * 4,
    "optimizer.min_learning_rate": (1e-5,) * 4,
    "optimizer.weight_decay": (0.05,) * 4,
    "optimizer.clip_norm": (None,) * 4,
    "optimizer.layer_decay": (None,) * 4,
    "data.name": ("imagenet2012",) * 4,
    "data.crop_scale": ((0.08, 1.0),) * 4,
    "data.crop_ratio": ((3 / 4, 4 / 3),) * 4,
    "data.randaugment": ("", "", "rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1"),
    "data.repeats": (1,) * 4,
    "data.eval_protocol": ("deit",) * 4,
    "augment.flip_probability": (0.5,) * 4,
    "augment.erasing_probability": (0.0, 0.0, 0.25, 0.25),
    "augment.mixup_alpha": (0.0, 0.0, 0.8, 0.8),
    "augment.cutmix_alpha": (0.0, 1.0, 1.0, 1.0),
    "augment.mix_probability": (1.0,) * 4,
    "augment.switch_probability": (0.5,) * 4,
    "augment.label_smoothing": (0.0, 0.0, 0.1, 0.1),
    "model.image_size": ((224, 224),) * 4,
    "model.drop_path_rate": (0.0, 0.0, 0.1, 0.1),
    "ema_decay": (None, None, 0.99996, 0.99996),
    "evaluate_ema": (False,) * 4,
    "distillation.kind": ("none", "none", "none", "hard"),
    "distillation.alpha": (0.5,) * 4,
    "distillation.teacher": ("regnety_160",) * 4,
    "distillation.teacher_weights": (None, None, None, "hf:timm/regnety_160.deit_in1k"),
    "accumulate": (1,) * 4,
    "min_metric_at": ({},) * 4,
}
COLUMNS = ("vanilla", "cutmix", "deit", "distill")
# Exceptions for some models, in the settings that have DeiT's ingredients.
PIT_B = {"data.repeats": 3, "optimizer.warmup": "10 epochs"}
DEIT_S_OWN = {"data.repeats": 3, "optimizer.name": "adamw", "optimizer.options": {}}
# Experiments that go through a whole smoke run; for the others two steps are enough.
RUNS = {"vanilla": "pit_ti", "cutmix": "pit_ti", "deit": "pit_b", "distill": "pit_b_distilled"}
# Top-1 in percent, Table 2.
REPORTED = {
    "pit_ti": (71.3, 72.6, 73.0, 74.6),
    "pit_xs": (72.4, 76.8, 78.1, 79.1),
    "pit_s": (73.3, 79.0, 80.9, 81.9),
    "pit_b": (76.1, 79.9, 82.0, 84.0),
    "vit_ti": (68.7, 68.5, 72.2, 74.5),
    "vit_s": (68.7, 76.5, 79.8, 81.2),
    "vit_b": (69.3, 75.3, 81.8, 83.4),
}


def load(file: str, variant: str) -> ConfigDict:
    return runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["get_config"](variant)


def value(config: ClassificationConfig, option: str) -> Any:
    return functools.reduce(getattr, option.split("."), config)


@pytest.mark.parametrize("file", MODELS)
def test_every_model_has_the_values_of_the_table(file: str):
    column = COLUMNS.index({"pooling_ablation": "vanilla", "psvit": "deit"}.get(file, file))
    for variant in MODELS[file]:
        config = parse(load(file, variant))
        expected = {option: row[column] for option, row in TABLE.items()}
        if file in ("deit", "distill", "psvit"):
            expected |= PIT_B if variant.startswith("pit_b") else {}
            expected |= DEIT_S_OWN if variant.startswith(("deit", "psvit")) else {}
        assert {option: value(config, option) for option in expected} == expected, variant


@pytest.mark.parametrize("file", COLUMNS)
def test_every_config_trains_the_model_it_is_asked_for_and_tells_its_number(file: str):
    described = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["__doc__"]
    text = " ".join(described.split())
    assert "Nobody has measured any of it with this code yet" in text
    for variant in MODELS[file]:
        config = parse(load(file, variant))
        assert (config.model.name, config.model.options) == (variant, {})
        base = variant.removesuffix("_distilled").replace("deit", "vit")
        if base in REPORTED:
            assert f"{variant} {REPORTED[base][COLUMNS.index(file)]}" in text


def test_psvit_has_the_numbers_of_its_paper_in_config_and_documentation():
    described = runpy.run_path(str(ROOT / "configs" / "psvit.py"))["__doc__"]
    text = " ".join(described.split())
    assert "Nobody has measured any of it with this code yet" in text
    rows = (ROOT / "docs" / "psvit.md").read_text().splitlines()
    for name, printed in PUBLISHED.items():
        config = parse(load("psvit", name))
        assert (config.model.name, config.model.options) == (name, {})
        assert f"{name} {printed.top1}" in text
        model = zoo.model_config(name)
        cost = zoo.cost(model)
        cells = [
            f"`{name}`",
            printed.table,
            f"{printed.top1}",
            "-" if printed.parameters is None else f"{printed.parameters}",
            f"{cost.parameters / 1e6:.2f}",
            f"{printed.gmacs}",
            f"{cost_as_printed(model).macs / 1e9:.3f}",
            f"{cost.macs / 1e9:.3f}",
        ]
        assert f"| {' | '.join(cells)} |" in rows


def test_the_documentation_has_the_numbers_of_the_paper():
    rows = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    for model, numbers in REPORTED.items():
        cells = [f"{number}" for number in numbers]
        assert any(
            row.startswith(f"| `{model}`") and row.split(" | ")[1:] == [*cells[:3], f"{cells[3]} |"]
            for row in rows
        ), model


def test_the_ablation_trains_the_pairs_of_the_zoo():
    for pair, networks in zoo.POOLING_PAIRS.items():
        for kind, (name, fields) in zip(("pooling", "no_pooling"), networks, strict=True):
            config = parse(load("pooling_ablation", f"{pair},{kind}"))
            assert (config.model.name, config.model.options) == (name, fields)


@pytest.mark.parametrize(
    ("file", "variant", "meant"),
    [
        ("vanilla", "pit_x", "pit_xs"),
        ("cutmix", "pit_s,smok", "pit_s,smoke"),
        ("deit", "deit_tiny", "deit_ti"),
        ("distill", "pit_s_distiled", "pit_s_distilled"),
        ("pooling_ablation", "vit_s,nopooling", "vit_s,no_pooling"),
    ],
)
def test_a_wrong_variant_is_refused_with_the_closest(file: str, variant: str, meant: str):
    message = f"configs/{file}.py needs one of .* found '{variant}'; did you mean '{meant}'"
    with pytest.raises(ValueError, match=message):
        load(file, variant)


@pytest.mark.parametrize("file", MODELS)
def test_configs_load_from_anywhere(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parse(load(file, MODELS[file][0]))


def test_smoke_keeps_the_ingredients():
    """Smoke variants keep every value of the table except those that make a run long."""
    shrunk = ("batch_size", "duration", "data.name", "model.image_size", "optimizer.warmup")
    shrunk += ("distillation.teacher_weights",)
    for file, variants in MODELS.items():
        for variant in variants:
            whole, smoke = parse(load(file, variant)), parse(load(file, f"{variant},smoke"))
            for option in TABLE.keys() - shrunk:
                assert value(smoke, option) == value(whole, option), (file, variant, option)
            assert smoke.model.name == whole.model.name


@functools.cache
def smoke_experiments() -> dict[str, ConfigDict]:
    """The distinct smoke variants of all configs and models, by name. Most sizes of a model share
    one.
    """
    found: dict[str, tuple[str, ConfigDict]] = {}
    for file, variants in MODELS.items():
        for variant in variants:
            config = load(file, f"{variant},smoke")
            parsed = parse(config)
            network = zoo.model_config(config.model.name, **parsed.model.options)
            unnamed = dataclasses.replace(parsed.model, name=type(network).__name__)
            same = repr((dataclasses.replace(parsed, model=unnamed), network))
            found.setdefault(same, (f"{file}:{variant}", config))
    return dict(found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in smoke_experiments() if tuple(name.split(":")) not in RUNS.items()]
)
def test_two_steps_of_every_smoke_variant(name: str, tmp_path: Path):
    setup = prepare(smoke_experiments()[name], tmp_path)
    state = create_state(
        setup.task.initial_values(),
        setup.optimizer,
        setup.mesh,
        ema=setup.config.ema_decay is not None,
        seed=setup.config.seed,
    )
    before = jax.device_get(state.params)
    teacher = start.constants(setup)
    assert bool(teacher) == name.startswith("distill")
    step = start.compile_step(setup, state, teacher)
    for batch in itertools.islice(TrainBatches(setup, 0), 2):
        state, metrics = step(state, teacher, batch)
        assert math.isfinite(metrics["loss"])
        assert metrics["gradient_norm"] > 0
    moved = jax.tree.map(lambda old, new: np.any(old != new), before, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved))


class StopAt(logging.Handler):
    """Sends this process SIGTERM when a step is logged."""

    def __init__(self, step: int):
        super().__init__()
        self._step = step

    def emit(self, record: logging.LogRecord) -> None:
        if re.search(rf"step {self._step}/\d+ ", record.getMessage()):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("file", COLUMNS)
def test_a_smoke_run_is_interrupted_resumed_and_evaluated(file: str, tmp_path: Path):
    config = load(file, f"{RUNS[file]},smoke")
    config.tensorboard = False
    logger, stop = logging.getLogger("pit_jax"), StopAt(step=15)
    level = logger.level
    logger.addHandler(stop)
    logger.setLevel(logging.INFO)
    try:
        interrupted = experiments.train(config, tmp_path)
    finally:
        logger.removeHandler(stop)
        logger.setLevel(level)
    assert isinstance(interrupted, loop.Interrupted)
    assert interrupted.step == 15
    result = experiments.train(config, tmp_path)
    assert isinstance(result, loop.Result)
    assert result.step == 30
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [5, 10, 15, 20, 25, 30]

    file = read(tmp_path)
    protocol = Classification.evaluation_options(file)
    found = Classification.evaluate(file, protocol, batch_size=320).metrics
    assert found["count"] == result.metrics["test/count"] == 1280
    assert found["top1"] == result.metrics["test/top1"]
    np.testing.assert_allclose(found["loss"], result.metrics["test/loss"], rtol=1e-6)

    # Only the student is saved.
    saved, _ = restore_params(tmp_path)
    network = zoo.model_config(
        config.model.name,
        image_size=config.model.image_size,
        **parse(config).model.options,
    )
    shapes = {
        path: leaf.shape for path, leaf in parameters.flatten(zoo.abstract(network)[1]).items()
    }
    assert {path: leaf.shape for path, leaf in parameters.flatten(saved).items()} == shapes
