"""The tables of names and axes, against the names and shapes of the torch code."""

import json
from pathlib import Path

import numpy as np
import pytest

from pit_jax.models import zoo
from pit_jax.models.pit.config import PiTConfig
from pit_jax.models.torch_names import OURS, Row
from pit_jax.weights.match import parameter_shapes, table_of


@pytest.mark.parametrize("name", zoo.list_models("pit_*"))
def test_names_and_shapes_are_those_of_the_torch_code(name: str, data_dir: Path) -> None:
    config = zoo.model_config(name)
    table, shapes = table_of(config), parameter_shapes(config)
    for layout, key in (("official", name), ("timm", f"{name}_224")):
        expected = json.loads((data_dir / f"keys_{layout}.json").read_text())[key]
        found = {
            name: list(row.file_shape(shapes[row.path], layout))
            for name, row in table.by_name(layout).items()
        }
        assert found == expected
        if layout == "official":
            assert list(found) == list(expected)
        assert table.recognise(expected) == layout
    assert table.recognise(shapes) == OURS


@pytest.mark.parametrize("axes", [(), (1, 0), (2, 3, 1, 0), (0, 2, 3, 1)])
def test_a_row_writes_what_it_read(axes: tuple[int, ...]) -> None:
    row = Row("ours", {"official": "theirs"}, axes)
    value = np.random.RandomState(0).standard_normal((2, 3, 4, 5)[: len(axes) or 1])
    ours = row.read(value, "official")
    np.testing.assert_array_equal(row.write(ours, "official"), value)
    assert row.file_shape(ours.shape, "official") == value.shape
    assert row.our_shape(value.shape, "official") == ours.shape
    assert row.read(value, OURS) is value


def test_a_linear_layer_is_transposed_and_a_convolution_put_channels_last() -> None:
    table = table_of(zoo.model_config("pit_ti"))
    rows = {row.path: row for row in table.body}
    matrix = np.arange(6.0).reshape(2, 3)  # (out, in)
    kernel = rows["stage0/block0/mlp/fc1/kernel"].read(matrix, "timm")
    assert kernel[2, 1] == matrix[1, 2]
    filters = np.arange(24.0).reshape(2, 3, 2, 2)  # (out, in, height, width)
    kernel = rows["embedding/conv/kernel"].read(filters, "timm")
    assert kernel[0, 1, 2, 1] == filters[1, 2, 0, 1]


def test_a_configuration_of_no_family_is_named() -> None:
    with pytest.raises(ValueError, match="str is the configuration of no known family"):
        table_of("pit_s")


def test_an_unknown_layout_is_corrected(tiny: PiTConfig) -> None:
    with pytest.raises(ValueError, match="unknown layout 'oficial'; did you mean 'official'"):
        table_of(tiny).check_layout("oficial")
