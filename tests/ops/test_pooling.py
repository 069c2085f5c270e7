"""Every lowering of the pooling is the convolution that PyTorch computes."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pit_jax import sharding
from pit_jax.ops import lowerings, pooling


def torch_pool(maps: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    pooled = torch.nn.functional.conv2d(
        torch.from_numpy(maps.transpose(0, 3, 1, 2)).double(),
        torch.from_numpy(kernel.transpose(3, 2, 0, 1)).double(),
        torch.from_numpy(bias).double(),
        stride=2,
        padding=1,
        groups=maps.shape[-1],
    )
    return pooled.numpy().transpose(0, 2, 3, 1)


@functools.cache
def example(height: int, width: int, multiplier: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, height, width, 5)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 1, 5 * multiplier)).astype(np.float32)
    bias = rng.standard_normal(5 * multiplier).astype(np.float32)
    return maps, kernel, bias


@pytest.mark.parametrize("lowering", [None, *pooling.LOWERINGS])
@pytest.mark.parametrize(
    ("height", "width", "multiplier"), [(7, 7, 2), (8, 8, 2), (6, 9, 3), (1, 2, 1)]
)
def test_equals_torch(lowering: str | None, height: int, width: int, multiplier: int):
    maps, kernel, bias = example(height, width, multiplier)
    pool = lowerings.override(pooling=lowering)(pooling.depthwise_pool)
    found = jax.jit(pool)(maps, kernel, bias)
    assert found.shape[1:3] == (pooling.pooled_size(height), pooling.pooled_size(width))
    np.testing.assert_allclose(found, torch_pool(maps, kernel, bias), rtol=0, atol=2e-6)


@pytest.mark.parametrize("lowering", ["dense", "shifted"])
def test_gradients_equal_the_definition(lowering: str):
    inputs = example(8, 7, 2)
    weights = jnp.cos(jnp.arange(2 * 4 * 4 * 10.0)).reshape(2, 4, 4, 10)

    def gradients(name: str) -> tuple[jax.Array, ...]:
        def loss(*arguments: jax.Array) -> jax.Array:
            return (pooling.LOWERINGS[name](*arguments) * weights).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)

    for found, expected in zip(gradients(lowering), gradients("grouped"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_devices_exchange_no_gradient_of_zeros():
    """Devices sum only those entries of the dense kernel (3, 3, 16, 32) that can be nonzero."""
    mesh = sharding.make_mesh()
    rng = np.random.default_rng(0)
    shapes = (8, 6, 6, 16), (3, 3, 1, 32), (32,)
    maps, kernel, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    whole = sharding.replicated(mesh)
    placed = (
        jax.device_put(maps, sharding.batch_sharding(mesh)),
        *jax.device_put((kernel, bias), whole),
    )

    def gradients(lowering: str, *inputs: jax.Array) -> Any:
        def loss(*inputs: jax.Array) -> jax.Array:
            pooled = pooling.LOWERINGS[lowering](*inputs)
            return (pooled * jnp.cos(jnp.arange(32.0)).reshape(1, 1, 1, 32)).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(*inputs)

    program = jax.jit(gradients, static_argnums=0).lower("dense", *placed).compile()
    for found, expected in zip(
        program(*placed), gradients("grouped", maps, kernel, bias), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    reduced = re.findall(r"= (\(?\w+\[.*?) all-reduce", program.as_text())
    sizes = [
        math.prod(map(int, shape.split(",")))
        for line in reduced
        for shape in re.findall(r"\[([\d,]+)\]", line)
    ]
    assert sizes
    assert max(sizes) == kernel.size


def test_no_grouped_convolution_on_cpu():
    maps, kernel, bias = example(8, 8, 2)

    def loss(*arguments: jax.Array) -> jax.Array:
        return pooling.depthwise_pool(*arguments).sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(maps, kernel, bias).compile().as_text()
    assert "convolution(" not in program


def test_bfloat16_accumulates_in_float32():
    maps, kernel, bias = (jnp.asarray(x, jnp.bfloat16) for x in example(8, 8, 2))
    exact = torch_pool(*(np.asarray(x, np.float32) for x in (maps, kernel, bias)))
    found = pooling.depthwise_pool(maps, kernel, bias)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, rtol=0.01, atol=0.02)
