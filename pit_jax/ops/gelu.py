"""The exact GELU x * Phi(x), its lowerings, and the choice between them.

Phi is the normal distribution function. `jax.nn.gelu(x, approximate=False)` computes it by erfc,
two branches of some forty operations each, and keeps intermediates for its gradient. Here Phi costs
half a dozen to a dozen operations, and only x is kept: the gradient Phi(x) + x * phi(x) is
recomputed from it.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pit_jax.ops import lowerings
from pit_jax.ops.precision import at_least_float32

Lowering = Callable[[jax.Array], jax.Array]

# Phi(x) = (1 + tanh(x * p(x^2))) / 2, constant term first. Fitted to x * Phi(x) over [-7, 7] by
# iteratively reweighted least squares. The largest error is 3.1e-6; the usual tanh form, whose p
# has two terms, is off by 4.7e-4. The last coefficient is positive, so that the argument grows
# without bound on both sides.
COEFFICIENTS = (7.97827577e-1, 3.64699307e-2, -1.25476162e-4, -3.04672057e-5, 1.11263212e-6)


def _phi_erf(x: jax.Array) -> jax.Array:
    """Distribution function, to float32 rounding."""
    return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))


def _phi_polynomial(x: jax.Array) -> jax.Array:
    """Distribution function, to the precision at which bfloat16 holds x * Phi(x)."""
    square = x * x
    value = jnp.full_like(x, COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:
        value = value * square + coefficient
    return 0.5 + 0.5 * jnp.tanh(x * value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x: jax.Array, distribution: Lowering) -> jax.Array:
    x_wide = at_least_float32(x)
    return (x_wide * distribution(x_wide)).astype(x.dtype)


def _forward(x: jax.Array, distribution: Lowering) -> tuple[jax.Array, jax.Array]:
    return _gelu(x, distribution), x


def _backward(distribution: Lowering, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    x_wide = at_least_float32(x)
    # Beyond this the density is zero in float32; squares must not overflow to zero times infinity.
    bounded = jnp.clip(x_wide, -16.0, 16.0)
    density = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * bounded * bounded)
    slope = distribution(x_wide) + bounded * density
    return ((slope * gradient.astype(slope.dtype)).astype(x.dtype),)


_gelu.defvjp(_forward, _backward)


def from_library(x: jax.Array) -> jax.Array:
    """JAX's own GELU, the reference of the tests; it has forward-mode derivatives, too."""
    return jax.nn.gelu(x, approximate=False)


def by_erf(x: jax.Array) -> jax.Array:
    """GELU exact to the rounding of float32, as PyTorch computes it."""
    return _gelu(x, _phi_erf)


def by_polynomial(x: jax.Array) -> jax.Array:
    """GELU exact to the rounding of bfloat16, off by at most 4e-6 in float32."""
    return _gelu(x, _phi_polynomial)


LOWERINGS: dict[str, Lowering] = {
    "xla": from_library,
    "erf": by_erf,
    "polynomial": by_polynomial,
}


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), elementwise, with a gradient that recomputes; the arithmetic is float32.

    The lowering is the cheapest one that is exact in the dtype of `x`, or the key of `LOWERINGS`
    that `lowerings.override(gelu=...)` names.

    Args:
      x: floating, of any shape.

    Returns:
      As `x`.

    Raises:
      ValueError: an override names an unknown lowering.
    """
    default = "polynomial" if x.dtype == jnp.bfloat16 else "erf"
    return lowerings.lookup("gelu", lowerings.chosen("gelu") or default, LOWERINGS)(x)
