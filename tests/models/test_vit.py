"""ViT and DeiT: equality with timm's, and further properties of the module."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pit_jax.models import parameters, zoo
from pit_jax.weights.load import to_torch
from pit_jax.weights.verify import import_timm

TINY = {"width": 32, "heads": 4, "depth": 2, "patch_size": 8, "image_size": 32, "num_classes": 7}
TIMM_TINY = {
    "embed_dim": 32,
    "num_heads": 4,
    "depth": 2,
    "patch_size": 8,
    "img_size": 32,
    "num_classes": 7,
}


def tiny(name: str = "vit_ti", **overrides):
    return zoo.model_config(name, **{**TINY, **overrides})


def build(name: str = "vit_ti", **overrides):
    return zoo.build(tiny(name, **overrides))


# Most of the time is compilation; this saves a third of it and keeps the arithmetic.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def apply(model, x: jax.Array, **options):
    # Weights are an argument: XLA would spend seconds folding constants.
    graphdef, params = parameters.split(model)
    return jit(lambda params, x: parameters.merge(graphdef, params)(x, **options))(params, x)


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def timm_tiny(*, distilled: bool):
    import_timm()
    from timm.models import deit, vision_transformer

    if distilled:
        return deit.VisionTransformerDistilled(**TIMM_TINY)
    return vision_transformer.VisionTransformer(**TIMM_TINY)


def test_logits_equal_timm(timm, randomised, params_of, batch, assert_close):
    reference = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64)
    reference = randomised(reference)
    config = zoo.model_config("deit_ti_distilled", image_size=64)
    x, x_torch = batch(2, 64, 64, 3)
    model = parameters.merge(zoo.abstract(config)[0], params_of(reference, config))
    with torch.no_grad():
        assert_close(apply(model, x), reference(x_torch))


@pytest.mark.parametrize("distilled", [False, True])
def test_maps_and_gradients_equal_timm(distilled, randomised, params_of, batch, assert_close):
    reference = randomised(timm_tiny(distilled=distilled))
    config = tiny("deit_ti_distilled" if distilled else "deit_ti")
    params = params_of(reference, config)
    x, x_torch = batch(3, 32, 32, 3)
    graphdef, _ = zoo.abstract(config)

    def loss(params):
        model = parameters.merge(graphdef, params)
        outputs = model(x, train=True)
        pair = outputs if distilled else (outputs,)
        return sum((out[:, 2] * (1 + place)).sum() for place, out in enumerate(pair)), outputs

    (_, outputs), gradients = jit(jax.value_and_grad(loss, has_aux=True))(params)
    if distilled:
        reference.set_distilled_training(True)
        reference.train()
    expected = reference(x_torch)
    pair = expected if distilled else (expected,)
    sum((out[:, 2] * (1 + place)).sum() for place, out in enumerate(pair)).backward()
    jax.tree.map(
        assert_close,
        outputs,
        tuple(out.detach() for out in expected) if distilled else expected.detach(),
    )
    for name, gradient in to_torch(gradients, config, "timm").items():
        assert_close(gradient, reference.get_parameter(name).grad, 1e-4)

    last = reference.forward_intermediates(x_torch, indices=1, norm=False, intermediates_only=True)[
        0
    ]
    maps = parameters.merge(graphdef, params).features(x)
    assert list(maps) == [8]
    assert_close(maps[8], last.detach().permute(0, 2, 3, 1))


def test_plain_and_distilled_outputs():
    x = images(2, 32, 32, 3)
    assert apply(build(), x).shape == (2, 7)
    distilled = build("deit_ti_distilled")
    class_logits, distillation_logits = apply(distilled, x, train=True)
    np.testing.assert_allclose(
        apply(distilled, x), (class_logits + distillation_logits) / 2, rtol=1e-5, atol=1e-6
    )
    assert not np.allclose(class_logits, distillation_logits)


def test_no_classes_gives_the_normalised_class_token():
    model = build("deit_ti_distilled", num_classes=0)
    (pooled, other), captured = apply(
        model, images(2, 32, 32, 3), train=True, capture=("pre_logits",)
    )
    np.testing.assert_array_equal(pooled, captured["pre_logits"][:, 0])
    np.testing.assert_array_equal(other, captured["pre_logits"][:, 1])
    assert not any("head" in name for name in parameters.flatten(parameters.split(model)[1]))


def test_captures_have_their_documented_shapes():
    logits, captured = apply(
        build("deit_ti_distilled"),
        images(2, 32, 32, 3),
        capture=("embedding", "blocks", "attention", "pre_logits"),
    )
    shapes = {name: value.shape for name, value in captured.items()}
    assert logits.shape == (2, 7)
    assert shapes["embedding"] == (2, 4, 4, 32)
    assert shapes["block1/tokens"] == (2, 18, 32)
    assert shapes["block1/attention"] == (2, 4, 18, 18)
    assert shapes["pre_logits"] == (2, 2, 32)
    assert len(shapes) == 6
    np.testing.assert_allclose(captured["block1/attention"].sum(-1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match=r"cannot capture 'stages'.*there are embedding, blocks"):
        build()(images(2, 32, 32, 3), capture="stages")


def test_images_need_not_be_square_or_whole_patches():
    model = build(image_size=(24, 43))
    (info,) = model.feature_info
    assert (info.stride, info.channels, info.grid) == (8, 32, (3, 5))
    maps = jit(model.features)(images(2, 24, 43, 3))
    assert {stride: value.shape for stride, value in maps.items()} == {8: (2, 3, 5, 32)}
    with pytest.raises(ValueError, match=r"\(batch, 24, 43, 3\), found \(2, 24, 40, 3\)"):
        model(images(2, 24, 40, 3))


def test_stochastic_depth_rates_are_those_of_deit():
    config = zoo.model_config("deit_s", drop_path_rate=0.1)
    np.testing.assert_allclose(
        config.drop_path_rates, torch.linspace(0, 0.1, 12).tolist(), atol=1e-7
    )
    model = zoo.build(tiny(drop_path_rate=0.4, depth=3))
    drops = [getattr(model, f"block{index}").drop for index in range(3)]
    assert [drop.path for drop in drops] == [0.0, 0.2, 0.4]


@pytest.mark.parametrize("rate", ["dropout_rate", "attention_dropout_rate", "drop_path_rate"])
def test_training_randomness_follows_the_key(rate):
    model, x = build(**{rate: 0.5}), images(4, 32, 32, 3)
    run = jit(lambda x, key: model(x, train=True, key=key))
    one, again, other = (run(x, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    with pytest.raises(ValueError, match="needs key="):
        model(x, train=True)


def test_bfloat16_keeps_float32_parameters_and_logits():
    x = images(2, 32, 32, 3)
    model = zoo.build(tiny("deit_ti_distilled"), dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(parameters.split(model)[1])
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    logits, captured = apply(model, x, capture=("blocks",))
    assert logits.dtype == jnp.float32
    assert {value.dtype for value in captured.values()} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(logits, apply(build("deit_ti_distilled"), x), atol=0.03)


def test_initial_values_are_those_of_deit():
    _, params = parameters.split(zoo.build(zoo.model_config("deit_ti_distilled", depth=2)))
    flat = {name: np.asarray(value) for name, value in parameters.flatten(params).items()}
    bound = (3 * 16 * 16) ** -0.5  # PyTorch's default for the one convolution
    assert 0.99 * bound < np.abs(flat["embedding/conv/kernel"]).max() <= bound
    for name, value in flat.items():
        if name.startswith("embedding"):
            continue
        if name.endswith("bias"):
            assert not value.any(), name
        elif name.endswith("scale"):
            assert (value == 1).all(), name
        else:
            np.testing.assert_allclose(value.std(), 0.02, rtol=0.15, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "a width of 30 does not divide into 4 heads"),
        ({"depth": 0}, "depth must be at least 1, found 0"),
        ({"image_size": (8, 7)}, r"image_size \(8, 7\) is smaller than patch_size 8"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), found 1.0"),
        ({"num_classes": -1}, "num_classes must be at least 0, found -1"),
    ],
)
def test_wrong_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)
