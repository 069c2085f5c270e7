"""The layers that every transformer here is made of, up to the block.

Letters: B batch, N tokens, C channels, H heads, D head width. Modules hold parameters only:
randomness comes in as a key through the call (no key: evaluation mode), intermediates go out
through a `Recorder`. Parameters are float32; `dtype` is that of the arithmetic.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.initializers import LinearInit, constant, torch_default_init
from pit_jax.models.stochastic import DropRates, dropout, split_key, stochastic_depth
from pit_jax.ops import branch
from pit_jax.ops.attention import (
    attention_weights,
    project_heads,
    self_attention,
    weighted_values,
)
from pit_jax.ops.branch import DropPath, Fusible, Weights, residual_branch
from pit_jax.ops.gelu import gelu
from pit_jax.ops.layer_norm import EPSILON, layer_norm
from pit_jax.ops.linear import linear
from pit_jax.ops.patches import embed_patches


class Linear(nnx.Linear):
    """flax's linear layer with a bias, computed by `ops.linear` and initialised by its fan-in."""

    bias: nnx.Param[jax.Array]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init: LinearInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init = init(in_features)
        super().__init__(
            in_features,
            out_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """(..., C) to (..., D), in the layer's dtype."""
        del out_sharding  # for meshes with explicit axes, which this package does not use
        operands = (inputs, self.kernel[...], self.bias[...])
        return linear(*(jnp.asarray(operand, self.dtype) for operand in operands))


class LayerNorm(nnx.LayerNorm):
    """flax's layer norm with scale and bias, computed by `ops.layer_norm`; epsilon is that of the
    published weights.
    """

    scale: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]

    def __init__(self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            features,
            epsilon=EPSILON,
            scale_init=constant(1.0),
            bias_init=constant(0.0),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """(..., C) to the same, in the layer's dtype."""
        if mask is not None:
            raise ValueError("this normalisation takes no mask: use flax.nnx.LayerNorm")
        x = jnp.asarray(x, self.dtype)
        return layer_norm(x, self.scale[...], self.bias[...], epsilon=self.epsilon)


class PatchProjection(nnx.Conv):
    """flax's convolution of square patches without padding, computed by `ops.patches` and
    initialised by PyTorch's default, in every family.
    """

    bias: nnx.Param[jax.Array]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        patch: int,
        stride: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init = torch_default_init(in_features * patch * patch)
        super().__init__(
            in_features,
            out_features,
            (patch, patch),
            strides=stride,
            padding="VALID",
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.stride = stride

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Images (B, H, W, C) to maps (B, h, w, D), in the layer's dtype."""
        del out_sharding
        operands = (inputs, self.kernel[...], self.bias[...])
        images, kernel, bias = (jnp.asarray(operand, self.dtype) for operand in operands)
        return embed_patches(images, kernel, bias, stride=self.stride)


class Attention(nnx.Module):
    """Multi-head self-attention; one fused projection gives all of q, then k, then v."""

    def __init__(
        self,
        width: int,
        heads: int,
        drop: DropRates,
        *,
        init: LinearInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.drop = drop
        self.qkv = Linear(width, 3 * width, init=init, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_bnc: jax.Array, key: jax.Array | None, record: Recorder, name: str
    ) -> jax.Array:
        operands = [jnp.asarray(x, self.qkv.dtype) for x in (x_bnc, self.qkv.kernel, self.qkv.bias)]
        out_key, map_key = split_key(key, 2)
        # The fused lowerings of attention neither drop entries of the map nor return it.
        drops_map = map_key is not None and self.drop.attention > 0
        if drops_map or record.wants("attention"):
            query, keys, value = project_heads(self.heads, *operands)  # each (B, N, H, D)
            weights = attention_weights(query, keys)  # (B, H, N, N)
            record.save("attention", f"{name}/attention", weights)
            mixed = weighted_values(dropout(weights, self.drop.attention, map_key), value)
        else:
            mixed = self_attention(self.heads, *operands)
        out = self.proj(mixed.reshape(x_bnc.shape))  # (B, N, H, D) to (B, N, C)
        return dropout(out, self.drop.features, out_key)


class MLP(nnx.Module):
    """Two linear layers around the exact GELU; jax.nn.gelu's default tanh form is off by up to
    5e-4.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        drop: DropRates,
        *,
        init: LinearInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.drop = drop
        self.fc1 = Linear(width, hidden, init=init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x_bnc: jax.Array, key: jax.Array | None) -> jax.Array:
        hidden_key, out_key = split_key(key, 2)
        hidden = dropout(gelu(self.fc1(x_bnc)), self.drop.features, hidden_key)
        return dropout(self.fc2(hidden), self.drop.features, out_key)


class Block(nnx.Module):
    """Pre-norm transformer block: attention, then MLP, each a residual branch under stochastic
    depth.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        drop: DropRates,
        *,
        init: LinearInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.drop = drop
        self.norm1 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, drop, init=init, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, int(width * mlp_ratio), drop, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_bnc: jax.Array, key: jax.Array | None, record: Recorder, name: str
    ) -> jax.Array:
        # The two branches are dropped independently, at the same rate.
        attention_key, path1_key, mlp_key, path2_key = split_key(key, 4)
        drop_path1 = functools.partial(stochastic_depth, rate=self.drop.path, key=path1_key)

        def attend(x_bnc: jax.Array) -> jax.Array:
            return x_bnc + drop_path1(
                self.attention(self.norm1(x_bnc), attention_key, record, name)
            )

        # As written above, or in one TPU kernel where that is faster.
        fusible = None if record.wants("attention") else self._fusible_attention(key, drop_path1)
        x_bnc = residual_branch(x_bnc, attend, fusible)
        x_bnc = mlp_branch(x_bnc, self.norm2, self.mlp, self.drop, key=mlp_key, path_key=path2_key)
        record.save("blocks", f"{name}/tokens", x_bnc)
        return x_bnc

    def _fusible_attention(self, key: jax.Array | None, drop_path: DropPath) -> Fusible | None:
        drops = key is not None and (self.drop.features > 0 or self.drop.attention > 0)
        if drops or type(self.attention) is not Attention:
            return None
        attention = branch.Attention(self.attention.heads)
        return _fusible(self.norm1, self.attention.qkv, attention, self.attention.proj, drop_path)


def mlp_branch(
    x_bnc: jax.Array,
    norm: LayerNorm,
    mlp: MLP,
    drop: DropRates,
    *,
    key: jax.Array | None,
    path_key: jax.Array | None,
) -> jax.Array:
    """The second residual branch of a block, x + mlp(norm(x)) under stochastic depth, in one TPU
    kernel where that is faster.

    Args:
      x_bnc: tokens (B, N, C).
      norm: of the branch.
      mlp: of the branch.
      drop: rates of the block.
      key: for dropout inside of the MLP.
      path_key: for dropping the branch.
    """
    drop_path = functools.partial(stochastic_depth, rate=drop.path, key=path_key)

    def transform(x_bnc: jax.Array) -> jax.Array:
        return x_bnc + drop_path(mlp(norm(x_bnc), key))

    drops = key is not None and drop.features > 0
    fusible = None
    if not drops and type(mlp) is MLP:
        fusible = _fusible(norm, mlp.fc1, branch.Gelu(), mlp.fc2, drop_path)
    return residual_branch(x_bnc, transform, fusible)


def _fusible(
    norm: nnx.Module,
    first: nnx.Module,
    middle: branch.Middle,
    second: nnx.Module,
    drop_path: DropPath,
) -> Fusible | None:
    """A branch of these layers for a kernel; None if any was replaced, because replaced layers,
    subclasses included, run their own code.
    """
    if type(norm) is not LayerNorm or type(first) is not Linear or type(second) is not Linear:
        return None
    weights = Weights(
        scale=norm.scale[...],
        shift=norm.bias[...],
        kernel_in=first.kernel[...],
        bias_in=first.bias[...],
        kernel_out=second.kernel[...],
        bias_out=second.bias[...],
    )
    return Fusible(middle, weights, norm.epsilon, first.dtype, drop_path)
