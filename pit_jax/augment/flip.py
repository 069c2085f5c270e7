"""Horizontal flips."""

import jax
import jax.numpy as jnp


def draw_flips(keys: jax.Array, probability: float) -> jax.Array:
    """Draws (B,) booleans from (B,) keys, true with `probability`."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)


def flip(images: jax.Array, flips: jax.Array) -> jax.Array:
    """Mirrors images (B, H, W, C) of any dtype left to right where `flips` (B,) is true."""
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
