"""Attention image by image is the plain one, on one device and on several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.models.attention import attention_weights, weighted_values
from pit_jax.models.attention_cpu import attention_by_image


def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return weighted_values(attention_weights(query, key), value)


@functools.cache
def example(dtype: str) -> tuple[jax.Array, ...]:
    """Queries, keys and values (8, 11, 3, 16), large enough for a softmax far from uniform."""
    drawn = np.random.default_rng(0).standard_normal((3, 8, 11, 3, 16))
    return tuple(jnp.asarray(1.5 * part, dtype) for part in drawn)


def both_ways(attention, operands: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    def run(*operands: jax.Array) -> tuple[jax.Array, ...]:
        mixed, transpose = jax.vjp(attention, *operands)
        return (mixed, *transpose(jnp.cos(mixed)))

    return jax.jit(run)(*operands)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_values_and_gradients_equal_the_plain_ones(dtype: str, tolerance: float) -> None:
    operands = example(dtype)
    exact = both_ways(plain, tuple(operand.astype(jnp.float32) for operand in operands))
    for found, expected in zip(both_ways(attention_by_image, operands), exact, strict=True):
        assert found.dtype == dtype
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(
            found.astype(jnp.float32), expected, rtol=0, atol=tolerance * scale
        )


def test_every_device_works_on_its_own_images() -> None:
    operands = example("float32")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    split = jax.device_put(operands, rows)
    compiled = jax.jit(attention_by_image, out_shardings=rows).lower(*split).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(*split), plain(*operands), rtol=0, atol=1e-6)


def test_no_array_holds_the_logits_of_the_batch() -> None:
    def total(*operands: jax.Array) -> jax.Array:
        return attention_by_image(*operands).sum()

    program = jax.jit(jax.grad(total)).lower(*example("float32")).compile().as_text()
    assert "[3,11,11]" in program
    assert "[8,3,11,11]" not in program
