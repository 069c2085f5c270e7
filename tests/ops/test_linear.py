"""Both lowerings of linear layers are x @ kernel + bias, with the gradients of that function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.ops import linear, lowerings

NAMES = [None, *sorted(linear.LOWERINGS)]


def arrays(dtype: str, leading: tuple[int, ...] = (3, 50)) -> tuple[jax.Array, ...]:
    """Input (..., 6), kernel (6, 10), bias (10,), and the gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((*leading, 6), (6, 10), (10,), (*leading, 10))
    return tuple(
        jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)
    )


def truth(*operands: jax.Array) -> tuple[np.ndarray, ...]:
    """Value and gradients of input, kernel and bias, in double precision."""
    x, kernel, bias, gradient = (np.asarray(array.astype(jnp.float32), float) for array in operands)
    rows, outputs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return x @ kernel + bias, gradient @ kernel.T, rows.T @ outputs, outputs.sum(0)


@pytest.mark.parametrize("leading", [(), (4,), (3, 50)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_values_and_gradients(
    dtype: str, tolerance: float, name: str | None, leading: tuple[int, ...]
) -> None:
    *inputs, gradient = operands = arrays(dtype, leading)
    function = jax.jit(lowerings.override(linear=name)(linear.linear))
    value, transpose = jax.vjp(function, *inputs)
    for found, expected in zip((value, *transpose(gradient)), truth(*operands), strict=True):
        assert found.dtype == jnp.dtype(dtype)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(
            np.asarray(found, float), expected, atol=tolerance * largest, rtol=0
        )


def test_the_gradient_of_a_bias_is_a_product() -> None:
    def sums_tokens(
        platform: str, lowering: str | None, tokens: int = 128, *, behind_kernel: bool = False
    ) -> bool:
        x, kernel, bias, gradient = arrays("float32", (3, tokens))

        def to_bias(bias: jax.Array) -> jax.Array:
            _, transpose = jax.vjp(
                lambda bias: linear.linear(x, kernel, bias, behind_kernel=behind_kernel), bias
            )
            return transpose(gradient)[0]

        traced = jax.jit(lowerings.override(linear=lowering)(to_bias)).trace(bias)
        return "dimensions = [0, 1]" in traced.lower(lowering_platforms=(platform,)).as_text()

    assert not sums_tokens("tpu", None)
    assert sums_tokens("tpu", None, tokens=127)
    assert sums_tokens("tpu", None, tokens=512)
    assert not sums_tokens("tpu", None, tokens=512, behind_kernel=True)
    assert sums_tokens("tpu", None, tokens=127, behind_kernel=True)
    assert sums_tokens("cpu", None, tokens=512, behind_kernel=True)
    assert not sums_tokens("cpu", "products")
    assert sums_tokens("cpu", None)
    assert sums_tokens("cuda", None)
    assert sums_tokens("tpu", "xla")


def test_forward_mode_derivatives() -> None:
    *inputs, _ = arrays("float32")
    steps = tuple(jnp.ones_like(array) for array in inputs)
    expected = jax.jvp(linear.from_library, tuple(inputs), steps)
    for function in (linear.linear, linear.by_products):
        for one, other in zip(jax.jvp(function, tuple(inputs), steps), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_override_and_an_unknown_lowering() -> None:
    x, kernel, bias, _ = arrays("float32")
    for name, message in (("product", "; did you mean 'products'"), ("nothing", "; there are")):
        with (
            lowerings.override(linear=name),
            pytest.raises(ValueError, match=f"linear has no lowering '{name}'{message}"),
        ):
            linear.linear(x, kernel, bias)
