"""Analytic cost against the published figures, PyTorch's own counter, and the modules."""

import jax
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pit_jax.models import parameters, zoo

# Parameters, and GMACs of one 224x224 image, counted on the reference code.
FACTS = {
    "pit_ti": (4_847_272, 0.6991),
    "pit_xs": (10_618_888, 1.3947),
    "pit_s": (23_461_912, 2.8708),
    "pit_b": (73_764_840, 12.4019),
    "pit_ti_distilled": (5_104_336, 0.7050),
    "pit_xs_distilled": (11_003_984, 1.4069),
    "pit_s_distilled": (24_039_056, 2.8966),
    "pit_b_distilled": (74_790_096, 12.4824),
    "vit_ti": (5_717_416, 1.254),
    "vit_s": (22_050_664, 4.599),
    "vit_b": (86_567_656, 17.564),
    "deit_ti": (5_717_416, 1.254),
    "deit_s": (22_050_664, 4.599),
    "deit_b": (86_567_656, 17.564),
    "deit_ti_distilled": (5_910_800, 1.261),
    "deit_s_distilled": (22_436_432, 4.624),
    "deit_b_distilled": (87_338_192, 17.657),
    "resnet50": (25_557_032, 4.089),
    "regnety_160": (83_590_140, 15.91),
}
AT_384 = {"pit_ti": (4_941_992, 3.269), "pit_b_distilled": (75_263_184, 46.567)}


def digits(value: float) -> int:
    return len(str(value).partition(".")[2])


@pytest.mark.parametrize("name", FACTS)
def test_cost_is_the_published_one(name):
    expected, macs = FACTS[name]
    cost = zoo.cost(zoo.model_config(name))
    assert cost.parameters == expected
    assert round(cost.macs / 1e9, digits(macs)) == macs


def test_every_model_has_a_published_cost_or_a_reason():
    # There is no reference without pooling: it is compared with the network that it ablates. The
    # models of PSViT have tests of their own.
    others = {"resnet50_nopool", *zoo.list_models("psvit_*")}
    assert zoo.rows().keys() - FACTS.keys() == others


@pytest.mark.parametrize("name", AT_384)
def test_cost_at_384(name):
    expected, macs = AT_384[name]
    cost = zoo.cost(zoo.model_config(name, image_size=384))
    assert cost.parameters == expected
    assert round(cost.macs / 1e9, digits(macs)) == macs


def test_kinds_add_up_for_pit_s():
    cost = zoo.cost(zoo.model_config("pit_s"))
    kinds = (cost.convolution, cost.linear, cost.attention)
    assert [round(kind / 1e9, 4) for kind in kinds] == [0.0814, 2.3368, 0.4526]
    assert sum(kinds) == cost.macs


# Rows of every family, with and without its optional parts.
VARIANTS = {
    "pit_s_distilled": {"image_size": (200, 176), "mlp_ratio": 3.0, "in_channels": 1},
    "pit_ti": {"num_classes": 0, "widths": (32,), "depths": (2,), "heads": (2,)},
    "deit_ti_distilled": {"image_size": (64, 96), "depth": 2, "num_classes": 10},
    "vit_ti": {"num_classes": 0, "depth": 1},
    "psvit_1d_tiny": {"cells": "12|31|0", "empty_stages": True, "pool_norm": "batch"},
    "psvit_2d_tiny": {"image_size": (120, 72), "pool_kernel": 2, "num_classes": 0},
    "resnet50": {"base_width": 20, "depths": (1, 2), "num_classes": 0},
    "resnet50_nopool": {"depths": (2, 1), "in_channels": 1},
    "regnety_160": {"widths": (24, 40), "depths": (2, 1), "group_width": 8, "stem_width": 12},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_module(name):
    config = zoo.model_config(name, **VARIANTS[name])
    _, shapes = zoo.abstract(config)
    assert zoo.cost(config).parameters == parameters.count(shapes)


def test_running_statistics_are_no_parameters():
    _, shapes = zoo.abstract(zoo.model_config("resnet50"))
    trained, statistics = parameters.separate(shapes)
    assert parameters.count(shapes) == parameters.count(trained) == 25_557_032
    assert sum(leaf.size for leaf in jax.tree.leaves(statistics)) == 53_120


@pytest.mark.parametrize(
    ("name", "reference", "size"),
    [
        ("pit_ti_distilled", "pit_ti_distilled_224", 224),
        ("deit_ti_distilled", "deit_tiny_distilled_patch16_224", 224),
        ("resnet50", "resnet50", 200),
        ("regnety_160", "regnety_160", 225),
    ],
)
def test_macs_are_what_pytorch_counts(name, reference, size, timm):
    with torch.device("meta"):
        model = timm.create_model(reference).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, size, size))
    cost = zoo.cost(zoo.model_config(name, image_size=size))
    assert 2 * cost.macs == counter.get_total_flops()


def test_resnet_without_pooling_costs_what_resnet_does():
    pooled, flat = (zoo.cost(zoo.model_config(n)) for n in ("resnet50", "resnet50_nopool"))
    assert abs(flat.macs / pooled.macs - 1) < 0.01
    # 196 positions, 17 * w^2 per bottleneck, a 16x16 stem to 4 w channels, the head.
    width = 272
    stem = 196 * 768 * 4 * width
    assert flat.macs == 16 * 196 * 17 * width**2 + stem + 4 * width * 1000


@pytest.mark.parametrize("pair", zoo.POOLING_PAIRS)
def test_pairs_with_and_without_pooling_cost_the_same(pair):
    with_pooling, without = (
        zoo.model_config(name, **fields) for name, fields in zoo.POOLING_PAIRS[pair]
    )
    assert len(with_pooling.grids) > 1 == len(without.grids)
    assert without.grids == ((14, 14),)
    assert abs(zoo.cost(without).macs / zoo.cost(with_pooling).macs - 1) < 0.03
    if hasattr(without, "heads"):
        widths = [
            wide // heads
            for wide, heads in zip(with_pooling.widths, with_pooling.heads, strict=True)
        ]
        assert set(widths) == {without.width // without.heads}


def test_training_is_three_forward_passes_but_for_the_gradient_of_the_images() -> None:
    pit = zoo.model_config("pit_s")
    forward = zoo.model_flops(pit, training=False)
    assert forward == 2 * zoo.cost(pit).macs
    stem = 27 * 27 * (16 * 16 * 3) * 144  # positions, inputs of one, channels
    assert zoo.model_flops(pit, training=True) == 3 * forward - 2 * stem
    resnet = zoo.model_config("resnet50")
    stem = 112 * 112 * (7 * 7 * 3) * 64
    expected = 6 * zoo.cost(resnet).macs - 2 * stem
    assert zoo.model_flops(resnet, training=True) == expected
