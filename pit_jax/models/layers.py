"""The parts every transformer here is made of.

Letters: B batch, N tokens, C channels, H heads, D head width. Modules hold parameters only:
randomness comes in as a key through the call (no key: evaluation mode), intermediates go out
through a `Recorder`. Parameters are float32; `dtype` is what the arithmetic runs in.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.errors import suggestion
from pit_jax.models.initializers import LinearInit, constant
from pit_jax.ops import branch_middle, branch_tpu
from pit_jax.ops.attention import (
    attention_weights,
    projected_heads,
    self_attention,
    weighted_values,
)
from pit_jax.ops.branch import Branch, residual_branch
from pit_jax.ops.gelu import gelu
from pit_jax.ops.layer_norm import EPSILON, LayerNorm
from pit_jax.ops.linear import Linear

# What a model gives: logits (B, K), or in training those of both heads of a distilled one.
Logits = jax.Array | tuple[jax.Array, jax.Array]


def linear(
    in_features: int, out_features: int, *, init: LinearInit, dtype: DTypeLike, rngs: nnx.Rngs
) -> Linear:
    """A linear layer with bias, initialised by its fan-in."""
    kernel_init, bias_init = init(in_features)
    return Linear(
        in_features,
        out_features,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> LayerNorm:
    """LayerNorm as the published weights expect it, epsilon 1e-6."""
    ones, zeros = constant(1.0), constant(0.0)
    return LayerNorm(
        features, epsilon=EPSILON, scale_init=ones, bias_init=zeros, dtype=dtype, rngs=rngs
    )


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each value with probability `rate` and rescales the rest; identity without a key."""
    return _drop(x, rate, key, x.shape)


