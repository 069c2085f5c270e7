"""The zoo: its names, its errors, and the building of a row."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models import parameters, zoo
from pit_jax.models.convnet.regnet import RegNet
from pit_jax.models.convnet.resnet import ResNet
from pit_jax.models.pit.model import PiT
from pit_jax.models.psvit.model import PSViT
from pit_jax.models.vit.model import ViT

SMALL = {
    "pit_ti": {"widths": [8, 16], "depths": [1, 1], "heads": [1, 2], "image_size": 32},
    "deit_ti_distilled": {"width": 8, "heads": 2, "depth": 1, "image_size": 32},
    "psvit_1d_tiny": {
        "patch_size": 8,
        "stage_widths": [8, 16],
        "heads": [1, 2],
        "cells": "21|1",
        "image_size": 32,
    },
    "resnet50": {"base_width": 2, "depths": [1, 1], "image_size": 32},
    "regnety_160": {"widths": [8, 8], "depths": [1, 1], "group_width": 4, "image_size": 32},
}
FAMILIES = {
    "pit_ti": PiT,
    "deit_ti_distilled": ViT,
    "psvit_1d_tiny": PSViT,
    "resnet50": ResNet,
    "regnety_160": RegNet,
}


def test_every_model_of_the_paper_has_a_name():
    sizes = ("ti", "xs", "s", "b")
    assert zoo.list_models("pit_*") == [
        *(f"pit_{size}" for size in sizes),
        *(f"pit_{size}_distilled" for size in sizes),
    ]
    assert zoo.list_models("vit_*") == ["vit_ti", "vit_s", "vit_b"]
    assert zoo.list_models("deit_*") == [
        *("deit_ti", "deit_s", "deit_b"),
        *("deit_ti_distilled", "deit_s_distilled", "deit_b_distilled"),
    ]
    sizes = ("tiny", "small", "base")
    assert zoo.list_models("psvit_*")[:6] == [
        *(f"psvit_1d_{size}" for size in sizes),
        *(f"psvit_2d_{size}" for size in sizes),
    ]
    assert zoo.list_models("re*") == ["resnet50", "resnet50_nopool", "regnety_160"]
    assert zoo.list_models() == [
        name
        for pattern in ("pit_*", "vit_*", "deit_*", "psvit_*", "re*")
        for name in zoo.list_models(pattern)
    ]
    assert zoo.list_models("*xl*") == []


def test_vit_and_deit_are_two_names_of_one_network():
    for size in ("ti", "s", "b"):
        assert zoo.model_config(f"vit_{size}") == zoo.model_config(f"deit_{size}")
        assert zoo.model_config(f"deit_{size}_distilled") == dataclasses.replace(
            zoo.model_config(f"deit_{size}"), distilled=True
        )


def test_fields_can_be_replaced_and_rows_stay_as_they_are():
    config = zoo.model_config("regnety_160", depths=[1, 1, 2, 1], image_size=288, num_classes=7)
    assert config.depths == (1, 1, 2, 1)
    assert config.image_size == (288, 288)
    assert config.num_classes == 7
    assert zoo.model_config("regnety_160").depths == (2, 4, 11, 1)
    assert zoo.model_config("vit_s", image_size=(64, 96)).image_size == (64, 96)


@pytest.mark.parametrize("size", ["224", "22", (224,), (1, 2, 3), ("a", "b"), (7.5, 8), 7.5])
def test_an_image_size_that_is_none_is_named(size):
    with pytest.raises(ValueError, match="image_size must be a number of pixels or"):
        zoo.model_config("pit_ti", image_size=size)


def test_unknown_names_and_options_are_corrected():
    with pytest.raises(ValueError, match=r"unknown model 'pit_m'; did you mean 'pit_\w+'\?;"):
        zoo.model_config("pit_m")
    with pytest.raises(ValueError, match="unknown model 'resnet-50'; did you mean 'resnet50'"):
        zoo.model_config("resnet-50")
    with pytest.raises(ValueError, match="deit_s has no option 'widths'; did you mean 'width'"):
        zoo.model_config("deit_s", widths=(64,))
    with pytest.raises(ValueError, match=r"resnet50 has no option 'heads'.*; it has base_width"):
        zoo.model_config("resnet50", heads=3)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_build_the_module_of_their_family(name):
    config = zoo.model_config(name, num_classes=3, **SMALL[name])
    model = zoo.build(config)
    assert type(model) is FAMILIES[name]
    graphdef, params = parameters.split(model)
    abstract_graphdef, shapes = zoo.abstract(config)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    jax.tree.map(
        lambda leaf, shape: np.testing.assert_equal(leaf.shape, shape.shape), params, shapes
    )
    x = jnp.ones((1, 32, 32, 3))
    logits = parameters.merge(abstract_graphdef, params)(x)
    assert logits.shape == (1, 3)
    np.testing.assert_array_equal(logits, parameters.merge(graphdef, params)(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_seeds_give_equal_parameters(name):
    config = zoo.model_config(name, num_classes=3, **SMALL[name])
    one, again, other = (
        parameters.flatten(parameters.split(zoo.build(config, seed=seed))[1]) for seed in (0, 0, 1)
    )
    for path, value in one.items():
        np.testing.assert_array_equal(value, again[path])
        if path.endswith("kernel"):
            assert not np.array_equal(value, other[path]), path
    kernels = [
        np.asarray(value) for path, value in one.items() if path.endswith("conv1/conv/kernel")
    ]
    for first, second in itertools.pairwise(kernels):
        assert first.shape != second.shape or not np.array_equal(first, second)


@pytest.mark.parametrize("name", FAMILIES)
def test_initial_values_compile_no_program_of_their_own(name, caplog):
    """Compiling would take longer than drawing; only the keys have programs."""
    zoo.build(zoo.model_config(name, num_classes=3, **SMALL[name]))
    odd = {"pit_ti": {"widths": [6, 18]}, "deit_ti_distilled": {"width": 22}}
    sizes = SMALL[name] | odd.get(name, {"num_classes": 17})
    with jax.log_compiles():
        zoo.build(zoo.model_config(name, **{"num_classes": 5, **sizes}))
    assert [line for line in caplog.messages if line.startswith("Compiling")] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_info_describes_the_features(name):
    model = zoo.build(zoo.model_config(name, num_classes=0, **SMALL[name]))
    maps = model.features(jnp.ones((1, 32, 32, 3)))
    described = {info.stride: (1, *info.grid, info.channels) for info in model.feature_info}
    assert {stride: value.shape for stride, value in maps.items()} == described
