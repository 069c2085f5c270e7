"""Properties of the PiT module beyond equality with the official network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models import parameters, zoo
from pit_jax.models.stochastic import dropout, stochastic_depth

TINY = {
    "image_size": 24,
    "patch_size": 4,
    "stride": 4,
    "widths": (8, 16, 32),
    "depths": (1, 2, 1),
    "heads": (1, 2, 4),
    "num_classes": 5,
}


def build(name: str = "pit_ti", **overrides):
    return zoo.build(zoo.model_config(name, **{**TINY, **overrides}))


def apply(model, x: jax.Array, **options):
    return jax.jit(lambda x: model(x, **options))(x)


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def test_plain_and_distilled_outputs():
    x = images(2, 24, 24, 3)
    assert apply(build(), x).shape == (2, 5)
    distilled = build("pit_ti_distilled")
    class_logits, distillation_logits = apply(distilled, x, train=True)
    np.testing.assert_allclose(
        apply(distilled, x), (class_logits + distillation_logits) / 2, rtol=1e-6
    )
    assert not np.allclose(class_logits, distillation_logits)


def test_no_classes_gives_the_normalised_class_token():
    x = images(2, 24, 24, 3)
    model = build(num_classes=0)
    pooled, captured = apply(model, x, capture=("pre_logits",))
    assert pooled.shape == (2, 32)
    np.testing.assert_array_equal(pooled, captured["pre_logits"][:, 0])
    assert not any("head" in name for name in parameters.flatten(parameters.split(model)[1]))


def test_captures_have_their_documented_shapes():
    logits, captured = apply(
        build("pit_ti_distilled"),
        images(2, 24, 24, 3),
        capture=("embedding", "blocks", "attention", "stages", "pre_logits"),
    )
    shapes = {name: value.shape for name, value in captured.items()}
    assert logits.shape == (2, 5)
    assert shapes["embedding"] == (2, 6, 6, 8)
    assert shapes["stage0/map"] == (2, 6, 6, 8)
    assert shapes["stage1/map"] == (2, 3, 3, 16)
    assert shapes["stage2/map"] == (2, 2, 2, 32)
    assert shapes["stage2/tokens"] == (2, 2, 32)
    assert shapes["stage1/block1/attention"] == (2, 2, 11, 11)
    assert shapes["stage1/block1/tokens"] == (2, 11, 16)
    assert shapes["pre_logits"] == (2, 2, 32)
    np.testing.assert_allclose(captured["stage1/block1/attention"].sum(-1), 1.0, rtol=1e-5)


def test_captured_sequences_begin_with_their_class_tokens():
    model = build("pit_ti_distilled")
    _, captured = apply(model, images(2, 24, 24, 3), capture=("blocks", "attention", "stages"))
    tokens, maps = captured["stage1/tokens"], captured["stage1/map"]
    sequence = jnp.concatenate([tokens, maps.reshape(2, -1, 16)], axis=1)
    np.testing.assert_array_equal(captured["stage1/block1/tokens"], sequence)

    block = model.stage1.block1
    qkv = block.attention.qkv(block.norm1(captured["stage1/block0/tokens"]))
    query, key, _ = jnp.unstack(qkv.reshape(2, 11, 3, 2, 8), axis=2)
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) / math.sqrt(8)
    expected = jax.nn.softmax(logits)
    np.testing.assert_allclose(captured["stage1/block1/attention"], expected, rtol=1e-4)


def test_capture_does_not_change_the_logits_and_unknown_kinds_are_named():
    model, x = build(), images(1, 24, 24, 3)
    logits, captured = apply(model, x, capture=("attention",))
    np.testing.assert_allclose(logits, apply(model, x), rtol=1e-5, atol=1e-6)
    assert all(name.endswith("attention") for name in captured)
    with pytest.raises(ValueError, match=r"cannot capture 'atention'; did you mean 'attention'\?"):
        model(x, capture=("atention",))


def test_features_are_the_stage_maps_by_stride():
    model, x = build(image_size=(24, 32)), images(1, 24, 32, 3)
    _, captured = apply(model, x, capture=("stages",))
    maps = jax.jit(model.features)(x)
    assert list(maps) == [4, 8, 16]
    for index, (stride, channels, grid) in enumerate(model.feature_info):
        assert maps[stride].shape == (1, *grid, channels)
        np.testing.assert_allclose(
            maps[stride], captured[f"stage{index}/map"], rtol=1e-4, atol=1e-5
        )


def test_any_number_of_stages():
    one = build(widths=(8,), depths=(2,), heads=(2,))
    assert apply(one, images(1, 24, 24, 3)).shape == (1, 5)
    assert not any("pool" in name for name in parameters.flatten(parameters.split(one)[1]))
    four = build(widths=(4, 8, 16, 32), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    assert four.config.grids == ((6, 6), (3, 3), (2, 2), (1, 1))
    assert apply(four, images(1, 24, 24, 3)).shape == (1, 5)


def test_stochastic_depth_rates_are_the_official_ones():
    rates = zoo.model_config("pit_s", drop_path_rate=0.1).drop_path_rates
    np.testing.assert_allclose(rates, [0.1 * i / 12 for i in range(12)])
    assert zoo.model_config("pit_b", drop_path_rate=0.1).drop_path_rates[-1] == pytest.approx(
        0.1 * 12 / 13
    )


def test_training_randomness_follows_the_key():
    model, x = (
        build(drop_path_rate=0.5, dropout_rate=0.1, attention_dropout_rate=0.1),
        images(4, 24, 24, 3),
    )
    run = jax.jit(lambda seed: model(x, train=True, key=jax.random.key(seed)))
    np.testing.assert_array_equal(run(0), run(0))
    assert not np.allclose(run(0), run(1))
    np.testing.assert_array_equal(apply(model, x, key=jax.random.key(0)), apply(model, x))
    with pytest.raises(ValueError, match="needs key="):
        model(x, train=True)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 3, 2))
    kept = stochastic_depth(x, 0.25, jax.random.key(0))
    per_example = kept.reshape(4000, -1)
    assert set(np.unique(per_example)) <= {np.float32(0), np.float32(1 / 0.75)}
    assert (per_example.min(1) == per_example.max(1)).all()
    assert abs(float(kept.mean()) - 1) < 0.03
    dropped = dropout(x, 0.25, jax.random.key(0)).reshape(4000, -1)
    assert (dropped.min(1) != dropped.max(1)).any()


def test_bfloat16_keeps_float32_parameters_and_logits():
    config = zoo.model_config("pit_ti", **TINY)
    exact = zoo.build(config)
    half = zoo.build(config, dtype=jnp.bfloat16)
    x = images(2, 24, 24, 3)
    logits, expected = apply(half, x), apply(exact, x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters.split(half)[1])} == {
        jnp.dtype("float32")
    }
    scale = float(jnp.abs(expected).max())
    assert 0 < float(jnp.abs(logits - expected).max()) < 0.05 * scale


def test_initial_values_are_torchs_defaults():
    flat = parameters.flatten(parameters.split(zoo.build(zoo.model_config("pit_ti")))[1])
    bounds = {
        "embedding/conv/kernel": (3 * 16 * 16) ** -0.5,
        "stage1/block0/mlp/fc2/kernel": 512**-0.5,
        "stage1/block0/mlp/fc2/bias": 512**-0.5,
        "pool0/conv/kernel": 1 / 3,
        "pool1/fc/kernel": 128**-0.5,
        "head/bias": 256**-0.5,
    }
    for name, bound in bounds.items():
        values = np.asarray(flat[name])
        assert np.abs(values).max() <= bound * (1 + 1e-6)
        # The standard deviation of a uniform variable is its bound over sqrt(3).
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.15), name
    assert np.asarray(flat["embedding/position"]).std() == pytest.approx(0.02, rel=0.05)
    assert (np.asarray(flat["norm/scale"]) == 1).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (
            (1, 28, 24, 3),
            "float32",
            r"expected images of shape \(batch, 24, 24, 3\), found \(1, 28",
        ),
        ((1, 24, 24, 1), "float32", r"expected images of shape \(batch, 24, 24, 3\)"),
        ((1, 3, 24, 24), "float32", "channels-first"),
        ((24, 24, 3), "float32", r"found \(24, 24, 3\): add a batch axis, images\[None\];"),
        ((1, 24, 24, 3), "uint8", "found uint8"),
    ],
)
def test_wrong_images_are_refused(shape: tuple[int, ...], dtype: str, message: str):
    with pytest.raises(ValueError, match=message):
        build()(jnp.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": (1, 2)}, "one entry per stage"),
        ({"heads": (3, 2, 4)}, "does not divide into 3 heads"),
        ({"widths": (8, 12, 24)}, "multiples of the last: 8, then 12"),
        ({"image_size": 3}, "smaller than patch_size"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"patch": 4}, "has no option 'patch'; did you mean"),
    ],
)
def test_wrong_configurations_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        zoo.model_config("pit_ti", **{**TINY, **options})


def test_merge_is_the_inverse_of_split():
    model, x = build(), images(1, 24, 24, 3)
    graphdef, params = parameters.split(model)
    again = parameters.merge(graphdef, parameters.unflatten(parameters.flatten(params)))
    np.testing.assert_array_equal(apply(again, x), apply(model, x))
