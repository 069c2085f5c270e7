"""Configurations: cells, tokens and grids, rows of the zoo with the paper's numbers, bad input."""

import dataclasses
from typing import Any

import pytest

from pit_jax.models import zoo
from pit_jax.models.psvit.config import PSViTConfig, shared_cells
from pit_jax.models.psvit.family import FAMILY, PUBLISHED, cost_as_printed

# The recorded network of a row, where the two are one.
RECORDED = {
    "psvit_1d_tiny": "psvit_1d_tiny16@224",
    "psvit_1d_tiny16": "psvit_1d_tiny16@224",
    "psvit_1d_tiny8": "psvit_1d_tiny8@224",
    "psvit_1d_small": "psvit_1d_small8@224",
    "psvit_1d_small8": "psvit_1d_small8@224",
    "psvit_1d_small16": "psvit_1d_small16@224",
    "psvit_1d_base": "psvit_1d_base8@224",
    "psvit_2d_tiny": "psvit_2d_tiny@224",
    "psvit_2d_small": "psvit_2d_small@224",
    "psvit_2d_base": "psvit_2d_base@224",
    "psvit_1d_dimension1": "dimension1@224",
    "psvit_1d_dimension2": "dimension2_256@224",
    "psvit_1d_dimension2_288": "dimension2_288@224",
    "psvit_2d_pooling": "pooling_only_2d@224",
    "psvit_1d_sharing2": "sharing2@224",
    "psvit_1d_sharing3": "sharing3_15@224",
}
# Rows whose count of multiply-accumulates does not round to the printed one, with the difference
# in G; docs/psvit.md says why.
MISSED = {
    "psvit_1d_small16": 0.0500,  # 4.05005: the rounding window of 4.0 ends at 4.05
    "psvit_1d_dimension2": -0.1404,  # a width of 256 where 288 would fit
    "psvit_1d_base": -0.0557,
    "psvit_2d_base": 0.3646,
}


def tiny(**fields: Any) -> PSViTConfig:
    defaults: dict[str, Any] = {
        "pooling": "1d",
        "patch_size": 8,
        "stage_widths": (16, 24),
        "heads": (1, 2),
        "cells": "21|2",
        "image_size": (32, 32),
    }
    return PSViTConfig(**{**defaults, **fields})


def test_every_row_is_a_recorded_network(oracle: Any) -> None:
    assert FAMILY.rows.keys() == RECORDED.keys()
    for name, tag in RECORDED.items():
        config = dataclasses.replace(oracle.network(tag).config, empty_stages=False)
        assert zoo.model_config(name) == config


def test_costs_are_the_recorded_ones_of_all_networks(oracle: Any) -> None:
    for tag in oracle.tags:
        recorded = oracle.network(tag)
        cost, printed = zoo.cost(recorded.config), cost_as_printed(recorded.config)
        assert list(recorded.config.tokens) == recorded.facts["tokens"], tag
        assert cost.parameters == printed.parameters == recorded.facts["parameters"], tag
        assert cost.macs == recorded.facts["macs"], tag
        assert printed.macs == recorded.facts["macs_conv_at_output"], tag


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_cost_what_the_paper_prints(name: str) -> None:
    printed, cost = PUBLISHED[name], cost_as_printed(zoo.model_config(name))
    if printed.parameters is not None:
        assert abs(cost.parameters / 1e6 - printed.parameters) < 0.02
    gmacs = cost.macs / 1e9
    if name in MISSED:
        assert gmacs - printed.gmacs == pytest.approx(MISSED[name], abs=1e-4)
    else:
        assert round(gmacs, 1) == printed.gmacs


def test_cells_are_kept_without_spaces_and_identities() -> None:
    config = zoo.model_config("psvit_1d_tiny", cells="2 2 1 0 0 0 | 2 2 0 0 0 0 | 2 1 1 1 0 0")
    assert config == zoo.model_config("psvit_1d_tiny")
    assert config == zoo.model_config("psvit_1d_tiny", cells="202100|000022|002111")
    other = zoo.model_config("psvit_1d_tiny", cells="220|210|111")
    assert isinstance(other, PSViTConfig)
    assert other.groups == ((2, 2), (2, 1), (1, 1, 1))
    assert other.depths == (4, 3, 3)


def test_cells_of_equal_groups() -> None:
    assert shared_cells((4, 2), 1) == "1111|11"
    assert shared_cells((4, 5), 2) == "22|221"
    assert shared_cells((14,), 3) == "33332"


def test_tokens_and_maps_of_any_size() -> None:
    config = tiny(image_size=(40, 56), stage_widths=(16, 24, 32), heads=(1, 2, 4), cells="1|1|1")
    assert (config.patches, config.tokens) == ((35, 17, 8), (36, 18, 9))
    assert (config.grids, config.strides, config.widths) == (((5, 7),), (8,), (16,))
    flat = dataclasses.replace(config, pooling="2d")
    assert flat.grids == ((5, 7), (3, 4), (2, 2))
    assert flat.tokens == flat.patches == (35, 12, 4)
    assert flat.strides == (8, 16, 32)
    assert dataclasses.replace(flat, pool_kernel=2).grids == ((5, 7), (2, 3), (1, 1))
    assert dataclasses.replace(config, patch_size=4).tokens == (141, 71, 36)


def test_stochastic_depth_grows_over_the_layers_that_run() -> None:
    rates = tiny(cells="0200|0100", drop_path_rate=0.1).drop_path_rates
    assert rates == pytest.approx((0.0, 0.05, 0.1))
    rates = tiny(cells="0|0", empty_stages=True, drop_path_rate=0.1).drop_path_rates
    assert rates == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cells": "2x|1"}, "cells must be a digit per cell, .* found '2x|1'"),
        ({"cells": ""}, "cells must be a digit per cell"),
        ({"cells": (2, 1)}, r"cells must be a digit per cell, .* found \(2, 1\)"),
        ({"cells": "221"}, "cells '221' are of 1 stages, separated by '|'; stage_widths have 2"),
        ({"cells": "2|2|1"}, "are of 3 stages"),
        ({"heads": (1, 2, 3)}, "and heads 3"),
        ({"cells": "22|000"}, "stage 1 of cells '22|0' has no layer; empty_stages=True"),
        ({"cells": "|22"}, "stage 0 of cells '0|22' has no layer"),
        ({"heads": (3, 2)}, "a width of 16 does not divide into 3 heads"),
        ({"pooling": "3d"}, "unknown pooling '3d'; expected one of 1d, 2d"),
        ({"pool_activation": "rely"}, "unknown pool_activation 'rely'; did you mean 'relu'?"),
        ({"pool_kernel": 2}, "the 1D pool_kernel must be odd, found 2"),
        ({"head_norm": "after"}, "head_norm='after' is no option of 1d"),
        ({"pooling": "2d", "pool_norm": "batch"}, "pool_norm='batch' is no option of 2d"),
        ({"image_size": (8, 8)}, "stage 1 has no patches left of an image_size"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**fields)
    assert "\n" not in str(caught.value)


def test_a_group_longer_than_its_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="3 layers cannot share a map in stage 1: it has 2"):
        shared_cells((4, 2), 3)
    with pytest.raises(ValueError, match="1 to 9 layers can share an attention map, found 10"):
        shared_cells((20,), 10)


def test_another_option_of_a_row_is_corrected() -> None:
    with pytest.raises(ValueError, match="psvit_1d_tiny has no option 'cell'; did you mean 'cells"):
        zoo.model_config("psvit_1d_tiny", cell="1|1|1")