def stochastic_depth(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Drops a residual branch (B, ...) for whole examples with probability `rate`, rescaling those
    kept.
    """
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: jax.Array, rate: float, key: jax.Array | None, mask_shape: Sequence[int]) -> jax.Array:
    if key is None or rate == 0.0:
        return x
    keep = 1.0 - rate
    mask = jax.random.bernoulli(key, keep, mask_shape)
    return jnp.where(mask, x / keep, jnp.zeros_like(x))


def split_key(key: jax.Array | None, count: int, *, needed: bool) -> list[jax.Array | None]:
    """`count` independent keys, or as many Nones where nothing random is `needed`.

    Raises:
      ValueError: no key where one is needed.
    """
    if not needed:
        return [None] * count
    if key is None:
        raise ValueError(
            "train=True with dropout or stochastic depth needs key=jax.random.key(seed)"
        )
    return list(jax.random.split(key, count))


def check_images(images: jax.Array, expected: tuple[int, int, int]) -> None:
    """Refuses images that are not (B, H, W, channels) as `expected`, or not floating point."""
    if images.ndim != 4 or images.shape[1:] != expected:
        channels_first = images.ndim == 4 and images.shape[1] == expected[2]
        hint = ", which looks channels-first: transpose to channels-last" if channels_first else ""
        if images.shape == expected:
            hint = ": add a batch axis, images[None]"
        raise ValueError(
            f"expected images of shape (batch, {', '.join(map(str, expected))}), found "
            f"{images.shape}{hint}; another size needs a model with image_size=(height, width)"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"expected normalised floating-point images, found {images.dtype}: scale to [0, 1], "
            "subtract the mean and divide by the standard deviation first"
        )


class FeatureInfo(NamedTuple):
    """One map of a model's `features`: its stride in image pixels, its channels, its height and
    width.
    """

    stride: int
    channels: int
    grid: tuple[int, int]


class Recorder:
    """Collects the intermediates a caller asked for; those not asked for cost nothing.

    Args:
      requested: the kinds to keep, e.g. ("attention", "stages").
      available: every kind the model can give.

    Raises:
      ValueError: a kind the model does not have.
    """

    def __init__(self, requested: Iterable[str], available: Sequence[str]):
        self.requested = frozenset([requested] if isinstance(requested, str) else requested)
        self.values: dict[str, jax.Array] = {}
        for kind in sorted(self.requested - set(available)):
            raise ValueError(
                f"cannot capture {kind!r}{suggestion(kind, available)}; there are "
                f"{', '.join(available)}"
            )

    def wants(self, kind: str) -> bool:
        return kind in self.requested

    def save(self, kind: str, name: str, value: jax.Array) -> None:
        if self.wants(kind):
            self.values[name] = value


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropRates:
    """Probabilities in [0, 1): `features` after projections, `attention` on attention maps, `path`
    of a branch.
    """

    features: float = 0.0
    attention: float = 0.0
    path: float = 0.0


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
        self.qkv = linear(width, 3 * width, init=init, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_bnc: jax.Array, key: jax.Array | None, record: Recorder, name: str
    ) -> jax.Array:
        batch, tokens, width = x_bnc.shape
        operands = [jnp.asarray(x, self.qkv.dtype) for x in (x_bnc, self.qkv.kernel, self.qkv.bias)]

        drop_key, map_key = (None, None) if key is None else jax.random.split(key)
        drops_map = map_key is not None and self.drop.attention > 0
        if drops_map or record.wants("attention"):
            query, keys, value = projected_heads(self.heads, *operands)  # each (B, N, H, D)
            weights = attention_weights(query, keys)
            record.save("attention", f"{name}/attention", weights)
            mixed = weighted_values(dropout(weights, self.drop.attention, map_key), value)
        else:
            mixed = self_attention(self.heads, *operands)
        out = self.proj(mixed.reshape(batch, tokens, width))
        return dropout(out, self.drop.features, drop_key)


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
        self.fc1 = linear(width, hidden, init=init, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x_bnc: jax.Array, key: jax.Array | None) -> jax.Array:
        hidden_key, out_key = (None, None) if key is None else jax.random.split(key)
        hidden = gelu(self.fc1(x_bnc))
        hidden = dropout(hidden, self.drop.features, hidden_key)
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
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, drop, init=init, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, int(width * mlp_ratio), drop, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_bnc: jax.Array, key: jax.Array | None, record: Recorder, name: str
    ) -> jax.Array:
        # The two branches are dropped independently, at the same rate.
        keys = (None,) * 4 if key is None else tuple(jax.random.split(key, 4))
        x_bnc = self._attend(x_bnc, keys[0], keys[1], record, name)
        x_bnc = self._mix(x_bnc, keys[2], keys[3])
        record.save("blocks", f"{name}/tokens", x_bnc)
        return x_bnc

    def _attend(
        self,
        x_bnc: jax.Array,
        key: jax.Array | None,
        path_key: jax.Array | None,
        record: Recorder,
        name: str,
    ) -> jax.Array:
        def parts(x_bnc: jax.Array) -> jax.Array:
            branch = self.attention(self.norm1(x_bnc), key, record, name)
            return x_bnc + stochastic_depth(branch, self.drop.path, path_key)

        drops = key is not None and (self.drop.features > 0 or self.drop.attention > 0)
        if drops or record.wants("attention") or type(self.attention) is not Attention:
            return parts(x_bnc)
        layers = (self.norm1, self.attention.qkv, self.attention.proj)
        middle = branch_middle.Attention(self.attention.heads)
        return self._fused_or(parts, middle, x_bnc, layers, path_key)

    def _mix(
        self, x_bnc: jax.Array, key: jax.Array | None, path_key: jax.Array | None
    ) -> jax.Array:
        def parts(x_bnc: jax.Array) -> jax.Array:
            branch = self.mlp(self.norm2(x_bnc), key)
            return x_bnc + stochastic_depth(branch, self.drop.path, path_key)

        if (key is not None and self.drop.features > 0) or type(self.mlp) is not MLP:
            return parts(x_bnc)
        layers = (self.norm2, self.mlp.fc1, self.mlp.fc2)
        return self._fused_or(parts, branch_middle.Gelu(), x_bnc, layers, path_key)

    def _fused_or(
        self,
        parts: Branch,
        middle: branch_middle.Middle,
        x_bnc: jax.Array,
        layers: tuple[LayerNorm, Linear, Linear],
        path_key: jax.Array | None,
    ) -> jax.Array:
        """The branch of a layer norm and two linear layers, in one kernel where that is faster."""
        norm, first, second = layers

        def fused(x_bnc: jax.Array) -> jax.Array:
            linear = (first.kernel, first.bias, second.kernel, second.bias)
            weights = (jnp.asarray(weight[...], x_bnc.dtype) for weight in linear)
            keep = stochastic_depth(jnp.ones(len(x_bnc), jnp.float32), self.drop.path, path_key)
            operands = branch_tpu.Weights(norm.scale[...], norm.bias[...], *weights)
            return branch_tpu.add_branch(middle, x_bnc, keep, operands)

        # Whatever else has been put in their place computes what it computes.
        known = type(norm) is LayerNorm and type(first) is Linear and type(second) is Linear
        if not known or norm.epsilon != EPSILON:
            return parts(x_bnc)
        pays = x_bnc.dtype == first.dtype and branch_tpu.pays(middle, x_bnc, first.out_features)
        return residual_branch(x_bnc, parts=parts, fused=fused, pays=pays)
