"""Attention sharing: blocks of which the first makes an attention map for all.

Letters: B batch, N tokens, C channels, D head width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.initializers import deit_init
from pit_jax.models.layers import MLP, LayerNorm, Linear, mlp_branch
from pit_jax.models.stochastic import DropRates, split_key, stochastic_depth
from pit_jax.ops.attention import project_heads
from pit_jax.ops.shared_attention import SharedMap, share


class SharedAttention(nnx.Module):
    """Self-attention in a group of layers with one map for each head. The first layer makes the
    maps; the others weigh their own values by them, and have neither queries nor keys.
    """

    def __init__(
        self, width: int, heads: int, *, reuses_map: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.heads = heads
        if reuses_map:
            self.value = Linear(width, width, init=deit_init, dtype=dtype, rngs=rngs)
        else:
            self.qkv = Linear(width, 3 * width, init=deit_init, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, init=deit_init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_bnc: jax.Array, shared: SharedMap | None, record: Recorder, name: str
    ) -> tuple[jax.Array, SharedMap]:
        """Tokens (B, N, C), and the map for the next layers of the group; `shared` is that of the
        first, None in the first itself.
        """
        batch, tokens, width = x_bnc.shape
        if shared is None:
            qkv = self.qkv
            operands = [jnp.asarray(x, qkv.dtype) for x in (x_bnc, qkv.kernel, qkv.bias)]
            query, key, value = project_heads(self.heads, *operands)  # each (B, N, H, D)
            shared, kind = share(query, key), "attention"
        else:
            heads = (self.heads, width // self.heads)
            value, kind = self.value(x_bnc).reshape(batch, tokens, *heads), "shared_attention"
        if record.wants("attention"):
            record.save("attention", f"{name}/{kind}", shared.weights)
        return self.proj(shared.attend(value).reshape(x_bnc.shape)), shared


class SharingBlock(nnx.Module):
    """Pre-norm transformer block of a group that shares its attention maps."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        drop: DropRates,
        *,
        reuses_map: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.drop = drop
        self.norm1 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = SharedAttention(
            width, heads, reuses_map=reuses_map, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(width, dtype=dtype, rngs=rngs)
        hidden = int(width * mlp_ratio)
        self.mlp = MLP(width, hidden, drop, init=deit_init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_bnc: jax.Array,
        shared: SharedMap | None,
        key: jax.Array | None,
        record: Recorder,
        name: str,
    ) -> tuple[jax.Array, SharedMap]:
        path1_key, path2_key = split_key(key, 2)
        branch, shared = self.attention(self.norm1(x_bnc), shared, record, name)
        x_bnc = x_bnc + stochastic_depth(branch, self.drop.path, path1_key)
        x_bnc = mlp_branch(x_bnc, self.norm2, self.mlp, self.drop, key=None, path_key=path2_key)
        record.save("blocks", f"{name}/tokens", x_bnc)
        return x_bnc, shared
