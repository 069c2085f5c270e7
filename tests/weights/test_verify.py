"""--verify: equal models agree, and a wrong kernel or position shows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pit_jax.models import parameters, zoo
from pit_jax.models.pit.config import PiTConfig
from pit_jax.weights.load import fit
from pit_jax.weights.match import match
from pit_jax.weights.read import WeightFile
from pit_jax.weights.verify import Difference, agrees, verify

MemoryFile = Callable[..., WeightFile]


@pytest.mark.parametrize(
    ("layout", "changes", "head"),
    [
        ("official", {}, "load"),
        ("timm", {"distilled": True}, "load"),
        ("pit_jax", {}, "load"),
        ("official", {"image_size": (72, 48), "num_classes": 7}, "new"),
        ("timm", {"num_classes": 0}, "load"),
    ],
)
def test_timm_agrees(
    layout: str, changes: dict[str, Any], head: str, tiny: PiTConfig, memory_file: MemoryFile
) -> None:
    config = dataclasses.replace(tiny, **changes)
    stored = dataclasses.replace(tiny, distilled=config.distilled)
    file = memory_file(stored, layout)
    found = verify(match(file, config), fit(match(file, config), head=head))
    assert [item.name for item in found] == ["stage0/map", "stage1/map", "logits"]
    assert all(item.relative < 1e-5 for item in found)
    assert agrees(found)


FAMILIES = {
    "deit_ti": {"width": 8, "heads": 2, "depth": 2, "image_size": 40, "num_classes": 5},
    "deit_ti_distilled": {"width": 8, "heads": 2, "depth": 2, "image_size": 40, "num_classes": 5},
    "resnet50": {"depths": (1, 1, 1, 1), "image_size": 32, "num_classes": 5},
    "regnety_160": {
        "widths": (8, 16, 24, 32),
        "depths": (1, 2, 1, 1),
        "group_width": 8,
        "image_size": 32,
        "num_classes": 5,
    },
}


def positive_variances(file: WeightFile) -> WeightFile:
    tensors = {
        name: np.abs(value) + 0.5 if name.endswith("running_var") else value
        for name, value in file.tensors.items()
    }
    return dataclasses.replace(file, tensors=tensors)


@pytest.mark.parametrize(
    ("model", "layout", "changes", "head"),
    [
        ("deit_ti", "official", {}, "load"),
        ("deit_ti_distilled", "timm", {"image_size": (64, 48), "num_classes": 7}, "new"),
        ("resnet50", "torchvision", {}, "load"),
        ("regnety_160", "timm", {"num_classes": 7}, "new"),
        ("regnety_160", "torchvision", {}, "load"),
    ],
)
def test_timm_agrees_on_the_baselines_and_the_teacher(
    model: str, layout: str, changes: dict[str, Any], head: str, memory_file: MemoryFile
) -> None:
    stored = zoo.model_config(model, **FAMILIES[model])
    config = zoo.model_config(model, **FAMILIES[model] | changes)
    file = positive_variances(memory_file(stored, layout))
    params = fit(match(file, config), head=head)
    found = verify(match(file, config), params)
    maps = [f"stage{index}/map" for index in range(len(config.grids))]
    assert [item.name for item in found] == [*maps, "logits"]
    assert all(item.relative < 1e-5 for item in found)
    flat = parameters.flatten(params)
    kernel = next(path for path, value in flat.items() if value.ndim == 4 and len(value) > 1)
    flat[kernel] = flat[kernel][::-1]
    assert not agrees(verify(match(file, config), parameters.unflatten(flat)))


def test_what_timm_does_not_have_is_said(memory_file: MemoryFile) -> None:
    config = zoo.model_config("resnet50_nopool", depths=(1,), base_width=4, num_classes=5)
    file = memory_file(config, "timm")
    with pytest.raises(ValueError, match=r"no torch reference of this ResNet .*without --verify"):
        verify(match(file, config), fit(match(file, config)))


@pytest.mark.parametrize("path", ["stage1/block0/attention/qkv/kernel", "pool0/conv/kernel"])
def test_a_wrong_kernel_is_noticed(path: str, tiny: PiTConfig, memory_file: MemoryFile) -> None:
    file = memory_file(tiny)
    flat = parameters.flatten(fit(match(file, tiny)))
    flat[path] = flat[path][::-1]
    first, last, logits = verify(match(file, tiny), parameters.unflatten(flat))
    assert first.relative < 1e-5
    assert last.relative > 1e-2
    assert not agrees([first, last, logits])


def test_what_is_no_number_does_not_agree() -> None:
    assert not agrees([Difference("logits", np.nan, np.nan)])
    assert agrees([Difference("stage0/map", 1.0, 1.0), Difference("logits", 1e-6, 1e-5)])
    assert str(Difference("logits", 1e-6, 1e-5)).split() == [
        *("logits", "1.00e-06", "absolute", "1.00e-05", "relative")
    ]
