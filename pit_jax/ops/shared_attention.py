"""One attention map for several layers: kept as it is, or as the queries and keys that make it.

Letters: B batch, N tokens, H heads, D head width. A kept map costs B * H * N * N values of memory
and is read by every layer that shares it. Kept queries and keys cost B * N * H * D each; every
layer then makes the map again, inside of a fused attention that writes none to memory. Gradients of
the map are the sum over all layers either way.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from pit_jax.ops import attention_tpu, lowerings
from pit_jax.ops.attention import (
    MIN_CUDNN_TOKENS,
    attention,
    attention_weights,
    weighted_values,
)


class KeptMap(NamedTuple):
    """The map, (B, H, N, N) in float32."""

    weights: jax.Array

    def attend(self, value: jax.Array) -> jax.Array:
        """Sums of values (B, N, H, D) under the map, in the values' dtype."""
        return weighted_values(self.weights, value)


class KeptQueries(NamedTuple):
    """Queries and keys, (B, N, H, D) each."""

    query: jax.Array
    key: jax.Array

    @property
    def weights(self) -> jax.Array:
        """The map, (B, H, N, N) in float32."""
        return attention_weights(self.query, self.key)

    def attend(self, value: jax.Array) -> jax.Array:
        """Sums of values (B, N, H, D) under the map, in the values' dtype."""
        return attention(self.query, self.key, value)


SharedMap = KeptMap | KeptQueries


def keep_map(query: jax.Array, key: jax.Array) -> SharedMap:
    """Makes the map once."""
    return KeptMap(attention_weights(query, key))


def keep_queries(query: jax.Array, key: jax.Array) -> SharedMap:
    """Makes the map anew for every layer, by `ops.attention` and its lowerings."""
    return KeptQueries(query, key)


LOWERINGS: dict[str, Callable[[jax.Array, jax.Array], SharedMap]] = {
    "map": keep_map,
    "qk": keep_queries,
}


def share(query: jax.Array, key: jax.Array) -> SharedMap:
    """The attention map of queries and keys, for all layers of a group to attend with.

    The lowering is the key of `LOWERINGS` that `lowerings.override(shared_attention=...)` names, or
    follows the platform and the length. What is kept differs in shape, so that the choice is made
    while tracing: a platform that `lowerings.compiling_for` does not name is taken for a GPU.

    Args:
      query: (B, N, H, D), floating.
      key: same shape and dtype.

    Raises:
      ValueError: an override names an unknown lowering.
    """
    name = lowerings.chosen("shared_attention")
    if name is None:
        name = _fastest(query)
    return lowerings.lookup("shared_attention", name, LOWERINGS)(query, key)


def _fastest(query: jax.Array) -> str:
    platform = lowerings.target_platform()
    if platform == "tpu":
        # Without the kernel every layer would write the map.
        fused = lowerings.is_known(query.shape[0]) and attention_tpu.supports(query)
        return "qk" if fused else "map"
    if platform == "cpu":
        return "map"
    return "qk" if query.shape[1] >= MIN_CUDNN_TOKENS else "map"
