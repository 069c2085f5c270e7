"""Utilisation: the peak of a device, and the operations of a step."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ml_collections import ConfigDict

from pit_jax.models import zoo
from pit_jax.tasks import experiments
from pit_jax.tasks.classification.config import ClassificationConfig
from pit_jax.tasks.classification.task import Classification
from pit_jax.training import loop, utilisation


def device(kind: str) -> Any:
    return SimpleNamespace(device_kind=kind)


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v2", 22.5),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v4 lite", 138),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v5e", 197),
        ("TPU v5 lite", 197),
        ("TPU v5litepod", None),
        ("TPU v6e", 918),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla V100S-PCIE-32GB", None),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", None),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_kind_is_that_of_its_longest_row_in_whole_words(
    kind: str, tera: float | None
):
    assert utilisation.peak_flops(device(kind)) == (tera and pytest.approx(tera * 1e12))


@pytest.mark.parametrize(
    "name", ["pit_ti", "pit_s_distilled", "vit_s", "resnet50", "resnet50_nopool", "regnety_160"]
)
def test_a_step_costs_what_the_model_does_and_the_teachers_forward_pass(name: str):
    """The count is three forward passes less the image's gradient, as in compile_report."""
    model, teacher = zoo.model_config(name), zoo.model_config("regnety_160")
    forward = 2 * zoo.cost(model).macs
    alone = Classification(ClassificationConfig(), model).flops(training=True)
    assert alone == zoo.model_flops(model, training=True)
    assert 0.9 * 3 * forward < alone < 3 * forward
    taught = Classification(ClassificationConfig(), model, teacher=teacher)
    assert taught.flops(training=True) - alone == 2 * zoo.cost(teacher).macs
    assert taught.flops(training=False) == forward


def test_the_configuration_overrides_the_table(monkeypatch: pytest.MonkeyPatch):
    assert utilisation.utilisation(1000, examples=8.0, peak=None) is None  # a CPU
    assert utilisation.utilisation(None, examples=8.0, peak=1e12) is None
    monkeypatch.setitem(utilisation.PEAK_FLOPS, "cpu", 1e12)
    known = utilisation.utilisation(1000, examples=8.0, peak=None)
    assert known == pytest.approx(8 * 1000 / 1e12)
    overridden = utilisation.utilisation(1000, examples=8.0, peak=4e12)
    assert overridden == pytest.approx(known / 4)


def test_a_batch_in_parts_is_as_much_work(config: ConfigDict, workdir: Path):
    """XLA counts the body of a loop once, so that two parts would look like half the work."""
    config.accumulate, config.peak_flops, config.tensorboard = 2, 1e9, False
    config.duration, config.log_every, config.optimizer.warmup = "2 steps", "1 step", "0 steps"
    setup = experiments.prepare(config, workdir)
    loop.run(setup)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train/mfu" in line]
    assert len(lines) == 2
    of_image = zoo.model_flops(setup.task.network, training=True)
    for line in lines:
        of_a_device = line["train/images_per_second"] / 8 * of_image
        assert line["train/mfu"] == pytest.approx(of_a_device / 1e9)
