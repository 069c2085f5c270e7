"""Attention on CPUs: a few images at a time, so that their logits stay in the cache.

All of a batch at once, the logits of PiT's first stage are hundreds of megabytes, which go to main
memory and back several times; one image's are two megabytes a head. Those of the later stages are
small, and a product over several images keeps more threads busy than one. The gradient computes
the logits anew, group by group, rather than read them from memory.

Letters: B batch, N tokens, H heads, D head width.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from pit_jax.ops.sharded_kernel import per_batch_shard

# Queries, keys and values, each (B, N, H, D), or all three in one array (B, N, 3, H, D).
Operands = tuple[jax.Array, ...]

# Bytes of float32 logits that a group of images may have, unless it is one image.
_GROUP_BYTES = 8 << 20
# Of so many tokens, one half of the queries after the other is a fifth faster than all at once.
_TOKENS_IN_HALVES = range(257, 513)


def attention_in_groups(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v, (B, N, H, D) each and out; logits and softmax in float32."""
    return _attention(query, key, value)


def attention_of_projection(qkv: jax.Array) -> jax.Array:
    """The same of queries, keys and values in one array (B, N, 3, H, D), which spares copies."""
    return _attention(qkv)


@jax.custom_vjp
def _attention(*operands: jax.Array) -> jax.Array:
    (mixed,) = per_batch_shard(_mix_groups, *operands)
    return mixed


def _forward(*operands: jax.Array) -> tuple[jax.Array, Operands]:
    return _attention(*operands), operands


def _backward(operands: Operands, gradient: jax.Array) -> Operands:
    return tuple(per_batch_shard(_transpose_groups, *operands, gradient))


_attention.defvjp(_forward, _backward)


def _mix_groups(*operands: jax.Array) -> tuple[jax.Array, ...]:
    return _by_group(lambda *group: (_mix(*group),), operands)


def _transpose_groups(*operands_and_gradient: jax.Array) -> Operands:
    """Gradients of the operands, from those and the gradient of the result."""

    def transpose(*group: jax.Array) -> Operands:
        *operands, gradient = group
        _, pull_back = jax.vjp(_mix, *operands)
        return pull_back(gradient)

    return _by_group(transpose, operands_and_gradient)


def _by_group(
    compute: Callable[..., tuple[jax.Array, ...]], arrays: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    """Of as many images at a time as may be and divide the batch; of one without its axis."""
    batch, tokens, heads = arrays[0].shape[0], arrays[0].shape[1], arrays[0].shape[-2]
    most = max(_GROUP_BYTES // (4 * heads * tokens**2), 1)
    divisors = [number for number in range(1, min(most, batch) + 1) if batch % number == 0]
    size = max(divisors, default=batch)
    if size == batch:
        return compute(*arrays)
    if size > 1:
        arrays = [array.reshape(-1, size, *array.shape[1:]) for array in arrays]

    def advance(group: jax.Array, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        computed = compute(*(lax.dynamic_index_in_dim(array, group, 0, False) for array in arrays))
        return tuple(
            lax.dynamic_update_index_in_dim(result, part, group, 0)
            for result, part in zip(results, computed, strict=True)
        )

    # What the loop overwrites: as zeros, the compiler would make it once for all layers, and copy
    # it for each of them before the first has begun.
    shapes = jax.eval_shape(compute, *(array[0] for array in arrays))
    value = arrays[0].reshape(-1)[0]
    room = tuple(jnp.full((batch // size, *of.shape), value, of.dtype) for of in shapes)
    results = lax.fori_loop(0, batch // size, advance, room)
    return tuple(result.reshape(batch, *result.shape[1 + (size > 1) :]) for result in results)


def _mix(*operands: jax.Array) -> jax.Array:
    """Attention in a few images or in one, (..., N, H, D)."""
    if len(operands) == 1:
        (qkv,) = operands
        operands = tuple(qkv[..., part, :, :] for part in range(3))
    # Scaling the queries instead of the logits, and dividing what is mixed instead of the weights,
    # spares two passes over the largest arrays.
    query, key, value = (operand.swapaxes(-3, -2) for operand in operands)
    query = query.astype(jnp.float32) * query.shape[-1] ** -0.5
    key = key.astype(jnp.float32)
    parts = 2 if query.shape[-2] in _TOKENS_IN_HALVES else 1
    mixed = [_mix_rows(rows, key, value) for rows in jnp.array_split(query, parts, axis=-2)]
    return jnp.concatenate(mixed, axis=-2).swapaxes(-3, -2)


def _mix_rows(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of some scaled queries (..., M, D) to all keys and values (..., N, D)."""
    logits = jnp.einsum("...md,...nd->...mn", query, key)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum("...mn,...nd->...md", weights.astype(value.dtype), value)
    return (mixed / total).astype(value.dtype)
