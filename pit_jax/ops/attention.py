"""Multi-head self-attention: one mathematical function, its lowerings, and the choice between them.

Letters: B batch, N tokens, C channels, H heads, D head width. All lowerings take queries, keys and
values as (B, N, H, D) in any floating dtype they support, accumulate the logits and the softmax in
float32, and return (B, N, H, D) in the input dtype.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pit_jax.ops import attention_tpu, lowerings
from pit_jax.ops.attention_cpu import attention_in_groups, attention_of_projection
from pit_jax.ops.linear import linear_map

Lowering = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# Queries, keys and values, each (B, N, H, D).
Heads = tuple[jax.Array, jax.Array, jax.Array]

# Flash attention on GPUs breaks even with an unfused softmax at 150 to 200 tokens
# (Dao-AILab/flash-attention#591); from there on it saves the memory of the maps.
MIN_CUDNN_TOKENS = 192
# cuDNN's limit before Hopper, for training as well.
MAX_CUDNN_WIDTH = 128


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Attention map softmax(q k^T / sqrt(D)), float32, (B, H, N, N); rows sum to one."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)


def weighted_values(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Sum of values (B, N, H, D) under attention weights (B, H, N, N), in the values' dtype."""
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(value.dtype), value)


def plain_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The definition, which writes the maps to memory."""
    return weighted_values(attention_weights(query, key), value)


def cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """cuDNN's fused attention, for bfloat16 and float16 on NVIDIA GPUs."""
    if not fits_cudnn(query):
        raise ValueError(
            "cuDNN attends in bfloat16 or float16, with a head width up to 128 that 8 divides; "
            f'found queries {query.dtype}{list(query.shape)}: use lowering="plain"'
        )
    # Never with a bias or a mask: those restrict the lengths that can be trained.
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


LOWERINGS: dict[str, Lowering] = {
    "plain": plain_attention,
    "cudnn": cudnn_attention,
    "pallas": attention_tpu.attention,
    "in_groups": attention_in_groups,
}


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, lowering: str | None = None
) -> jax.Array:
    """Scaled dot-product attention without mask, bias or dropout.

    Args:
      query: (B, N, H, D), floating.
      key: same shape and dtype.
      value: same shape and dtype.
      lowering: a key of `LOWERINGS`: "plain" anywhere, "cudnn" on NVIDIA GPUs, "pallas" on TPUs,
        "in_groups" for CPUs; None for the fastest on the platform compiled for, at this shape and
        dtype. It overrules `lowerings.override`.

    Returns:
      (B, N, H, D), in the dtype of `query`.

    Raises:
      ValueError: an unknown lowering, or one that does not support the shape or dtype.
    """
    lowering = lowering or lowerings.chosen("attention")
    if lowering is not None:
        return lowerings.lookup("attention", lowering, LOWERINGS)(query, key, value)
    fastest = _fastest(query)
    return lowerings.by_platform(query, key, value, default=plain_attention, **fastest)


def _fastest(query: jax.Array | jax.ShapeDtypeStruct) -> dict[str, Lowering]:
    """By platform, the lowering that is faster than the plain one for such queries (B, N, H, D)."""
    fastest: dict[str, Lowering] = {"cpu": attention_in_groups}
    if attention_tpu.supports(query):
        fastest["tpu"] = attention_tpu.attention
    if query.shape[1] >= MIN_CUDNN_TOKENS and fits_cudnn(query) and _has_cuda():
        fastest["cuda"] = cudnn_attention
    return fastest


def self_attention(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`attention` of the `projected_heads`, with as few copies between them as the platform can do.

    Args:
      heads: H.
      x: (B, N, C).
      kernel: (C, 3C); its columns give all queries, then all keys, then all values.
      bias: (3C,).

    Returns:
      (B, N, H, D), in the dtype of `x`.
    """
    in_groups = functools.partial(_attention_in_groups, heads)
    chosen = lowerings.chosen("attention")
    if chosen == "in_groups":
        return in_groups(x, kernel, bias)
    if chosen is not None:
        return attention(*projected_heads(heads, x, kernel, bias))

    def mixed_by(lowering: Lowering, project: Callable[..., Heads]) -> Callable[..., jax.Array]:
        return lambda *operands: lowering(*project(heads, *operands))

    batch, tokens, width = x.shape
    fastest = _fastest(jax.ShapeDtypeStruct((batch, tokens, heads, width // heads), x.dtype))
    branches = {name: mixed_by(found, _joint_projection) for name, found in fastest.items()}
    branches["cpu"] = in_groups
    branches["tpu"] = mixed_by(fastest.get("tpu", plain_attention), _separate_projections)
    default = mixed_by(plain_attention, _joint_projection)
    return lowerings.by_platform(x, kernel, bias, default=default, **branches)


def projected_heads(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Heads:
    """Queries, keys and values (B, N, H, D) from tokens (B, N, C), all of one dtype.

    Args:
      heads: H.
      x: (B, N, C).
      kernel: (C, 3C); its columns give all queries, then all keys, then all values.
      bias: (3C,).
    """
    if lowerings.chosen("attention") not in (None, "pallas"):
        return _joint_projection(heads, x, kernel, bias)
    return lowerings.by_platform(
        x,
        kernel,
        bias,
        tpu=functools.partial(_separate_projections, heads),
        default=functools.partial(_joint_projection, heads),
    )


def _joint_projection(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Heads:
    qkv = _projection(heads, x, kernel, bias)
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def _projection(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Queries, keys and values in one array (B, N, 3, H, D)."""
    batch, tokens, width = x.shape
    return linear_map(x, kernel, bias).reshape(batch, tokens, 3, heads, width // heads)


def _attention_in_groups(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return attention_of_projection(_projection(heads, x, kernel, bias))


def _separate_projections(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Heads:
    """Three products, whose results the TPU compiler writes as the kernel reads them; slices of one
    would be copied.
    """
    batch, tokens, width = x.shape
    query, key, value = (
        linear_map(x, columns, shift, behind_kernel=True).reshape(
            batch, tokens, heads, width // heads
        )
        for columns, shift in zip(jnp.split(kernel, 3, 1), jnp.split(bias, 3), strict=True)
    )
    return query, key, value


def fits_cudnn(query: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether cuDNN takes such queries (B, N, H, D), on any GPU that has its fused attention."""
    width = query.shape[3]
    return (
        query.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= MAX_CUDNN_WIDTH
    )


@functools.cache
def _has_cuda() -> bool:
    """Whether this process has an NVIDIA GPU; cuDNN's attention cannot even be traced without."""
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False
