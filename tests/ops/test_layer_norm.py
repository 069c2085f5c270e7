"""Every lowering of layer normalisation follows its definition, as does its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pit_jax.ops import layer_norm, lowerings

WIDTH = 24
NAMES = sorted(layer_norm.LOWERINGS)


def arrays(dtype: str, *, offset: float = 0.0) -> tuple[jax.Array, ...]:
    """Input (3, 5, C), scale, bias, and the gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = (jax.random.normal(keys[0], (3, 5, WIDTH)) + offset).astype(dtype)
    scale, bias = (1 + 0.3 * jax.random.normal(key, (WIDTH,)) for key in keys[1:3])
    return x, scale, bias, jax.random.normal(keys[3], x.shape).astype(dtype)


def truth(*operands: jax.Array) -> tuple[np.ndarray, ...]:
    """Value and gradients of input, scale and bias, by PyTorch in double precision."""
    x, scale, bias, gradient = (
        torch.tensor(np.asarray(array.astype(jnp.float32), np.float64)) for array in operands
    )
    inputs = [array.requires_grad_() for array in (x, scale, bias)]
    value = torch.nn.functional.layer_norm(x, (WIDTH,), scale, bias, eps=1e-6)
    value.backward(gradient)
    return value.detach().numpy(), *(np.asarray(array.grad) for array in inputs)


def computed(name: str | None, *operands: jax.Array) -> tuple[np.ndarray, ...]:
    *inputs, gradient = operands
    function = jax.jit(lowerings.override(layer_norm=name)(layer_norm.layer_norm))
    value, transpose = jax.vjp(function, *inputs)
    gradients = transpose(gradient)
    assert value.dtype == gradients[0].dtype == inputs[0].dtype
    assert gradients[1].dtype == gradients[2].dtype == jnp.float32
    return tuple(np.asarray(array, np.float64) for array in (value, *gradients))


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_exact_to_its_rounding(name: str) -> None:
    operands = arrays("float32")
    for found, expected in zip(computed(name, *operands), truth(*operands), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_exact_to_its_rounding(name: str) -> None:
    operands = arrays("bfloat16", offset=3.0)
    found, expected = computed(name, *operands), truth(*operands)
    for index in (0, 1):  # in bfloat16
        np.testing.assert_allclose(
            found[index], expected[index], rtol=2.0**-8, atol=2e-5 * np.abs(expected[index]).max()
        )
    for index in (2, 3):  # in float32
        largest = np.abs(expected[index]).max()
        np.testing.assert_allclose(found[index], expected[index], atol=2e-5 * largest, rtol=0)


def test_what_lies_far_from_zero_is_centred_before_it_is_squared_in_float32() -> None:
    operands = arrays("float32", offset=1000.0)
    expected = truth(*operands)[0]
    assert np.abs(computed(None, *operands)[0] - expected).max() < 2e-3
    assert np.abs(computed("one_pass", *operands)[0] - expected).max() > 2e-2


def test_constant_inputs_have_finite_values_and_gradients() -> None:
    _, scale, bias, gradient = arrays("float32")
    x = jnp.full(gradient.shape, 7.0)
    for name in NAMES:
        value, *gradients = computed(name, x, scale, bias, gradient)
        np.testing.assert_allclose(value, np.broadcast_to(bias, value.shape), rtol=1e-6)
        assert all(np.isfinite(array).all() for array in gradients)


@pytest.mark.parametrize(("dtype", "chosen"), [("float32", "two_passes"), ("bfloat16", "one_pass")])
def test_the_dtype_chooses_and_an_override_overrules(dtype: str, chosen: str) -> None:
    x, scale, bias, _ = arrays(dtype, offset=30.0)
    by_name = {
        name: layer_norm.LOWERINGS[name](x, scale, bias, layer_norm.EPSILON) for name in NAMES
    }
    np.testing.assert_array_equal(layer_norm.layer_norm(x, scale, bias), by_name[chosen])
    with lowerings.override(layer_norm="xla"):
        np.testing.assert_array_equal(layer_norm.layer_norm(x, scale, bias), by_name["xla"])
    with (
        lowerings.override(layer_norm="onepass"),
        pytest.raises(ValueError, match=r"layer_norm has no lowering 'onepass'.*'one_pass'"),
    ):
        layer_norm.layer_norm(x, scale, bias)


def test_forward_mode_derivatives_by_an_override() -> None:
    x, scale, bias, step = arrays("float32")
    with lowerings.override(layer_norm="xla"):
        _, along = jax.jvp(lambda x: layer_norm.layer_norm(x, scale, bias), (x,), (step,))
        _, transpose = jax.vjp(lambda x: layer_norm.layer_norm(x, scale, bias), x)
    np.testing.assert_allclose((along * step).sum(), (transpose(step)[0] * step).sum(), rtol=1e-5)
