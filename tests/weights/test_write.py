"""Writing: our files and torch's, with their cards; equal content gives equal files."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch

from pit_jax.models.pit.config import PiTConfig
from pit_jax.weights.cards import card_config, make_card
from pit_jax.weights.read import read
from pit_jax.weights.write import write_torch, write_weights


def test_our_file_carries_weights_and_card(tiny: PiTConfig, tmp_path: Path) -> None:
    params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3).T, "bias": jnp.ones(2, jnp.bfloat16)}}
    card = make_card("pit_ti", tiny, source="x.pth", sha256="00", layout="timm", command="convert")
    write_weights(tmp_path / "model.safetensors", params, card)
    for path in (tmp_path / "model.safetensors", tmp_path):
        file = read(path)
        assert list(file.tensors) == ["a/bias", "a/kernel"]
        np.testing.assert_array_equal(file.tensors["a/kernel"], params["a"]["kernel"])
        assert {value.dtype for value in file.tensors.values()} == {np.dtype(np.float32)}
        assert file.card == card
        assert file.source == str(path)
    assert card_config(card) == tiny
    assert card["options"] == {"widths": [8, 16], "depths": [1, 2], "heads": [1, 2]}
    assert card["image_size"] == [40, 40]
    assert (card["sha256"], card["layout"], card["command"]) == ("00", "timm", "convert")
    assert {"pit_jax", "jax"} <= card["versions"].keys()


def test_equal_conversions_give_equal_files(tiny: PiTConfig, tmp_path: Path) -> None:
    params = {"b": jnp.ones(3), "a": {"x": jnp.zeros((2, 2))}}
    for name in ("first.safetensors", "second.safetensors"):
        write_weights(tmp_path / name, params, make_card("pit_ti", tiny, source="x"))
    assert (tmp_path / "first.safetensors").read_bytes() == (
        tmp_path / "second.safetensors"
    ).read_bytes()


def test_only_our_kind_of_parameters_and_names_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.safetensors, found '.*x\.pth'"):
        write_weights(tmp_path / "x.pth", {}, {})
    with pytest.raises(ValueError, match="floating-point parameters, a is int32"):
        write_weights(tmp_path / "x.safetensors", {"a": np.int32(3)}, {})
    with pytest.raises(ValueError, match=r"ends in \.pth or .*, found '.*x\.npz'"):
        write_torch(tmp_path / "x.npz", {}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_torch_safetensors_file_keeps_the_card(tmp_path: Path) -> None:
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    write_torch(tmp_path / "x.safetensors", state, {"model": "pit_ti"})
    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded["w"], state["w"])
    assert read(tmp_path / "x.safetensors").card == {"model": "pit_ti"}
