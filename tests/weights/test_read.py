"""Reading: formats recognised by content, wrappers, damage."""

import argparse
import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pit_jax.weights.cards import card_config
from pit_jax.weights.read import WeightFile, read

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.5, -1.0])}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_is_state(file: WeightFile) -> None:
    assert list(file.tensors) == list(STATE)
    for name, value in STATE.items():
        assert file.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(file.tensors[name], value.numpy())


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE},
        {"state_dict": STATE, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        {"model": {f"module.{name}": value for name, value in STATE.items()}, "model_ema": {}},
        {"state_dict": {"model": STATE}},
        {name: torch.nn.Parameter(value) for name, value in STATE.items()},
    ],
    ids=["flat", "model", "state_dict", "module", "nested", "parameters"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoints_are_unwrapped(content: Any, zipped: bool, tmp_path: Path) -> None:
    # The format is recognised by the content, not by the name.
    path = saved(tmp_path / "x.safetensors", content, _use_new_zipfile_serialization=zipped)
    file = read(path)
    assert_is_state(file)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.torch_version == torch.__version__
    assert file.card is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_all_floating_types_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in STATE.items()}
    safetensors.torch.save_file(state, tmp_path / "x.bin")
    saved(tmp_path / "x.pth", state)
    for name in ("x.bin", "x.pth"):
        tensors = read(tmp_path / name).tensors
        for key, value in STATE.items():
            assert tensors[key].dtype == np.float32
            np.testing.assert_array_equal(tensors[key], value.numpy())


def test_without_torch_safetensors_are_read_and_pth_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors.torch.save_file({"half": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "x")
    saved(tmp_path / "x.pth", STATE)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(read(tmp_path / "x").tensors["half"], [1, 1])
    with pytest.raises(ValueError, match="needs PyTorch: pip install torch"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_torch_checkpoint_is_refused(kept: float, zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", STATE, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"x\.pth cannot be read as a torch checkpoint"):
        read(path)


@pytest.mark.parametrize("kept", [9, 60, -1])
def test_a_truncated_safetensors_file_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save(STATE)[:kept])
    with pytest.raises(ValueError, match="damaged or truncated"):
        read(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"\x10\x00", "starts with"),
        (b"hello, world", "starts with b'hello, w'"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_described(
    content: bytes, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"is no weights file: .*{found}"):
        read(path)


class Trap:
    """An object that runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(writer: str, tmp_path: Path) -> None:
    path, sprung = tmp_path / "x.pth", tmp_path / "sprung"
    if writer == "torch":
        torch.save({"model": STATE, "extra": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    with pytest.raises(ValueError, match=r"other Python objects .*state_dict\(\)"):
        read(path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_ema": STATE, "optimizer": {}}, "'model' or 'state_dict'; found 'model_ema', 'opt"),
        ({}, "found nothing"),
        ([1, 2], "expected a state dict, found list"),
        ({**STATE, "epoch": 3}, "the entry 'epoch' is of type int"),
    ],
)
def test_other_content_is_named(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(saved(tmp_path / "x.pth", content))


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or directory 'timm/pit_s'.* hf:owner/name"):
        read("timm/pit_s")
    with pytest.raises(ValueError, match="not a run directory"):
        read(tmp_path)


def test_a_file_of_others_has_no_card(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "x", metadata={"format": "pt"})
    assert read(tmp_path / "x").card is None


def test_an_incomplete_card_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry 'options'; it has model"):
        card_config({"model": "pit_ti"})
