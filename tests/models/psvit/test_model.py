"""PSViT's own rules: what is shared and what is not, captures, features, training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models import parameters, zoo
from pit_jax.models.psvit.config import PSViTConfig
from pit_jax.models.psvit.model import PSViT
from pit_jax.ops import lowerings

ONE = PSViTConfig(
    pooling="1d",
    patch_size=8,
    stage_widths=(8, 16),
    heads=(2, 2),
    cells="31|2",
    image_size=(24, 32),
    num_classes=5,
)
TWO = dataclasses.replace(ONE, pooling="2d")
EVERYTHING = ("embedding", "blocks", "attention", "stages", "pre_logits")


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(7), (2, 24, 32, 3))


def sharpened(config: PSViTConfig, seed: int = 0) -> parameters.Params:
    """Parameters whose attention maps are far from uniform."""
    _, params = parameters.split(zoo.build(config, seed=seed))
    flat = parameters.flatten(params)
    return parameters.unflatten(
        {path: 20 * v if path.endswith("kernel") else v for path, v in flat.items()}
    )


def run(config: PSViTConfig, params: parameters.Params, images: Any, **options: Any) -> Any:
    graphdef, _ = zoo.abstract(config)
    return parameters.merge(graphdef, params)(images, **options)


def test_a_layer_that_reuses_a_map_has_values_alone() -> None:
    flat = parameters.flatten(zoo.abstract(ONE)[1])
    kinds = {
        path.split("/attention/")[0]: path.split("/")[-2]
        for path in flat
        if "/attention/" in path and "proj" not in path
    }
    assert kinds == {
        "stage0/block0": "qkv",
        "stage0/block1": "value",
        "stage0/block2": "value",
        "stage0/block3": "qkv",
        "stage1/block0": "qkv",
        "stage1/block1": "value",
    }
    assert flat["stage0/block1/attention/value/kernel"].shape == (8, 8)


@pytest.mark.parametrize("config", [ONE, TWO])
def test_maps_are_shared_in_their_group_and_named_so(config: PSViTConfig, images: Any) -> None:
    _, captured = run(config, sharpened(config), images, capture=("attention",))
    names = {name.removesuffix("attention") for name in captured}
    assert sorted(captured) == sorted(
        {
            "stage0/block0/attention",
            "stage0/block1/shared_attention",
            "stage0/block2/shared_attention",
            "stage0/block3/attention",
            "stage1/block0/attention",
            "stage1/block1/shared_attention",
        }
    )
    assert len(names) == 6
    first = captured["stage0/block0/attention"]
    assert first.shape == (2, 2, config.tokens[0], config.tokens[0])
    for block in (1, 2):
        np.testing.assert_array_equal(captured[f"stage0/block{block}/shared_attention"], first)
    # Neither the next group nor the next stage has this map.
    assert np.abs(captured["stage0/block3/attention"] - first).max() > 0.1
    assert captured["stage1/block0/attention"].shape[-1] == config.tokens[1]


def test_a_group_is_independent_layers_with_the_first_ones_queries_and_keys(images: Any) -> None:
    """Where every layer's input is the same, layers of their own make the same map of it."""
    config = dataclasses.replace(ONE, stage_widths=(8,), heads=(2,), cells="2")
    apart = dataclasses.replace(config, cells="11")
    flat = parameters.flatten(sharpened(config))
    # The first layer adds nothing, and the second has its norm, so that both read the same.
    for name in ("attention/proj", "mlp/fc2"):
        for kind in ("kernel", "bias"):
            path = f"stage0/block0/{name}/{kind}"
            flat[path] = jnp.zeros_like(flat[path])
    tied = dict(flat)
    for kind in ("kernel", "bias"):
        value = tied.pop(f"stage0/block1/attention/value/{kind}")
        qkv = flat[f"stage0/block0/attention/qkv/{kind}"]
        tied[f"stage0/block1/attention/qkv/{kind}"] = jnp.concatenate(
            [qkv[..., :16], value], axis=-1
        )
    shared = run(config, parameters.unflatten(flat), images)
    separate = run(apart, _ordered(apart, tied), images)
    np.testing.assert_allclose(shared, separate, rtol=1e-5, atol=1e-5)


def _ordered(config: PSViTConfig, flat: dict[str, Any]) -> parameters.Params:
    paths = parameters.flatten(zoo.abstract(config)[1])
    return parameters.unflatten({path: flat[path] for path in paths})


