"""Which parameters decay, and how learning rates fall towards the input."""

import functools
import json

import jax
import numpy as np
import pytest

from pit_jax.models import parameters, zoo
from pit_jax.optim.masks import layer_decay_scales, layer_ids, weight_decay_mask
from pit_jax.weights.match import table_of


@functools.cache
def abstract(name: str) -> parameters.Params:
    return zoo.abstract(zoo.model_config(name))[1]


@pytest.mark.parametrize("name", ["pit_ti", "pit_ti_distilled"])
def test_decayed_parameters_are_those_of_the_reference(name, data_dir):
    shapes = json.loads((data_dir / "keys_official.json").read_text())[name]
    mask = parameters.flatten(weight_decay_mask(abstract(name)))
    rows = table_of(zoo.model_config(name)).by_name("official")
    for torch_name, shape in shapes.items():
        expected = len(shape) > 1 and torch_name not in ("pos_embed", "cls_token")
        assert mask[rows[torch_name].path] is expected, torch_name


def test_counts_of_the_reference():
    mask = jax.tree.leaves(weight_decay_mask(abstract("pit_ti")))
    assert (sum(mask), len(mask) - sum(mask)) == (54, 106)


def test_mask_has_the_structure_of_the_parameters():
    params = abstract("pit_ti")
    assert jax.tree.structure(weight_decay_mask(params)) == jax.tree.structure(params)


def test_layers_of_pit_count_over_all_stages():
    ids = layer_ids(abstract("pit_ti_distilled"))  # depths 2, 6, 4
    expected = {
        "embedding/conv/kernel": 0,
        "embedding/position": 0,
        "class_token": 0,
        "stage0/block0/norm1/scale": 1,
        "stage0/block1/mlp/fc2/bias": 2,
        "pool0/conv/kernel": 3,
        "pool0/fc/bias": 3,
        "stage1/block0/attention/qkv/kernel": 3,
        "stage1/block5/mlp/fc1/kernel": 8,
        "pool1/fc/kernel": 9,
        "stage2/block0/norm2/bias": 9,
        "stage2/block3/norm1/bias": 12,
        "norm/scale": 13,
        "head/kernel": 13,
        "head_distillation/bias": 13,
    }
    assert {path: ids[path] for path in expected} == expected
    assert sorted(set(ids.values())) == list(range(14))


def test_layers_of_the_baselines():
    ids = layer_ids(abstract("deit_ti_distilled"))
    inputs = ["class_token", "distillation_token", "position", "embedding/conv/bias"]
    assert {path for path, layer in ids.items() if layer == 0} >= set(inputs)
    assert (ids["block0/norm1/scale"], ids["block11/mlp/fc2/bias"]) == (1, 12)
    assert ids["norm/bias"] == ids["head_distillation/kernel"] == max(ids.values()) == 13
    trained, _ = parameters.separate(abstract("resnet50"))  # depths 3, 4, 6, 3
    ids = layer_ids(trained)
    assert (ids["stem/conv/kernel"], ids["head/bias"]) == (0, 17)
    assert ids["stage1/block0/downsample/conv/kernel"] == ids["stage1/block0/conv1/norm/bias"] == 4


def test_decayed_parameters_of_the_baselines():
    mask = parameters.flatten(weight_decay_mask(abstract("deit_ti_distilled")))
    undecayed = {path for path, decays in mask.items() if not decays}
    assert {"class_token", "position"} <= undecayed
    assert mask["distillation_token"] is True  # as in DeiT's code of the time
    assert {path.rsplit("/", 1)[-1] for path in undecayed} == {
        "class_token",
        "position",
        "bias",
        "scale",
    }
    mask = parameters.flatten(weight_decay_mask(abstract("resnet50")))
    decayed = {path for path, decays in mask.items() if decays}
    assert decayed == {path for path in mask if path.endswith("kernel")}
    assert len(decayed) == 54


def test_scales_are_powers_of_the_distance_from_the_head():
    params = abstract("pit_ti")
    scales = layer_decay_scales(params, 0.75)
    assert jax.tree.structure(scales) == jax.tree.structure(params)
    assert scales["head"]["kernel"] == scales["norm"]["bias"] == 1.0
    np.testing.assert_allclose(scales["stage2"]["block3"]["norm1"]["scale"], 0.75, rtol=1e-12)
    np.testing.assert_allclose(scales["embedding"]["conv"]["kernel"], 0.75**13, rtol=1e-12)
    assert set(jax.tree.leaves(layer_decay_scales(params, 1.0))) == {1.0}


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_impossible_decay_is_refused(decay):
    with pytest.raises(ValueError, match=rf"must be in \(0, 1\], found {decay}"):
        layer_decay_scales(abstract("pit_ti"), decay)
