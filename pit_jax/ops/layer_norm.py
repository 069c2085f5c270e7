"""Layer normalisation, its lowerings, and the choice between them.

PiT's first stage is bound by memory, so that passes over the activations count. JAX differentiates
the textbook form into four dependent passes: mean, variance of the centred values, gradient of the
variance, gradient of the mean. A custom gradient makes one pass of the last two; the variance as
mean square less squared mean makes one of the first two.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pit_jax.ops import lowerings
from pit_jax.ops.precision import at_least_float32

Lowering = Callable[[jax.Array, jax.Array, jax.Array, float], jax.Array]
# Input, mean, reciprocal standard deviation, scale.
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

# Epsilon of the published weights, timm's 1e-6; PyTorch's default is 1e-5.
EPSILON = 1e-6


def _statistics(x: jax.Array, epsilon: float, one_pass: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and reciprocal standard deviation over the last axis, both (..., 1)."""
    mean = x.mean(-1, keepdims=True)
    if one_pass:
        variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    else:
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + epsilon)


def from_library(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """The definition, as JAX differentiates it; it has forward-mode derivatives, too."""
    x_wide = at_least_float32(x)
    mean, factor = _statistics(x_wide, epsilon, one_pass=False)
    return _affine((x_wide - mean) * factor, scale, bias).astype(x.dtype)


def _affine(unit: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """(..., C) times (C,) plus (C,)."""
    shape = (1,) * (unit.ndim - 1) + (-1,)
    return unit * scale.reshape(shape) + bias.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, one_pass: bool
) -> jax.Array:
    return _forward(x, scale, bias, epsilon, one_pass)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, one_pass: bool
) -> tuple[jax.Array, Residuals]:
    mean, factor = _statistics(at_least_float32(x), epsilon, one_pass)
    out = _affine((at_least_float32(x) - mean) * factor, scale, bias).astype(x.dtype)
    return out, (x, mean, factor, scale)


def _backward(
    epsilon: float, one_pass: bool, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of the input, the scale and the bias."""
    del epsilon, one_pass
    x, mean, factor, scale = residuals
    unit, arriving = (at_least_float32(x) - mean) * factor, at_least_float32(gradient)
    others = tuple(range(x.ndim - 1))
    to_unit = arriving * scale.reshape((1,) * len(others) + (-1,))
    level = to_unit.mean(-1, keepdims=True)
    along = (to_unit * unit).mean(-1, keepdims=True)
    to_x = factor * (to_unit - level - unit * along)
    to_scale, to_bias = (arriving * unit).sum(others), arriving.sum(others)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(scale.dtype)


_layer_norm.defvjp(_forward, _backward)


def in_two_passes(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Custom gradient; variance of the centred values, exact to float32 rounding."""
    return _layer_norm(x, scale, bias, epsilon, False)


def in_one_pass(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Custom gradient; variance as mean square less squared mean, in float32.

    It is off by rounding times 1 + mean^2 / variance, which is nothing beside the rounding of
    bfloat16 inputs.
    """
    return _layer_norm(x, scale, bias, epsilon, True)


LOWERINGS: dict[str, Lowering] = {
    "xla": from_library,
    "two_passes": in_two_passes,
    "one_pass": in_one_pass,
}


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = EPSILON
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in float32.

    The lowering is the fastest one that is exact in the dtype of `x`, or the key of `LOWERINGS`
    that `lowerings.override(layer_norm=...)` names.

    Args:
      x: (..., C), floating.
      scale: (C,), float32.
      bias: (C,), float32.
      epsilon: added to the variance.

    Returns:
      As `x`.

    Raises:
      ValueError: an override names an unknown lowering.
    """
    default = "one_pass" if x.dtype == jnp.bfloat16 else "two_passes"
    name = lowerings.chosen("layer_norm") or default
    return lowerings.lookup("layer_norm", name, LOWERINGS)(x, scale, bias, epsilon)
