"""Attention on CPUs: a group of images at a time, so that their logits stay in the cache.

In PiT's first stage the logits of a batch are hundreds of megabytes, which go to main memory and
back several times; those of one image are two megabytes a head. In the later stages logits are
small, and a product over several images keeps more threads busy than over one. The gradient
recomputes the logits, group by group, instead of reading them from memory.

Letters: B batch, N tokens, H heads, D head width.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from pit_jax.ops import lowerings
from pit_jax.ops.batch_shards import per_batch_shard

# Queries, keys and values, each (B, N, H, D), or all three in one array (B, N, 3, H, D).
Operands = tuple[jax.Array, ...]

# Largest size of the float32 logits of a group of several images, in bytes.
_GROUP_BYTES = 8 << 20
# At these lengths, two halves of the queries in turn are 20 % faster than all at once.
_TOKENS_IN_HALVES = range(257, 513)


@jax.custom_vjp
def attention_in_groups(*operands: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v, (B, N, H, D); logits and softmax in float32.

    Args:
      *operands: queries, keys and values, each (B, N, H, D); or all three in one array
        (B, N, 3, H, D), which saves copies.
    """
    (mixed,) = per_batch_shard(_mix_groups, *operands)
    return mixed


def _forward(*operands: jax.Array) -> tuple[jax.Array, Operands]:
    return attention_in_groups(*operands), operands


def _backward(operands: Operands, gradient: jax.Array) -> Operands:
    return tuple(per_batch_shard(_transpose_groups, *operands, gradient))


attention_in_groups.defvjp(_forward, _backward)


def _mix_groups(*operands: jax.Array) -> tuple[jax.Array, ...]:
    return _by_group(lambda *group: (_mix(*group),), operands)


def _transpose_groups(*operands_and_gradient: jax.Array) -> Operands:
    """Gradients of the operands, given the operands and the gradient of the result."""

    def transpose(*group: jax.Array) -> Operands:
        *operands, gradient = group
        _, pull_back = jax.vjp(_mix, *operands)
        return pull_back(gradient)

    return _by_group(transpose, operands_and_gradient)


def _by_group(
    compute: Callable[..., tuple[jax.Array, ...]], arrays: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    """Computes group after group of images. A group of one image has no batch axis."""
    batch, tokens, heads = arrays[0].shape[0], arrays[0].shape[1], arrays[0].shape[-2]
    size = _group_size(batch, max(_GROUP_BYTES // (4 * heads * tokens**2), 1))
    if lowerings.is_known(batch) and size == batch:
        return compute(*arrays)
    if size > 1:
        arrays = [array.reshape(-1, size, *array.shape[1:]) for array in arrays]

    def advance(group: jax.Array, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        computed = compute(*(lax.dynamic_index_in_dim(array, group, 0, False) for array in arrays))
        return tuple(
            lax.dynamic_update_index_in_dim(result, part, group, 0)
            for result, part in zip(results, computed, strict=True)
        )

    # Filled with a traced value, not zeros: XLA would share one zero array between layers and copy
    # it for each.
    shapes = jax.eval_shape(compute, *(array[0] for array in arrays))
    value = arrays[0].reshape(-1)[0]
    empty = tuple(jnp.full((batch // size, *one.shape), value, one.dtype) for one in shapes)
    results = lax.fori_loop(0, batch // size, advance, empty)
    return tuple(result.reshape(batch, *result.shape[1 + (size > 1) :]) for result in results)


def _group_size(batch: int, most: int) -> int:
    """The largest divisor of the batch size up to `most`; 1 if the batch size is a symbol."""
    if not lowerings.is_known(batch):
        return 1
    divisors = [number for number in range(1, min(most, batch) + 1) if batch % number == 0]
    return max(divisors, default=batch)


def _mix(*operands: jax.Array) -> jax.Array:
    """Attention within each image of a group, (..., N, H, D)."""
    if len(operands) == 1:
        (qkv,) = operands
        operands = tuple(qkv[..., part, :, :] for part in range(3))
    # Scaling the queries instead of the logits, and dividing the sums of values instead of the
    # weights, saves two passes over the largest arrays.
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
