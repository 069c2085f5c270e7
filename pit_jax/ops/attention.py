"""Multi-head self-attention, its lowerings, and the choice between them.

Letters: B batch, N tokens, C channels, H heads, D head width. All lowerings take queries, keys and
values as (B, N, H, D) in any floating dtype they support, accumulate the logits and the softmax in
float32, and return (B, N, H, D) in the input dtype.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pit_jax.ops import attention_tpu, lowerings
from pit_jax.ops.attention_cpu import attention_in_groups
from pit_jax.ops.linear import linear

Lowering = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# Queries, keys and values, each (B, N, H, D).
Heads = tuple[jax.Array, jax.Array, jax.Array]

# Flash attention on GPUs breaks even with an unfused softmax at 150 to 200 tokens
# (Dao-AILab/flash-attention#591); at longer sequences it saves the memory of the maps.
MIN_CUDNN_TOKENS = 192
# cuDNN's limit on GPUs before Hopper, for training as well.
MAX_CUDNN_WIDTH = 128


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Attention map softmax(q k^T / sqrt(D)), float32, (B, H, N, N); rows sum to one."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)


def weighted_values(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Sum of values (B, N, H, D) under attention weights (B, H, N, N), in the values' dtype."""
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(value.dtype), value)


def plain_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The definition; it writes the maps to memory."""
    return weighted_values(attention_weights(query, key), value)


def cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """cuDNN's fused attention, for bfloat16 and float16 on NVIDIA GPUs."""
    if not fits_cudnn(query):
        raise ValueError(
            "cuDNN attends in bfloat16 or float16, with a head width up to 128 that 8 divides; "
            f"found queries {query.dtype}{list(query.shape)}: use "
            'lowerings.override(attention="plain")'
        )
    # No bias and no mask, ever: they restrict the lengths that cuDNN can differentiate.
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


LOWERINGS: dict[str, Lowering] = {
    "plain": plain_attention,
    "cudnn": cudnn_attention,
    "pallas": attention_tpu.attention,
    "in_groups": attention_in_groups,
}


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention without mask, bias or dropout.

    The lowering is the fastest one on the platform compiled for, at this shape and dtype, or the
    key of `LOWERINGS` that `lowerings.override(attention=...)` names: "plain" runs anywhere,
    "cudnn" on NVIDIA GPUs, "pallas" on TPUs; "in_groups" is for CPUs.

    Args:
      query: (B, N, H, D), floating.
      key: same shape and dtype.
      value: same shape and dtype.

    Returns:
      (B, N, H, D), in the dtype of `query`.

    Raises:
      ValueError: an override names an unknown lowering, or one that does not support the shape or
        dtype.
    """
    name = lowerings.chosen("attention")
    if name is not None:
        return lowerings.lookup("attention", name, LOWERINGS)(query, key, value)
    fastest = _fastest(query)
    return lowerings.by_platform(query, key, value, default=plain_attention, **fastest)


def _fastest(query: jax.Array | jax.ShapeDtypeStruct) -> dict[str, Lowering]:
    """The lowering of each platform that beats the plain one for such queries (B, N, H, D)."""
    fastest: dict[str, Lowering] = {"cpu": attention_in_groups}
    if not lowerings.is_known(query.shape[0]):
        return fastest
    if attention_tpu.supports(query):
        fastest["tpu"] = attention_tpu.attention
    if query.shape[1] >= MIN_CUDNN_TOKENS and fits_cudnn(query) and _has_cuda():
        fastest["cuda"] = cudnn_attention
    return fastest


def self_attention(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`attention` of `project_heads`, with as few copies in between as the platform allows.

    Args:
      heads: H.
      x: (B, N, C).
      kernel: (C, 3C); its columns give all queries, then all keys, then all values.
      bias: (3C,).

    Returns:
      (B, N, H, D), in the dtype of `x`.
    """
    in_groups = functools.partial(_attention_in_groups, heads)
    name = lowerings.chosen("attention")
    if name == "in_groups":
        return in_groups(x, kernel, bias)
    if name is not None:
        return attention(*project_heads(heads, x, kernel, bias))

    def after(project: Callable[..., Heads], lowering: Lowering) -> Callable[..., jax.Array]:
        return lambda *operands: lowering(*project(heads, *operands))

    batch, tokens, width = x.shape
    fastest = _fastest(jax.ShapeDtypeStruct((batch, tokens, heads, width // heads), x.dtype))
    branches = {
        platform: after(_joint_projection, lowering) for platform, lowering in fastest.items()
    }
    branches["cpu"] = in_groups
    branches["tpu"] = after(_separate_projections, fastest.get("tpu", plain_attention))
    default = after(_joint_projection, plain_attention)
    return lowerings.by_platform(x, kernel, bias, default=default, **branches)


def project_heads(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Heads:
    """Queries, keys and values, each (B, N, H, D), of tokens (B, N, C).

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
    return linear(x, kernel, bias).reshape(batch, tokens, 3, heads, width // heads)


def _attention_in_groups(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return attention_in_groups(_projection(heads, x, kernel, bias))


def _separate_projections(heads: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Heads:
    """Three products: the TPU compiler writes their results as the kernel reads them, and would
    copy slices of a single one.
    """
    batch, tokens, width = x.shape
    query, key, value = (
        linear(x, columns, shift, behind_kernel=True).reshape(batch, tokens, heads, width // heads)
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
    """Whether this process has an NVIDIA GPU; without one, cuDNN's attention cannot be traced."""
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False
