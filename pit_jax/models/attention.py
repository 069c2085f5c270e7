"""Multi-head self-attention: one mathematical function, its lowerings, and the choice between them.

Letters: B batch, N tokens, H heads, D head width. All lowerings take queries, keys and values as
(B, N, H, D) in any floating dtype, accumulate the logits and the softmax in float32, and return (B,
N, H, D) in the input dtype.
"""

import jax
import jax.numpy as jnp


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Attention map softmax(q k^T / sqrt(D)), float32, (B, H, N, N); rows sum to one."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)


def weighted_values(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Sum of values (B, N, H, D) under attention weights (B, H, N, N), in the values' dtype."""
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(value.dtype), value)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention without mask, bias or dropout, (B, N, H, D) -> (B, N, H, D)."""
    return weighted_values(attention_weights(query, key), value)
