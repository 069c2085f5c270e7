"""What --verify compares: that it agrees where it should, and notices where it should not."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pit_jax.models import params as parameters
from pit_jax.models.config import PiTConfig
from pit_jax.weights.files import WeightFile
from pit_jax.weights.load import fit
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
    found = verify(file, config, fit(file, config, head=head))
    assert [item.name for item in found] == ["stage0/map", "stage1/map", "logits"]
    assert all(item.relative < 1e-5 for item in found)
    assert agrees(found)


@pytest.mark.parametrize("path", ["stage1/block0/attention/qkv/kernel", "pool0/conv/kernel"])
def test_a_wrong_kernel_is_noticed(path: str, tiny: PiTConfig, memory_file: MemoryFile) -> None:
    file = memory_file(tiny)
    flat = parameters.flatten(fit(file, tiny))
    flat[path] = flat[path][::-1]
    first, last, logits = verify(file, tiny, parameters.unflatten(flat))
    assert first.relative < 1e-5
    assert last.relative > 1e-2
    assert not agrees([first, last, logits])


def test_what_is_no_number_does_not_agree() -> None:
    assert not agrees([Difference("logits", np.nan, np.nan)])
    assert agrees([Difference("stage0/map", 1.0, 1.0), Difference("logits", 1e-6, 1e-5)])
    assert str(Difference("logits", 1e-6, 1e-5)).split() == [
        *("logits", "1.00e-06", "absolute", "1.00e-05", "relative")
    ]