@pytest.mark.parametrize("config", [ONE, TWO])
def test_both_lowerings_give_one_network_and_one_gradient(config: PSViTConfig, images: Any) -> None:
    params = sharpened(config)

    def results(name: str) -> Any:
        def loss(params: parameters.Params) -> Any:
            with lowerings.override(shared_attention=name):
                logits, captured = run(config, params, images, capture=("stages",))
            return jnp.square(logits).mean(), (logits, captured)

        (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return outputs, gradients

    def compare(one: jax.Array, other: jax.Array) -> None:
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale + 1e-9)

    jax.tree.map(compare, results("map"), results("qk"))


def test_gradients_reach_the_map_from_every_layer_of_its_group(images: Any) -> None:
    """The first layer's own use of its map is cut off; queries and keys still learn."""
    config = dataclasses.replace(ONE, stage_widths=(8,), heads=(2,), cells="2")
    flat = parameters.flatten(sharpened(config))
    path = "stage0/block0/attention/proj/kernel"
    flat[path] = jnp.zeros_like(flat[path])

    def loss(params: parameters.Params) -> jax.Array:
        return jnp.square(run(config, params, images)).mean()

    gradients = parameters.flatten(jax.grad(loss)(parameters.unflatten(flat)))
    queries = gradients["stage0/block0/attention/qkv/kernel"][:, :8]
    values = gradients["stage0/block0/attention/qkv/kernel"][:, 16:]
    assert np.abs(queries).max() > 1e-6
    np.testing.assert_array_equal(values, np.zeros_like(values))


@pytest.mark.parametrize("config", [ONE, TWO])
def test_captures_have_the_shapes_that_are_documented(config: PSViTConfig, images: Any) -> None:
    model = zoo.build(config)
    logits, captured = model(images, capture=EVERYTHING)
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    assert captured["embedding"].shape == (2, 3, 4, 8)
    assert captured["stage0/block3/tokens"].shape == (2, config.tokens[0], 8)
    np.testing.assert_array_equal(captured["stage0/tokens"], captured["stage0/block3/tokens"])
    assert captured["stage1/tokens"].shape == (2, config.tokens[1], 16)
    assert captured["pre_logits"].shape == (2, 16)
    headless = zoo.build(dataclasses.replace(config, num_classes=0))
    np.testing.assert_allclose(headless(images), captured["pre_logits"], atol=1e-6)
    with pytest.raises(ValueError, match="cannot capture 'stage'; did you mean 'stages'"):
        model(images, capture=("stage",))


def test_features_are_maps_and_1d_models_have_one(images: Any) -> None:
    for config, strides in ((ONE, [8]), (TWO, [8, 16])):
        model = zoo.build(config)
        assert isinstance(model, PSViT)
        maps = model.features(images)
        assert list(maps) == strides
        _, captured = model(images, capture=("stages",))
        for stage, (stride, info) in enumerate(zip(maps, model.feature_info, strict=True)):
            assert maps[stride].shape == (2, *info.grid, info.channels)
            assert info.stride == stride
            patches = captured[f"stage{stage}/tokens"][:, config.class_tokens :]
            np.testing.assert_array_equal(maps[stride].reshape(patches.shape), patches)


def test_training_drops_branches_by_a_key(images: Any) -> None:
    config = dataclasses.replace(ONE, drop_path_rate=0.5)
    params = sharpened(config)
    with pytest.raises(ValueError, match=r"needs key=jax\.random\.key"):
        run(config, params, images, train=True)
    calls = [run(config, params, images, train=True, key=jax.random.key(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(calls[0], calls[1])
    assert np.abs(calls[0] - calls[2]).max() > 1e-6
    still = run(config, params, images)
    np.testing.assert_array_equal(still, run(ONE, params, images))


def test_statistics_of_the_batch_are_captured_in_training_alone(images: Any) -> None:
    config = dataclasses.replace(ONE, pool_norm="batch")
    model = zoo.build(config)
    with pytest.raises(ValueError, match="captured with train=True only"):
        model(images, capture=("batch_statistics",))
    _, captured = model(images, train=True, capture=("batch_statistics",))
    assert {name: value.shape for name, value in captured.items()} == {
        "pool0/norm/mean": (16,),
        "pool0/norm/var": (16,),
    }


def test_arithmetic_in_bfloat16_stays_near(images: Any) -> None:
    for config in (ONE, TWO):
        graphdef, params = parameters.split(zoo.build(config, dtype=jnp.bfloat16))
        logits = parameters.merge(graphdef, params)(images)
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, run(config, params, images), atol=0.02)


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 24, 32, 3\)"):
        zoo.build(ONE)(jnp.zeros((1, 32, 24, 3)))
