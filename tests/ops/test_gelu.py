"""Every lowering of the GELU is x * Phi(x), with the gradient of that function."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.ops import gelu, lowerings

# Dense where the function bends, and values that must not overflow.
POINTS = np.concatenate([np.linspace(-12, 12, 4801), [-3e38, -1e20, -50, 50, 1e20, 3e38]])


@functools.cache
def truth(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points rounded to the dtype; values and slopes at them in double precision."""
    points = np.asarray(jnp.asarray(POINTS, dtype).astype(jnp.float32), np.float64)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in points])
    density = np.exp(-0.5 * np.minimum(np.abs(points), 100) ** 2) / math.sqrt(2 * math.pi)
    return points, points * below, below + np.clip(points, -100, 100) * density


def value_and_slope(lowering: str | None, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    function = jax.jit(lowerings.override(gelu=lowering)(gelu.gelu))
    points = jnp.asarray(POINTS, dtype)
    value, transpose = jax.vjp(function, points)
    (slope,) = transpose(jnp.ones_like(points))
    assert value.dtype == slope.dtype == points.dtype
    return np.asarray(value, np.float64), np.asarray(slope, np.float64)


def assert_within(
    found: np.ndarray, expected: np.ndarray, *, relative: float, absolute: float
) -> None:
    error = np.abs(found - expected)
    np.testing.assert_array_less(error, relative * np.abs(expected) + absolute)


@pytest.mark.parametrize("lowering", [None, "erf", "xla"])
def test_float32_is_exact_to_its_rounding(lowering: str | None) -> None:
    _, values, slopes = truth("float32")
    found, slope = value_and_slope(lowering, "float32")
    assert_within(found, values, relative=2e-7, absolute=7e-7)
    assert_within(slope, slopes, relative=2e-7, absolute=5e-7)


@pytest.mark.parametrize("lowering", [None, "erf", "polynomial"])
def test_bfloat16_is_exact_to_its_rounding(lowering: str | None) -> None:
    _, values, slopes = truth("bfloat16")
    found, slope = value_and_slope(lowering, "bfloat16")
    half_a_step = 2.0**-8
    assert_within(found, values, relative=half_a_step, absolute=5e-6)
    assert_within(slope, slopes, relative=half_a_step, absolute=1e-5)


def test_the_polynomial_is_as_good_as_it_says() -> None:
    points, values, slopes = truth("float32")
    found, slope = value_and_slope("polynomial", "float32")
    near = np.abs(points) <= 12
    assert np.abs(found - values)[near].max() < 4e-6
    assert np.abs(slope - slopes)[near].max() < 2e-5


@pytest.mark.parametrize(("dtype", "chosen"), [("float32", "erf"), ("bfloat16", "polynomial")])
def test_the_dtype_chooses_and_an_override_overrules(dtype: str, chosen: str) -> None:
    x = jnp.asarray(POINTS, dtype)
    np.testing.assert_array_equal(gelu.gelu(x), gelu.LOWERINGS[chosen](x))
    with lowerings.override(gelu="xla"):
        np.testing.assert_array_equal(gelu.gelu(x), jax.nn.gelu(x, approximate=False))
    with (
        lowerings.override(gelu="erv"),
        pytest.raises(ValueError, match="gelu has no lowering 'erv'; did you mean 'erf'"),
    ):
        gelu.gelu(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_input_is_kept_for_the_gradient(dtype: str) -> None:
    x = jnp.asarray(POINTS, dtype)
    _, transpose = jax.vjp(gelu.gelu, x)
    kept = [leaf for leaf in jax.tree.leaves(transpose) if leaf.shape == x.shape]
    assert [leaf.dtype for leaf in kept] == [x.dtype]
    np.testing.assert_array_equal(kept[0], x)


def test_infinities_and_nan() -> None:
    x = jnp.array([jnp.inf, jnp.nan], jnp.float32)
    for lowering in ("erf", "polynomial"):
        value = gelu.LOWERINGS[lowering](x)
        assert value[0] == jnp.inf
        assert jnp.isnan(value[1])
