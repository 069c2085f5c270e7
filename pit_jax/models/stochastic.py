"""Randomness in training: dropout, stochastic depth, and the keys that they draw from.

A key of None turns both off: evaluation mode.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropRates:
    """Probabilities of a block, each in [0, 1).

    Attributes:
      features: of dropout after projections.
      attention: of dropout on attention maps.
      path: of dropping a whole branch (stochastic depth).
    """

    features: float = 0.0
    attention: float = 0.0
    path: float = 0.0


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each value with probability `rate` and rescales the rest; identity without a key."""
    return _drop(x, rate, key, x.shape)


def stochastic_depth(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Drops a residual branch (B, ...) of whole examples with probability `rate`, and rescales the
    others; identity without a key (Huang et al. 2016).
    """
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: jax.Array, rate: float, key: jax.Array | None, mask_shape: Sequence[int]) -> jax.Array:
    if key is None or rate == 0.0:
        return x
    keep = 1.0 - rate
    mask = jax.random.bernoulli(key, keep, mask_shape)
    return jnp.where(mask, x / keep, jnp.zeros_like(x))


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` independent keys; as many Nones without a key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def training_key(key: jax.Array | None, *, train: bool, random: bool) -> jax.Array | None:
    """The key of a call of a model: None unless it trains and anything in it is random.

    Raises:
      ValueError: no key where one is needed.
    """
    if not (train and random):
        return None
    if key is None:
        raise ValueError(
            "train=True with dropout or stochastic depth needs key=jax.random.key(seed)"
        )
    return key
