"""RegNetY, the teacher, equals timm's and torchvision's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pit_jax.models import parameters, zoo
from pit_jax.weights.load import to_torch

# Two small networks of the family, and their options in timm and torchvision.
TINY = {"widths": (16, 32, 64, 128), "depths": (1, 1, 2, 1), "group_width": 8, "num_classes": 5}
TIMM_TINY = {"w0": 16, "wa": 24.0, "wm": 2.0, "depth": 5, "group_size": 8, "se_ratio": 0.25}
TINIER = {"widths": (16, 32), "depths": (1, 2), "group_width": 8, "num_classes": 5}
TORCHVISION_TINIER = ([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25)

# Most of the time is compilation; this saves a third of it and keeps the arithmetic.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def apply(model, x: jax.Array, **options):
    # Weights are an argument: XLA would spend seconds folding constants.
    graphdef, params = parameters.split(model)
    return jit(lambda params, x: parameters.merge(graphdef, params)(x, **options))(params, x)


def test_teacher_equals_timm(timm, randomised, params_of, batch, assert_close):
    reference = randomised(timm.create_model("regnety_160"))
    config = zoo.model_config("regnety_160")
    model = parameters.merge(zoo.abstract(config)[0], params_of(reference, config))
    x, x_torch = batch(2, 64, 65, 3)
    logits = apply(model, x)
    with torch.no_grad():
        assert_close(logits, reference(x_torch))


def test_maps_and_batch_statistics_equal_timm(timm, randomised, params_of, batch, assert_close):
    from timm.models.regnet import RegNet, RegNetCfg

    reference = randomised(RegNet(RegNetCfg(**TIMM_TINY), num_classes=5))
    config = zoo.model_config("regnety_160", **TINY)
    graphdef, _ = zoo.abstract(config)
    params = params_of(reference, config)
    x, x_torch = batch(4, 96, 64, 3)
    logits, captured = apply(
        parameters.merge(graphdef, params), x, train=True, capture=("stages", "batch_statistics")
    )
    batch_statistics = {
        name: value for name, value in captured.items() if not name.endswith("/map")
    }
    trained, statistics = parameters.separate(params)
    statistics = parameters.update_statistics(statistics, batch_statistics)
    maps = []
    for stage in (reference.s1, reference.s2, reference.s3, reference.s4):
        stage.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        assert_close(logits, reference.train()(x_torch))
    for index, expected in enumerate(maps):
        assert_close(captured[f"stage{index}/map"], expected.permute(0, 2, 3, 1))
    for name, value in to_torch(parameters.join(trained, statistics), config, "timm").items():
        assert_close(value, reference.state_dict()[name])


def test_torchvision_is_the_same_network(timm, randomised, params_of, batch, assert_close):
    from torchvision.models.regnet import BlockParams, RegNet

    reference = randomised(RegNet(BlockParams(*TORCHVISION_TINIER), num_classes=5))
    config = zoo.model_config("regnety_160", **TINIER)
    params = params_of(reference, config)
    x, x_torch = batch(2, 64, 64, 3)
    with torch.no_grad():
        expected = reference(x_torch)
        assert_close(apply(parameters.merge(zoo.abstract(config)[0], params), x), expected)
    # And back: torch loads the file, although counts of batches are not written.
    written = to_torch(params, config, "torchvision")
    again = RegNet(BlockParams(*TORCHVISION_TINIER), num_classes=5).eval()
    again.load_state_dict({name: torch.tensor(v) for name, v in written.items()}, strict=True)
    with torch.no_grad():
        np.testing.assert_array_equal(again(x_torch), expected)


def test_squeezed_widths_follow_the_input_of_the_block():
    params = parameters.flatten(zoo.abstract(zoo.model_config("regnety_160"))[1])
    squeezed = {
        name.removesuffix("/se/fc1/bias"): value.shape[0]
        for name, value in params.items()
        if name.endswith("se/fc1/bias")
    }
    expected = {"stage0/block0": 8, "stage0/block1": 56, "stage1/block0": 56}
    expected |= {f"stage1/block{block}": 112 for block in (1, 2, 3)}
    expected |= {"stage2/block0": 112, "stage3/block0": 308}
    expected |= {f"stage2/block{block}": 308 for block in range(1, 11)}
    assert squeezed == expected


def test_initial_values_are_those_of_timm():
    config = zoo.model_config("regnety_160", **TINY)
    flat = parameters.flatten(parameters.split(zoo.build(config))[1])
    for name, value in flat.items():
        if name.endswith("norm/scale"):
            assert (value == (0 if "conv3" in name else 1)).all(), name
        elif name.endswith("bias"):
            assert not value.any(), name
    grouped = flat["stage3/block0/conv2/conv/kernel"]
    assert grouped.shape == (3, 3, 8, 128)
    np.testing.assert_allclose(grouped.std(), (2 / (9 * 8)) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(flat["head/kernel"].std(), 0.01, rtol=0.1)


def test_evaluation_in_bfloat16_is_close():
    config = zoo.model_config("regnety_160", **TINY)
    _, params = parameters.split(zoo.build(config))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 64, 3)), jnp.float32)
    exact, rough = (
        apply(parameters.merge(zoo.abstract(config, dtype=dtype)[0], params), x)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 2)}, "one entry per stage, found 4 and 2 entries"),
        ({"group_width": 5}, "a width of 224 does not divide into groups of 5"),
        ({"se_ratio": 0.0}, r"se_ratio must be in \(0, 1\], found 0.0"),
        ({"stem_width": 0}, "stem_width must be at least 1, found 0"),
    ],
)
def test_wrong_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.model_config("regnety_160", **options)
