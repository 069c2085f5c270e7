"""Attention on CPUs: one image at a time, so that its logits stay in the cache.

All of a batch at once, the logits of PiT's first stage are hundreds of megabytes, which go to main
memory and back several times; one image's are two megabytes a head. The gradient computes them
anew, again image by image, rather than read them from memory.

Letters: B batch, N tokens, H heads, D head width.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pit_jax.models.sharded_kernel import per_batch_shard

Operands = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def attention_by_image(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v, (B, N, H, D) each and out; logits and softmax in float32."""
    (mixed,) = per_batch_shard(_mix_images, query, key, value)
    return mixed


def _forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Operands]:
    return attention_by_image(query, key, value), (query, key, value)


def _backward(operands: Operands, gradient: jax.Array) -> Operands:
    query, key, value = per_batch_shard(_transpose_images, *operands, gradient)
    return query, key, value


attention_by_image.defvjp(_forward, _backward)


def _mix_images(*operands: jax.Array) -> tuple[jax.Array]:
    return (lax.map(lambda operands: _mix_image(*operands), operands),)


def _transpose_images(*operands_and_gradient: jax.Array) -> Operands:
    """Gradients of queries, keys and values, from those and the gradient of the result."""

    def transpose_image(row: tuple[jax.Array, ...]) -> Operands:
        *operands, gradient = row
        _, transpose = jax.vjp(_mix_image, *operands)
        return transpose(gradient)

    return lax.map(transpose_image, operands_and_gradient)


def _mix_image(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention in one image, (N, H, D) -> (N, H, D)."""
    # Scaling the queries instead of the logits spares a pass over the larger array.
    scaled = query.astype(jnp.float32) * query.shape[-1] ** -0.5
    logits = jnp.einsum("nhd,mhd->hnm", scaled, key.astype(jnp.float32))
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("hnm,mhd->nhd", weights, value)
