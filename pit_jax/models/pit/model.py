"""PiT: a vision transformer whose token grid shrinks as its channels grow (Heo et al., ICCV 2021).

Reads in the order of the paper: patch embedding, token pooling, stage, network.
Letters: B batch, H W map height and width, N = T + H*W tokens, T class-type tokens (1, or 2 when
distilled), C channels, K classes.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.initializers import normal, torch_default_init
from pit_jax.models.layers import Block, Linear, PatchProjection
from pit_jax.models.pit.config import PiTConfig
from pit_jax.models.stochastic import DropRates, dropout
from pit_jax.models.token_classifier import TokenClassifier, block_rates
from pit_jax.ops import pooling

# Kinds of intermediates that `capture=` accepts.
CAPTURES = ("embedding", "blocks", "attention", "stages", "pre_logits")
# Token axes of the captured sequences.
_TOKEN_AXES = {"blocks": (1,), "attention": (2, 3)}

# For the class token and the map of positions; all other parameters start at PyTorch's default.
token_init = normal(0.02)


class PatchEmbedding(nnx.Module):
    """Overlapping patches by one convolution, plus a learned map of positions."""

    def __init__(self, config: PiTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = PatchProjection(
            config.in_channels,
            config.widths[0],
            patch=config.patch_size,
            stride=config.stride,
            dtype=dtype,
            rngs=rngs,
        )
        self.position = nnx.Param(
            token_init(rngs.params(), (1, *config.grids[0], config.widths[0]))
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        maps = self.conv(images)
        return maps + self.position[...].astype(maps.dtype)


class DepthwisePool(nnx.Module):
    """Depthwise convolution, computed by `pooling.depthwise_pool`: (B, H, W, C) to (B, H/2, W/2,
    out_width).
    """

    def __init__(self, width: int, out_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        kernel_init, bias_init = torch_default_init(pooling.WINDOW**2)
        self.dtype = dtype
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), (pooling.WINDOW, pooling.WINDOW, 1, out_width))
        )
        self.bias = nnx.Param(bias_init(rngs.params(), (out_width,)))

    def __call__(self, maps: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return pooling.depthwise_pool(maps.astype(self.dtype), kernel, bias)


class TokenPooling(nnx.Module):
    """Pooling between stages: halves the grid of the map and widens its channels.

    Class tokens have no place on the grid, so that a linear layer widens them.
    """

    def __init__(self, width: int, out_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = DepthwisePool(width, out_width, dtype=dtype, rngs=rngs)
        self.fc = Linear(width, out_width, init=torch_default_init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens_btc: jax.Array, maps_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.fc(tokens_btc), self.conv(maps_bhwc)


class _ClassTokensFirst(Recorder):
    """Recorder of sequences [map, class tokens] that puts the class tokens first, as the papers do.

    Args:
      record: keeps the values.
      class_tokens: T.
    """

    def __init__(self, record: Recorder, class_tokens: int):
        self.requested, self.values = record.requested, record.values
        self._class_tokens = class_tokens

    def save(self, kind: str, name: str, value: jax.Array) -> None:
        if self.wants(kind):
            axes = _TOKEN_AXES[kind]
            super().save(kind, name, jnp.roll(value, [self._class_tokens] * len(axes), axes))


class Stage(nnx.Module):
    """Blocks `block0`, `block1`, ... on the sequence [map in row-major order, class tokens].

    Blocks do not depend on the order of tokens. Class tokens in front would shift the whole map by
    a place in every stage, which costs TPUs, where tokens lie in lanes, 2 % of a training step.
    Captured sequences have the class tokens in front, as everywhere else.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        drops: list[DropRates],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.depth = len(drops)
        for index, drop in enumerate(drops):
            block = Block(
                width, heads, mlp_ratio, drop, init=torch_default_init, dtype=dtype, rngs=rngs
            )
            setattr(self, f"block{index}", block)

    def __call__(
        self,
        tokens_btc: jax.Array,
        maps_bhwc: jax.Array,
        keys: list[jax.Array | None],
        record: Recorder,
        name: str,
    ) -> tuple[jax.Array, jax.Array]:
        batch, height, width, channels = maps_bhwc.shape
        size = height * width
        x_bnc = jnp.concatenate([maps_bhwc.reshape(batch, size, channels), tokens_btc], axis=1)
        record = _ClassTokensFirst(record, tokens_btc.shape[1])
        for index, key in enumerate(keys):
            x_bnc = getattr(self, f"block{index}")(x_bnc, key, record, f"{name}/block{index}")
        flat, tokens_btc = x_bnc[:, :size], x_bnc[:, size:]
        return tokens_btc, flat.reshape(batch, height, width, channels)


class PiT(TokenClassifier):
    """Pooling-based vision transformer.

    Args:
      config: the architecture.
      dtype: of the arithmetic; parameters, softmax, normalisation statistics and logits are
        float32.
      rngs: source of the initial parameters.
    """

    captures = CAPTURES
    config: PiTConfig

    def __init__(self, config: PiTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.embedding = PatchEmbedding(config, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(
            token_init(rngs.params(), (1, config.class_tokens, config.widths[0]))
        )
        drops = block_rates(config)
        for index, (width, depth, heads) in enumerate(
            zip(config.widths, config.depths, config.heads, strict=True)
        ):
            if index:
                pool = TokenPooling(config.widths[index - 1], width, dtype=dtype, rngs=rngs)
                setattr(self, f"pool{index - 1}", pool)
            stage = Stage(width, heads, config.mlp_ratio, drops[:depth], dtype=dtype, rngs=rngs)
            setattr(self, f"stage{index}", stage)
            drops = drops[depth:]
        self._add_heads(init=torch_default_init, rngs=rngs)

    def features(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Map of every stage, not normalised, {stride: (B, H, W, C)}, for use as a backbone."""
        _, maps = self._encode(images, train, key, Recorder((), CAPTURES))
        return dict(zip(self.config.strides, maps, strict=True))

    def _class_tokens(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> jax.Array:
        return self._encode(images, train, key, record)[0]

    def _encode(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Class tokens (B, T, C) after the last stage, and every stage's map (B, H, W, C)."""
        config = self.config
        maps_bhwc, embedding_key, block_keys = self._embed(images, train, key, record)
        maps_bhwc = dropout(maps_bhwc, config.dropout_rate, embedding_key)
        class_token = self.class_token[...].astype(self.dtype)
        tokens_btc = jnp.broadcast_to(class_token, (images.shape[0], *class_token.shape[1:]))

        keys = iter(block_keys)
        maps = []
        for index, depth in enumerate(config.depths):
            if index:
                tokens_btc, maps_bhwc = getattr(self, f"pool{index - 1}")(tokens_btc, maps_bhwc)
            stage_keys = list(itertools.islice(keys, depth))
            tokens_btc, maps_bhwc = getattr(self, f"stage{index}")(
                tokens_btc, maps_bhwc, stage_keys, record, f"stage{index}"
            )
            record.save("stages", f"stage{index}/tokens", tokens_btc)
            record.save("stages", f"stage{index}/map", maps_bhwc)
            maps.append(maps_bhwc)
        return tokens_btc, maps
