"""The choice of lowerings: overrides, and platforms known while tracing."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import pit_jax
from pit_jax.ops import lowerings
from pit_jax.ops.pooling import depthwise_pool


def _groups(**override: str) -> bool:
    """Whether a pooling traced under `override` is a grouped convolution."""
    maps, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 4))

    def pool(maps: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise_pool(maps, kernel, jnp.zeros(4))

    with lowerings.override(**override):
        return "feature_group_count=2" in str(jax.make_jaxpr(pool)(maps, kernel))


def test_an_override_reaches_the_operation_and_ends_with_its_block() -> None:
    assert _groups(pooling="grouped")
    assert not _groups(pooling="dense")
    assert not _groups()


def test_inner_overrides_win_and_leave_the_rest() -> None:
    with lowerings.override(pooling="grouped", attention="plain"):
        with lowerings.override(pooling="dense"):
            assert lowerings.chosen("pooling") == "dense"
            assert lowerings.chosen("attention") == "plain"
        assert lowerings.chosen("pooling") == "grouped"
        with lowerings.override(pooling=None):
            assert lowerings.chosen("pooling") is None
            assert lowerings.chosen("attention") == "plain"
    assert lowerings.chosen("attention") is None


def test_an_override_ends_where_tracing_fails() -> None:
    with pytest.raises(ValueError, match=r"no lowering 'groupd'.*did you mean 'grouped'"):
        _groups(pooling="groupd")
    assert lowerings.chosen("pooling") is None


def test_an_unknown_operation_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="'poling'; did you mean 'pooling'"),
        lowerings.override(poling="dense"),
    ):
        pass


def _program(platform: str) -> jax.extend.core.ClosedJaxpr:
    """A program that returns x on TPUs and 2 x elsewhere."""

    @lowerings.compiling_for(platform)
    def choose(x: jax.Array) -> jax.Array:
        return lowerings.by_platform(x, default=lambda x: 2 * x, tpu=lambda x: x)

    return jax.make_jaxpr(choose)(1.0)


def test_a_platform_that_is_known_is_the_only_one_traced() -> None:
    for platform, factor in (("cpu", 2), ("tpu", 1)):
        program = _program(platform)
        assert "cond" not in str(program)
        assert jax.core.eval_jaxpr(program.jaxpr, program.consts, 3.0) == [3.0 * factor]
    for platform in ("gpu", "cuda", "other"):
        program = _program(platform)
        assert "cond" in str(program)
        assert jax.core.eval_jaxpr(program.jaxpr, program.consts, 3.0) == [6.0]


def test_a_model_s_tpu_program_is_the_same_whether_it_is_said_or_found_out() -> None:
    model = pit_jax.create_model(
        "pit_ti", image_size=16, num_classes=3, patch_size=4, stride=4, widths=(64, 128),
        depths=(1, 1), heads=(2, 4), dtype="bfloat16",
    )  # fmt: skip
    images = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.bfloat16)

    def kernels(platform: str) -> int:
        def step(images: jax.Array) -> jax.Array:
            return jax.grad(lambda images: model(images).sum())(images)

        traced = jax.jit(lowerings.compiling_for(platform)(step)).trace(images)
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")

    assert kernels("tpu") == kernels("unknown") > 0
    assert kernels("cpu") == 0


def test_the_library_forms_together_have_forward_mode_derivatives() -> None:
    model = pit_jax.create_model(
        "pit_ti", image_size=16, num_classes=3, patch_size=4, stride=4, widths=(16, 32),
        depths=(1, 1), heads=(1, 2),
    )  # fmt: skip
    images, step = jax.random.normal(jax.random.key(0), (2, 2, 16, 16, 3))
    forms = {"attention": "plain", "gelu": "xla", "layer_norm": "xla", "linear": "xla"}
    with lowerings.override(**forms, pooling="grouped"):
        _, forward = jax.jvp(model, (images,), (step,))
        _, transpose = jax.vjp(model, images)
        (backward,) = transpose(jnp.ones_like(forward))
    np.testing.assert_allclose(forward.sum(), (backward * step).sum(), rtol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(model, (images,), (step,))
