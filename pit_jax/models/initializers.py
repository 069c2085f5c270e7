"""Initial values of parameters, drawn by NumPy on the host: one stream of numbers, jitted or not.

Under `jax.jit` the host draws the same numbers through a callback. JAX's own generators would need
a compiled program for every shape, or one large program for every model.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]
# Maps the number of inputs of one output to the initializers of kernel and bias.
LinearInit = Callable[[int], tuple[Initializer, Initializer]]
# Draws an array of a shape.
Draw = Callable[[np.random.Generator, Sequence[int]], np.ndarray]


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return _initializer(lambda generator, shape: generator.uniform(-bound, bound, shape))


def normal(deviation: float) -> Initializer:
    """N(0, deviation^2).

    PyTorch's `trunc_normal_` cuts at +-2 whatever the deviation. At the papers' 0.02 that is a
    hundred deviations away, so that it is this distribution.
    """
    return _initializer(lambda generator, shape: generator.standard_normal(shape) * deviation)


def constant(value: float) -> Initializer:
    """The same value everywhere; needs no key."""

    def initialize(
        key: jax.Array | None, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        del key
        return _on_device(np.full(shape, value), dtype)

    return initialize


def torch_default_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """PyTorch's default: weight and bias both U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    PiT starts from this; DeiT's linear layers start from `deit_init`.
    """
    bound = 1.0 / math.sqrt(fan_in)
    return uniform(bound), uniform(bound)


def deit_init(fan_in: int) -> tuple[Initializer, Initializer]:
    """Default of ViT and DeiT: weights N(0, 0.02^2) whatever the fan-in, biases zero."""
    del fan_in
    return normal(0.02), constant(0.0)


def _initializer(draw: Draw) -> Initializer:
    """An initializer (key, shape, dtype) whose values are a function of the key's data."""

    def initialize(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        def on_host(data: jax.Array) -> np.ndarray:
            generator = np.random.default_rng(np.asarray(data).tolist())
            return draw(generator, shape).astype(jnp.dtype(dtype))

        data = jax.random.key_data(key)
        if not isinstance(data, jax.core.Tracer):
            return _on_device(on_host(data), dtype)
        result = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return jax.pure_callback(on_host, result, data, vmap_method="sequential")

    return initialize


def _on_device(values: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """Casts on the host, unlike `jnp.asarray`, which compiles a program for every shape."""
    return jax.device_put(values.astype(jnp.dtype(dtype)))
