"""Tables of the baselines and the teacher: names, shapes, and a lossless way back."""

import json

import numpy as np
import pytest

from pit_jax.models import parameters, zoo
from pit_jax.weights.load import fit, to_torch
from pit_jax.weights.match import fitting_models, match, parameter_shapes, table_of
from pit_jax.weights.read import WeightFile

# Model, layout, and the file with the recorded names of the reference.
RECORDED = [
    ("deit_ti", "official", "deit_tiny_patch16_224"),
    ("deit_s", "official", "deit_small_patch16_224"),
    ("deit_b", "timm", "deit_base_patch16_224"),
    ("deit_ti_distilled", "official", "deit_tiny_distilled_patch16_224"),
    ("deit_s_distilled", "timm", "deit_small_distilled_patch16_224"),
    ("deit_b_distilled", "official", "deit_base_distilled_patch16_224"),
    ("resnet50", "timm", "resnet50"),
    ("resnet50", "torchvision", "resnet50"),
    ("regnety_160", "timm", "regnety_160"),
    ("regnety_160", "torchvision", None),
]
TINY = {
    "vit_ti": {"width": 8, "heads": 2, "depth": 2, "image_size": 32},
    "deit_ti_distilled": {"width": 8, "heads": 2, "depth": 2, "image_size": 32},
    "resnet50": {"base_width": 2, "depths": (1, 2)},
    "resnet50_nopool": {"base_width": 2, "depths": (1, 2)},
    "regnety_160": {"widths": (8, 12), "depths": (1, 2), "group_width": 4},
}


@pytest.fixture(scope="module")
def recorded(data_dir):
    """{timm's model: {name: shape}}; torchvision's RegNetY-16GF is under None."""
    shapes = json.loads((data_dir / "keys_teacher_and_baselines.json").read_text())
    torchvision = json.loads((data_dir / "keys_tv_regnet_y_16gf.json").read_text())
    return {**shapes, None: torchvision}


def random_file(config, layout: str) -> WeightFile:
    """A file of a layout for a configuration, with no two values equal."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config)
    return WeightFile(
        {
            name: rng.standard_normal(row.file_shape(shapes[row.path], layout)).astype(np.float32)
            for name, row in table_of(config).by_name(layout).items()
        },
        "a file",
    )


@pytest.mark.parametrize(("model", "layout", "reference"), RECORDED)
def test_names_and_shapes_are_the_recorded_ones(model, layout, reference, recorded):
    config = zoo.model_config(model)
    table, shapes = table_of(config), parameter_shapes(config)
    rows = table.by_name(layout)
    written = {name: list(row.file_shape(shapes[row.path], layout)) for name, row in rows.items()}
    counts = {name for name in recorded[reference] if name.endswith("num_batches_tracked")}
    assert table.ignored(layout) == counts
    assert written == {
        name: shape for name, shape in recorded[reference].items() if name not in counts
    }
    assert {row.path for row in rows.values()} == shapes.keys()


@pytest.mark.parametrize("model", TINY)
def test_round_trip_is_exact_in_every_layout(model):
    config = zoo.model_config(model, num_classes=3, **TINY[model])
    for layout in table_of(config).layouts:
        file = random_file(config, layout)
        params = fit(match(file, config))
        written = to_torch(params, config, layout)
        assert written.keys() == file.tensors.keys()
        for name, value in file.tensors.items():
            np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_running_statistics_end_up_under_their_own_entry():
    config = zoo.model_config("resnet50", **TINY["resnet50"])
    file = random_file(config, "torchvision")
    flat = parameters.flatten(fit(match(file, config)))
    for name, path in {
        "bn1.running_mean": "batch_stats/stem/norm/mean",
        "layer2.1.bn3.running_var": "batch_stats/stage1/block1/conv3/norm/var",
        "layer2.0.downsample.1.running_mean": "batch_stats/stage1/block0/downsample/norm/mean",
        "layer2.0.downsample.1.bias": "stage1/block0/downsample/norm/bias",
    }.items():
        np.testing.assert_array_equal(flat[path], file.tensors[name])


def test_counts_of_batches_are_the_only_entries_ignored():
    config = zoo.model_config("regnety_160", **TINY["regnety_160"])
    tensors = random_file(config, "timm").tensors
    counts = {name: np.zeros((), np.int64) for name in table_of(config).ignored("timm")}
    assert len(counts) == 12
    fit(match(WeightFile(tensors | counts, "a file"), config))
    extra = {"s1.b1.conv9.bn.num_batches_tracked": np.zeros((), np.int64)}
    with pytest.raises(ValueError, match=r"1 unknown: s1\.b1\.conv9\.bn\.num_batches_tracked"):
        fit(match(WeightFile(tensors | extra, "a file"), config))
    del tensors["s2.b1.conv1.bn.running_var"]
    with pytest.raises(ValueError, match=r"1 missing: s2\.b1\.conv1\.bn\.running_var"):
        fit(match(WeightFile(tensors, "a file"), config))


def test_a_file_of_the_teacher_is_recognised(recorded):
    for reference in ("regnety_160", None):
        tensors = {
            name: np.broadcast_to(np.float32(0), shape)
            for name, shape in recorded[reference].items()
        }
        assert fitting_models(WeightFile(tensors, "a file")) == [["regnety_160"]]
