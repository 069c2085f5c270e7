"""Layer normalisation, its lowerings, and the choice between them.

PiT's first stage is bound by memory, so that passes over the activations count. JAX differentiates
the textbook form into four of them that wait for each other: mean, variance of what is centred,
gradient of the variance, gradient of the mean. With a gradient of its own the last two are one
pass; with the variance as mean square less squared mean, the first two are, too.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from pit_jax.ops import lowerings
from pit_jax.ops.gelu import wide

Lowering = Callable[[jax.Array, jax.Array, jax.Array, float], jax.Array]
# Input, mean, reciprocal standard deviation, scale.
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

# As the published weights expect it.
EPSILON = 1e-6


def _statistics(x: jax.Array, epsilon: float, one_pass: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and reciprocal standard deviation over the last axis, which they keep."""
    mean = x.mean(-1, keepdims=True)
    if one_pass:
        variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    else:
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + epsilon)


def from_library(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """The definition, as JAX differentiates it; has forward-mode derivatives too."""
    x_wide = wide(x)
    mean, factor = _statistics(x_wide, epsilon, one_pass=False)
    return _affine((x_wide - mean) * factor, scale, bias).astype(x.dtype)


def _affine(unit: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Of (..., C) by (C,) and (C,)."""
    shape = (1,) * (unit.ndim - 1) + (-1,)
    return unit * scale.reshape(shape) + bias.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalised(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, one_pass: bool
) -> jax.Array:
    return _forward(x, scale, bias, epsilon, one_pass)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, one_pass: bool
) -> tuple[jax.Array, Residuals]:
    mean, factor = _statistics(wide(x), epsilon, one_pass)
    out = _affine((wide(x) - mean) * factor, scale, bias).astype(x.dtype)
    return out, (x, mean, factor, scale)


def _backward(
    epsilon: float, one_pass: bool, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon, one_pass
    x, mean, factor, scale = residuals
    unit, arriving = (wide(x) - mean) * factor, wide(gradient)
    others = tuple(range(x.ndim - 1))
    to_unit = arriving * scale.reshape((1,) * len(others) + (-1,))
    level = to_unit.mean(-1, keepdims=True)
    along = (to_unit * unit).mean(-1, keepdims=True)
    to_x = factor * (to_unit - level - unit * along)
    to_scale, to_bias = (arriving * unit).sum(others), arriving.sum(others)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(scale.dtype)


_normalised.defvjp(_forward, _backward)


def in_two_passes(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """With a gradient of its own; the variance of centred values, exact to float32 rounding."""
    return _normalised(x, scale, bias, epsilon, False)


def in_one_pass(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """The same with the variance as mean square less squared mean, in float32: off by rounding
    times 1 + mean^2 / variance, which is nothing beside the rounding of bfloat16 inputs.
    """
    return _normalised(x, scale, bias, epsilon, True)


LOWERINGS: dict[str, Lowering] = {
    "xla": from_library,
    "two_passes": in_two_passes,
    "one_pass": in_one_pass,
}


def normalised(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float = EPSILON,
    lowering: str | None = None,
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in float32.

    Args:
      x: (..., C), floating.
      scale: (C,), float32.
      bias: (C,), float32.
      epsilon: added to the variance.
      lowering: a key of `LOWERINGS`, which overrules `lowerings.override`; None for the fastest
        that is exact in the dtype of `x`.

    Returns:
      As `x`.

    Raises:
      ValueError: an unknown lowering.
    """
    lowering = lowering or lowerings.chosen("layer_norm")
    if lowering is None:
        lowering = "one_pass" if x.dtype == jnp.bfloat16 else "two_passes"
    return lowerings.lookup("layer_norm", lowering, LOWERINGS)(x, scale, bias, epsilon)


class LayerNorm(nnx.LayerNorm):
    """flax's layer with scale and bias, computed by `normalised`."""

    scale: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """(..., C) to the same, in the layer's dtype."""
        if mask is not None:
            raise ValueError("this normalisation takes no mask: use flax.nnx.LayerNorm")
        x = jnp.asarray(x, self.dtype)
        return normalised(x, self.scale[...], self.bias[...], epsilon=self.epsilon)
