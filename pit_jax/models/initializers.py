"""Initial values of parameters.

Made by NumPy on the host, in their dtype, wherever the key is concrete: compiling one program per
shape takes longer than many a fine-tuning step. Traced keys (abstract evaluation, jit) fall back
to JAX, with the same distributions and other numbers.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]
# From the number of inputs of one output to the initializers of kernel and bias.
LinearInit = Callable[[int], tuple[Initializer, Initializer]]


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""

    def initialize(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        if isinstance(key, jax.core.Tracer):
            return jax.random.uniform(key, tuple(shape), dtype, minval=-bound, maxval=bound)
        return _on_device(_generator(key).uniform(-bound, bound, shape), dtype)

    return initialize


def normal(deviation: float) -> Initializer:
    """N(0, deviation^2).

    PyTorch's `trunc_normal_` cuts at +-2 whatever the deviation; at the papers' 0.02 that is a
    hundred deviations away, so it is this.
    """

    def initialize(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        if isinstance(key, jax.core.Tracer):
            return deviation * jax.random.normal(key, tuple(shape), dtype)
        return _on_device(_generator(key).standard_normal(shape) * deviation, dtype)

    return initialize


def constant(value: float) -> Initializer:
    """The same everywhere; needs no key."""

    def initialize(
        key: jax.Array | None, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        if isinstance(key, jax.core.Tracer):
            return jnp.full(tuple(shape), value, dtype)
        return _on_device(np.full(shape, value), dtype)

    return initialize


def torch_default_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """PyTorch's default: weight and bias both U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    PiT starts from this, unlike DeiT, whose linear layers start from `deit_init`.
    """
    bound = 1.0 / math.sqrt(fan_in)
    return uniform(bound), uniform(bound)


def deit_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """ViT's and DeiT's: weights N(0, 0.02^2) whatever the fan-in, biases zero."""
    del fan_in
    return normal(0.02), constant(0.0)


def _on_device(values: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """Cast on the host and put, not `jnp.asarray`: that compiles a program for every shape."""
    return jax.device_put(values.astype(jnp.dtype(dtype)))


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
