"""One attention map for several layers: both lowerings, their gradients, the choice."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.ops import lowerings, shared_attention
from pit_jax.ops.attention import plain_attention
from pit_jax.ops.shared_attention import KeptMap, KeptQueries, share

LAYERS = 3


def operands(tokens: int = 17, dtype: jnp.dtype = jnp.float32) -> Iterator[jax.Array]:
    """Queries, keys, and the values of every layer, (B, N, H, D) each."""
    keys = jax.random.split(jax.random.key(0), 2 + LAYERS)
    return (jax.random.normal(key, (2, tokens, 3, 8), dtype) for key in keys)


def attend(query: jax.Array, key: jax.Array, *values: jax.Array) -> list[jax.Array]:
    shared = share(query, key)
    return [shared.attend(value) for value in values]


@pytest.mark.parametrize("name", shared_attention.LOWERINGS)
def test_every_layer_attends_with_the_one_map(name: str) -> None:
    query, key, *values = operands()
    with lowerings.override(shared_attention=name):
        found = attend(query, key, *values)
    for value, mixed in zip(values, found, strict=True):
        np.testing.assert_allclose(mixed, plain_attention(query, key, value), atol=1e-6)


def test_both_lowerings_have_the_same_gradients_summed_over_the_layers() -> None:
    arrays = tuple(operands(tokens=200))
    weights = [jax.random.normal(jax.random.key(9 + i), arrays[0].shape) for i in range(LAYERS)]

    def gradients(name: str) -> tuple[jax.Array, ...]:
        def total(*arrays: jax.Array) -> jax.Array:
            with lowerings.override(shared_attention=name):
                mixed = attend(*arrays)
            return sum((w * m).sum() for w, m in zip(weights, mixed, strict=True))

        return jax.grad(total, argnums=tuple(range(len(arrays))))(*arrays)

    def of_each_layer(query: jax.Array, key: jax.Array, *values: jax.Array) -> jax.Array:
        mixed = [plain_attention(query, key, value) for value in values]
        return sum((w * m).sum() for w, m in zip(weights, mixed, strict=True))

    kept, again = gradients("map"), gradients("qk")
    expected = jax.grad(of_each_layer, argnums=tuple(range(len(arrays))))(*arrays)
    for one, other, value in zip(kept, again, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one, value, atol=1e-5)


@pytest.mark.parametrize("name", shared_attention.LOWERINGS)
def test_the_map_is_there_to_be_looked_at(name: str) -> None:
    query, key, *_ = operands(dtype=jnp.bfloat16)
    with lowerings.override(shared_attention=name):
        weights = share(query, key).weights
    assert (weights.dtype, weights.shape) == (jnp.float32, (2, 3, 17, 17))
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 3, 17)), atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "tokens", "kept"),
    [
        ("cpu", 197, KeptMap),
        ("tpu", 197, KeptQueries),
        ("tpu", 785, KeptQueries),
        # GPUs, and platforms that are not known while tracing.
        (None, 99, KeptMap),
        (None, 197, KeptQueries),
        (None, 785, KeptQueries),
    ],
)
def test_what_is_kept_follows_platform_and_length(
    platform: str | None, tokens: int, kept: type
) -> None:
    query = jnp.zeros((8, tokens, 3, 64), jnp.bfloat16)
    with lowerings.compiling_for(platform or "gpu"):
        assert isinstance(share(query, query), kept)


def test_no_map_is_written_where_queries_and_keys_are_kept_for_a_tpu() -> None:
    """At 785 tokens neither the forward pass nor the gradient has an array of N x N."""
    query = jax.ShapeDtypeStruct((8, 785, 3, 64), jnp.bfloat16)

    def total(*arrays: jax.Array) -> jax.Array:
        return sum(mixed.astype(jnp.float32).sum() for mixed in attend(*arrays))

    with lowerings.compiling_for("tpu"):
        traced = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(*[query] * 4)
    outputs = [
        variable.aval.shape for equation in traced.jaxpr.eqns for variable in equation.outvars
    ]
    assert not [shape for shape in outputs if shape.count(785) > 1]


def test_an_unknown_lowering_is_corrected() -> None:
    query, key, *_ = operands()
    with (
        lowerings.override(shared_attention="maps"),
        pytest.raises(ValueError, match="shared_attention has no lowering 'maps'; did you mean"),
    ):
        share(query, key)
