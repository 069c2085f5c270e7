"""Fitting files to models: strict in both directions, positions resized, heads replaced."""

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from pit_jax.models import parameters, zoo
from pit_jax.models.pit.config import PiTConfig
from pit_jax.weights.cards import make_card
from pit_jax.weights.create import create_model
from pit_jax.weights.load import fit, load_weights, to_torch
from pit_jax.weights.match import describe, fitting_models, identify, match
from pit_jax.weights.read import WeightFile, read
from pit_jax.weights.verify import reference_model
from pit_jax.weights.write import write_torch, write_weights

MemoryFile = Callable[..., WeightFile]
TorchState = Callable[[bool], tuple[PiTConfig, dict[str, Any]]]


def assert_equal(found: Any, expected: Any) -> None:
    """Asserts the same structure and bit-identical values."""
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def changed(file: WeightFile, **changes: Any) -> WeightFile:
    """A file with entries replaced, added, or dropped if None; "__" stands for a dot."""
    tensors = dict(file.tensors)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    return dataclasses.replace(file, tensors=tensors)


@pytest.mark.parametrize("layout", ["official", "timm"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("distilled", [False, True])
def test_a_round_trip_is_bit_exact_both_ways(
    layout: str, suffix: str, distilled: bool, torch_state: TorchState, tmp_path: Path
) -> None:
    config, state = torch_state(distilled)
    torch.save(state, tmp_path / "timm.pth")
    params = load_weights(tmp_path / "timm.pth", config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}

    card = make_card("pit_ti", config, source="timm.pth")
    write_weights(tmp_path / "ours.safetensors", params, card)
    from_ours = load_weights(tmp_path / "ours.safetensors", config)
    assert_equal(from_ours, params)
    back = tmp_path / f"back{suffix}"
    write_torch(back, to_torch(from_ours, config, layout), card)
    assert_equal(load_weights(back, config), params)

    if suffix == ".pth":
        written = torch.load(back, weights_only=True)
    else:
        written = safetensors.torch.load_file(back)
    if layout == "timm":
        assert written.keys() == state.keys()
        assert all(torch.equal(written[name], state[name]) for name in state)
        reference_model(config).load_state_dict(written, strict=True)
    else:
        pooling = {"pools.0.conv.weight", "pools.0.conv.bias", "pools.0.fc.weight"}
        assert pooling <= written.keys()


def test_all_that_is_wrong_is_said_at_once(tiny: PiTConfig, memory_file: MemoryFile) -> None:
    file = changed(
        memory_file(tiny, "timm"),
        transformers__0__blocks__0__norm1__bias=None,
        transformers__1__pool__fc__weight=None,
        transformers__0__blocks__0__norm1__bais=np.zeros(8, "f"),
        extra=np.zeros(3, "f"),
        norm__weight=np.zeros((16, 1), "f"),
        patch_embed__conv__weight=np.zeros((8, 3, 14, 14), "f"),
        norm__bias=np.zeros(16, np.int64),
    )
    with pytest.raises(ValueError, match="does not fit this PiT") as error:
        fit(match(file, tiny))
    assert str(error.value).split("\n  ") == [
        "some.pth (timm layout) does not fit this PiT:",
        "2 missing: transformers.0.blocks.0.norm1.bias, transformers.1.pool.fc.weight",
        "2 unknown: transformers.0.blocks.0.norm1.bais; did you mean "
        "'transformers.0.blocks.0.norm1.bias'?, extra",
        "2 mis-shaped: patch_embed.conv.weight is (8, 3, 14, 14), expected (8, 3, 16, 16); "
        "norm.weight is (16, 1), expected (16,)",
        "not floating point: norm.bias",
    ]


def test_a_long_list_is_cut_and_counted(tiny: PiTConfig, memory_file: MemoryFile) -> None:
    extra = {f"extra{index}": np.zeros(1, "f") for index in range(33)}
    with pytest.raises(ValueError, match=r"33 unknown: extra0, .*extra19 and 13 more$"):
        fit(match(changed(memory_file(tiny), **extra), tiny))


def test_parameters_of_another_model_are_not_written(
    tiny: PiTConfig, memory_file: MemoryFile
) -> None:
    flat = parameters.flatten(fit(match(memory_file(tiny), tiny)))
    flat["norm/gain"] = flat.pop("norm/scale")
    flat["head/bias"] = jnp.zeros(4)
    with pytest.raises(ValueError, match="do not fit this PiT") as error:
        to_torch(parameters.unflatten(flat), tiny, "official")
    assert str(error.value).split("\n  ")[1:] == [
        "1 missing: norm/scale",
        "1 unknown: norm/gain; did you mean 'norm/scale'?",
        "1 mis-shaped: head/bias is (4,), expected (5,)",
    ]
    with pytest.raises(ValueError, match="unknown layout 'tim'; did you mean 'timm'"):
        to_torch({}, tiny, "tim")


@pytest.mark.parametrize(
    ("held", "asked"), [("pit_ti_distilled", "pit_ti"), ("pit_ti", "pit_ti_distilled")]
)
def test_distilled_and_plain_files_are_told_apart(
    held: str, asked: str, memory_file: MemoryFile
) -> None:
    kinds = {"pit_ti": "a plain", "pit_ti_distilled": "a distilled"}
    named = (
        f"does not fit {asked}:\n  it holds {kinds[held]} model, and {asked} is {kinds[asked]} "
        f"one\n  the model it fits is {held}\n  .* head_dist.weight, head_dist.bias\n  1 mis-shaped"
    )
    with pytest.raises(ValueError, match=named):
        fit(match(memory_file(zoo.model_config(held)), zoo.model_config(asked)))


def test_a_distilled_file_without_heads_is_told_by_its_tokens(
    tiny: PiTConfig, memory_file: MemoryFile
) -> None:
    plain = dataclasses.replace(tiny, num_classes=0)
    file = memory_file(dataclasses.replace(plain, distilled=True))
    with pytest.raises(ValueError, match="it holds a distilled model, and this PiT is a plain one"):
        fit(match(file, plain))


def test_the_model_a_file_fits_is_named(tiny: PiTConfig, memory_file: MemoryFile) -> None:
    sized = zoo.model_config("pit_ti", image_size=(96, 64), num_classes=7)
    file = memory_file(sized)
    assert fitting_models(file) == [["pit_ti"]]
    assert fitting_models(memory_file(tiny)) == []
    with pytest.raises(ValueError, match="does not fit pit_xs:\n  the model it fits is pit_ti"):
        fit(match(file, zoo.model_config("pit_xs", num_classes=7)))
    carded = dataclasses.replace(memory_file(tiny), card=make_card("pit_ti", tiny, source=""))
    with pytest.raises(
        ValueError, match=r"its card says pit_ti with image_size=\[40, 40\], num_cl"
    ):
        fit(match(carded, zoo.model_config("pit_ti", num_classes=5)))


def test_descriptions_name_the_row_whatever_its_sizes_and_rates() -> None:
    assert describe(zoo.model_config("pit_s", image_size=96, drop_path_rate=0.1)) == "pit_s"
    assert describe(zoo.model_config("pit_s", depths=(1, 1, 1))) == "this PiT"


def test_models_are_identified(tiny: PiTConfig, memory_file: MemoryFile) -> None:
    own = zoo.model_config("pit_ti", num_classes=7)
    found = identify(memory_file(own))
    assert (found.name, found.config) == ("pit_ti", own)
    assert identify(memory_file(own), num_classes=3).config.num_classes == 3
    large = zoo.model_config("pit_ti", image_size=(384, 224))
    with pytest.raises(
        ValueError, match=r"are 47 x 27, for images 384 to 391 pixels high and 224 to 231 wide"
    ):
        identify(memory_file(large), "pit_ti")
    found = identify(memory_file(large), image_size=(384, 224))
    assert (found.name, found.config) == ("pit_ti", large)
    with pytest.raises(ValueError, match="it fits none of those known"):
        identify(memory_file(tiny))
    for form in ("--image_size=HEIGHT,WIDTH", "create_model(NAME, image_size=(HEIGHT, WIDTH), we"):
        with pytest.raises(ValueError, match=re.escape(form)):
            identify(memory_file(large), "pit_ti")
    for form in ("--model=NAME", "create_model(NAME, weights=...)"):
        with pytest.raises(ValueError, match=re.escape(form)):
            identify(memory_file(tiny))
    with pytest.raises(ValueError, match="did you mean 'pit_ti'"):
        identify(memory_file(tiny), "pit_tii")
    carded = dataclasses.replace(memory_file(tiny), card=make_card("pit_ti", tiny, source=""))
    for found in (identify(carded), identify(carded, "pit_ti")):
        assert (found.name, found.config) == ("pit_ti", tiny)
    assert identify(carded, image_size=(48, 40)).config.image_size == (48, 40)
    with pytest.raises(ValueError, match=r"does not fit pit_s: its card says .* a pit_ti\. L"):
        identify(carded, "pit_s")


def test_a_network_of_two_names_loads_under_either(
    memory_file: MemoryFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = memory_file(zoo.model_config("deit_ti", image_size=32, num_classes=7), "timm")
    path = tmp_path / "deit.safetensors"
    safetensors.numpy.save_file(file.tensors, path)
    bare = read(path)
    assert fitting_models(bare) == [["vit_ti", "deit_ti"]]
    with caplog.at_level(logging.INFO):
        found = identify(bare, image_size=(32, 32))
    assert "deit.safetensors is taken as vit_ti, also named deit_ti" in caplog.text
    for name in ("vit_ti", "deit_ti"):
        named = identify(bare, name, image_size=(32, 32))
        assert (named.name, named.config) == (name, found.config)
        card = make_card(name, named.config, source="")
        carded = identify(dataclasses.replace(bare, card=card))
        assert (carded.name, carded.config) == (name, found.config)
        assert_equal(fit(carded), fit(named))
    wrong = re.escape("does not fit pit_ti:\n  the model it fits is vit_ti or deit_ti")
    with pytest.raises(ValueError, match=wrong):
        load_weights(path, "pit_ti")


@pytest.mark.parametrize("size", [(40, 40), (96, 48), (24, 40), (72, 112)])
def test_positions_are_resized_as_torch_does(
    size: tuple[int, int],
    tiny: PiTConfig,
    memory_file: MemoryFile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = memory_file(dataclasses.replace(tiny, image_size=(72, 48)))  # a grid of 8 x 5
    config = dataclasses.replace(tiny, image_size=size)
    with caplog.at_level(logging.WARNING):
        position = fit(match(file, config))["embedding"]["position"]
    height, width = config.grids[0]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(file.tensors["pos_embed"]), (height, width), mode="bicubic"
    )
    np.testing.assert_allclose(position, expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-5)
    assert f"positions resized from 8 x 5 to {height} x {width}" in caplog.text


VIT = {"width": 8, "heads": 2, "depth": 1, "num_classes": 5}


@pytest.mark.parametrize(("model", "prefix"), [("deit_ti", 1), ("deit_ti_distilled", 2)])
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (16, 144)])
def test_positions_of_a_vit_are_resized_as_deit_does(
    size: tuple[int, int],
    model: str,
    prefix: int,
    memory_file: MemoryFile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = memory_file(zoo.model_config(model, image_size=48, **VIT))  # a grid of 3 x 3
    config = zoo.model_config(model, image_size=size, **VIT)
    with caplog.at_level(logging.WARNING):
        position = fit(match(file, config))["position"]
    height, width = config.grids[0]
    stored = torch.from_numpy(file.tensors["pos_embed"])
    maps = stored[:, prefix:].reshape(1, 3, 3, 8).permute(0, 3, 1, 2)
    maps = torch.nn.functional.interpolate(maps, (height, width), mode="bicubic")
    np.testing.assert_array_equal(position[:, :prefix], stored[:, :prefix])
    np.testing.assert_allclose(
        position[:, prefix:], maps.flatten(2).transpose(1, 2).numpy(), rtol=0, atol=1e-5
    )
    assert f"positions resized from 3 x 3 to {height} x {width}" in caplog.text


def test_the_grid_of_a_sequence_of_positions_is_that_of_its_card(
    tmp_path: Path, memory_file: MemoryFile, caplog: pytest.LogCaptureFixture
) -> None:
    config = zoo.model_config("deit_ti", image_size=(64, 16), **VIT)  # 4 x 1, as many as 2 x 2
    path = tmp_path / "ours.safetensors"
    params = parameters.split(zoo.build(config))[1]
    write_weights(path, params, make_card("deit_ti", config, source="here"))
    loaded = fit(match(read(path), config))["position"]
    np.testing.assert_array_equal(loaded, params["position"])
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        turned = fit(match(read(path), dataclasses.replace(config, image_size=(16, 64))))
    assert "positions resized from 4 x 1 to 1 x 4" in caplog.text
    assert not np.allclose(turned["position"], loaded)


def test_a_sequence_of_positions_without_a_grid_is_refused(memory_file: MemoryFile) -> None:
    config = zoo.model_config("deit_ti", image_size=48, **VIT)
    file = changed(memory_file(config), pos_embed=np.zeros((1, 8, 8), "f"))
    message = re.escape("pos_embed is (1, 8, 8), expected (1, 10, 8)")
    with pytest.raises(ValueError, match=message):
        fit(match(file, config))


def test_positions_of_other_channels_are_not_resized(
    tiny: PiTConfig, memory_file: MemoryFile
) -> None:
    file = changed(memory_file(tiny), pos_embed=np.zeros((1, 16, 9, 9), "f"))
    message = re.escape("pos_embed is (1, 16, 9, 9), expected (1, 8, 4, 4)")
    with pytest.raises(ValueError, match=message):
        fit(match(file, tiny))


@pytest.mark.parametrize("distilled", [False, True])
def test_a_fresh_head_is_taken_only_if_asked_and_needed(
    distilled: bool, tiny: PiTConfig, memory_file: MemoryFile, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = dataclasses.replace(tiny, distilled=distilled)
    file, seven = memory_file(tiny), dataclasses.replace(tiny, num_classes=7)
    with pytest.raises(
        ValueError, match='for 5 classes, expected 7: num_classes=5 keeps it, head="new" takes a fr'
    ):
        fit(match(file, seven))
    with caplog.at_level(logging.WARNING):
        loaded = parameters.flatten(fit(match(file, tiny), head="new"))
        assert caplog.text == ""
        fresh = parameters.flatten(fit(match(file, seven), head="new", seed=3))
    assert "its head for 5 classes is left out, fresh head for 7" in caplog.text

    _, built = parameters.split(zoo.build(seven, seed=3))
    for path, value in parameters.flatten(built).items():
        kept = not path.startswith("head")
        np.testing.assert_array_equal(fresh[path], loaded[path] if kept else value)


def test_models_without_classes_and_files_without_a_head(
    tiny: PiTConfig, memory_file: MemoryFile, caplog: pytest.LogCaptureFixture
) -> None:
    headless = dataclasses.replace(tiny, num_classes=0)
    with caplog.at_level(logging.WARNING):
        params = fit(match(memory_file(tiny), headless))
    assert "head" not in params
    assert "its head for 5 classes is left out, no head" in caplog.text
    with pytest.raises(ValueError, match='for 0 classes, expected 5: head="new" takes a fresh one'):
        fit(match(memory_file(headless), tiny))
    assert fit(match(memory_file(headless), tiny), head="new")["head"]["bias"].shape == (5,)


def test_another_class_count_is_said_with_all_else(
    tiny: PiTConfig, memory_file: MemoryFile
) -> None:
    file = changed(memory_file(tiny), norm__bias=None)
    with pytest.raises(ValueError, match=r"1 missing: norm\.bias\n  its head is for 5 classes"):
        fit(match(file, dataclasses.replace(tiny, num_classes=7)))


def test_an_unknown_choice_of_head_is_corrected(tiny: PiTConfig, memory_file: MemoryFile) -> None:
    with pytest.raises(ValueError, match="unknown head 'knew'; did you mean 'new'"):
        fit(match(memory_file(tiny), tiny), head="knew")


def test_create_model_takes_weights_and_options(
    tiny: PiTConfig, tiny_options: dict[str, Any], memory_file: MemoryFile, tmp_path: Path
) -> None:
    file = memory_file(tiny)
    safetensors.torch.save_file(
        {name: torch.from_numpy(value) for name, value in file.tensors.items()}, tmp_path / "x"
    )
    model = create_model(
        "pit_ti", weights=tmp_path / "x", dtype=jnp.bfloat16, drop_path_rate=0.1, **tiny_options
    )
    assert model.config == dataclasses.replace(tiny, drop_path_rate=0.1)
    assert model.dtype == jnp.bfloat16
    _, params = parameters.split(model)
    assert_equal(params, load_weights(tmp_path / "x", tiny))


def test_create_model_without_weights_is_fresh_and_seeded(tiny_options: dict[str, Any]) -> None:
    models = [create_model("pit_ti", seed=seed, **tiny_options) for seed in (0, 0, 1)]
    first, same, other = (parameters.flatten(parameters.split(model)[1]) for model in models)
    assert_equal(first, same)
    assert not np.array_equal(first["head/kernel"], other["head/kernel"])


def test_weights_load_by_name(memory_file: MemoryFile, tmp_path: Path) -> None:
    config = zoo.model_config("pit_ti")
    params = fit(match(memory_file(config), config))
    write_weights(tmp_path / "x.safetensors", params, {})
    assert_equal(load_weights(tmp_path / "x.safetensors", "pit_ti"), params)
