"""PiT: a vision transformer whose token grid shrinks as its channels grow (Heo et al., ICCV 2021).

Reads in the order of the paper: patch embedding, token pooling, stage, network.
Letters: B batch, H W map height and width, N = T + H*W tokens, T class-type tokens (1, or 2 when
distilled), C channels, K classes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models import pooling
from pit_jax.models.config import PiTConfig
from pit_jax.models.initializers import normal, torch_default_init
from pit_jax.models.layers import (
    Block,
    DropRates,
    FeatureInfo,
    Logits,
    Recorder,
    check_images,
    dropout,
    layer_norm,
    linear,
    split_key,
)

# What `capture=` can ask for, and the names under which it comes back.
CAPTURES = ("embedding", "blocks", "attention", "stages", "pre_logits")

# Of the class token and the map of positions; everything else starts as PyTorch does by default.
token_init = normal(0.02)


class PatchEmbedding(nnx.Module):
    """Overlapping patches by one convolution, plus a learned map of positions."""

    def __init__(self, config: PiTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        patch = config.patch_size
        kernel_init, bias_init = torch_default_init(config.in_channels * patch * patch)
        self.conv = nnx.Conv(
            config.in_channels,
            config.widths[0],
            (patch, patch),
            strides=config.stride,
            padding="VALID",
            kernel_init=kernel_init,
            bias_init=bias_init,
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
    """Parameters of the depthwise convolution; the arithmetic is `pooling.depthwise_pool`."""

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
    """Between stages: halves the grid and widens the channels; class tokens only widen.

    The class tokens have no place on the grid, so they travel beside the map and only change width
    here.
    """

    def __init__(self, width: int, out_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = DepthwisePool(width, out_width, dtype=dtype, rngs=rngs)
        self.fc = linear(width, out_width, init=torch_default_init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens_btc: jax.Array, maps_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.fc(tokens_btc), self.conv(maps_bhwc)


class Stage(nnx.Module):
    """Blocks `block0`, `block1`, ... on the sequence [class tokens, map in row-major order]."""

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
        class_tokens = tokens_btc.shape[1]
        x_bnc = jnp.concatenate(
            [tokens_btc, maps_bhwc.reshape(batch, height * width, channels)], axis=1
        )
        for index, key in enumerate(keys):
            x_bnc = getattr(self, f"block{index}")(x_bnc, key, record, f"{name}/block{index}")
        tokens_btc, flat = x_bnc[:, :class_tokens], x_bnc[:, class_tokens:]
        return tokens_btc, flat.reshape(batch, height, width, channels)


class PiT(nnx.Module):
    """Pooling-based vision transformer.

    Args:
      config: the architecture.
      dtype: what the arithmetic runs in; parameters, softmax, normalisation statistics and logits
        are float32.
      rngs: source of the initial parameters.
    """

    def __init__(self, config: PiTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.embedding = PatchEmbedding(config, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(
            token_init(rngs.params(), (1, config.class_tokens, config.widths[0]))
        )
        drops = [
            DropRates(
                features=config.dropout_rate, attention=config.attention_dropout_rate, path=path
            )
            for path in config.drop_path_rates
        ]
        for index, (width, depth, heads) in enumerate(
            zip(config.widths, config.depths, config.heads, strict=True)
        ):
            if index:
                pool = TokenPooling(config.widths[index - 1], width, dtype=dtype, rngs=rngs)
                setattr(self, f"pool{index - 1}", pool)
            stage = Stage(width, heads, config.mlp_ratio, drops[:depth], dtype=dtype, rngs=rngs)
            setattr(self, f"stage{index}", stage)
            drops = drops[depth:]
        self.norm = layer_norm(config.widths[-1], dtype=dtype, rngs=rngs)
        if config.num_classes:
            head = functools.partial(linear, init=torch_default_init, dtype=dtype, rngs=rngs)
            self.head = head(config.widths[-1], config.num_classes)
            if config.distilled:
                self.head_distillation = head(config.widths[-1], config.num_classes)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        capture: tuple[str, ...] = (),
    ) -> Any:
        """Classifies a batch of normalised images.

        Args:
          images: (B, H, W, 3), floating, normalised with the ImageNet mean and standard deviation.
          train: turns dropout and stochastic depth on; distilled models then return both heads'
            logits.
          key: a JAX random key, needed when `train` and any rate is above zero.
          capture: intermediates to return as well, of `CAPTURES`: "embedding" (B, H, W, C);
            "blocks", every block's tokens (B, N, C); "attention", every block's post-softmax map
            (B, heads, N, N) in float32, before dropout; "stages", every stage's class tokens (B, T,
            C) and map (B, H, W, C), not normalised; "pre_logits", the normalised class tokens (B,
            T, C).

        Returns:
          Logits (B, K) in float32; distilled models give the mean of their two heads' logits, and
          in training the pair (class logits, distillation logits). With `num_classes=0` the class
          token's features (B, C) take the place of logits. With `capture`, (logits, dict of named
          intermediates), e.g. "stage1/block3/attention".

        Raises:
          ValueError: images of another rank, size, channel count or an integer dtype; an unknown
            intermediate; no key where one is needed.
        """
        record = Recorder(capture, CAPTURES)
        tokens_btc, _ = self._encode(images, train, key, record)
        tokens_btc = self.norm(tokens_btc)
        record.save("pre_logits", "pre_logits", tokens_btc)
        logits = self._classify(tokens_btc, train)
        return (logits, record.values) if record.requested else logits

    def features(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Un-normalised map of every stage, {stride: (B, H, W, C)}, for use as a backbone."""
        _, maps = self._encode(images, train, key, Recorder((), CAPTURES))
        return dict(zip(self.config.strides, maps, strict=True))

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Stride, channels and grid of every map of `features`, finest first."""
        config = self.config
        return tuple(
            FeatureInfo(stride, channels, grid)
            for stride, channels, grid in zip(
                config.strides, config.widths, config.grids, strict=True
            )
        )

    def _encode(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Class tokens (B, T, C) after the last stage, and every stage's map (B, H, W, C)."""
        config = self.config
        check_images(images, (*config.image_size, config.in_channels))
        rates = (config.dropout_rate, config.attention_dropout_rate, config.drop_path_rate)
        embedding_key, *block_keys = split_key(
            key if train else None, 1 + sum(config.depths), needed=train and any(rates)
        )
        maps_bhwc = self.embedding(images.astype(self.dtype))
        record.save("embedding", "embedding", maps_bhwc)
        maps_bhwc = dropout(maps_bhwc, config.dropout_rate, embedding_key)
        class_token = self.class_token[...].astype(self.dtype)
        tokens_btc = jnp.broadcast_to(class_token, (images.shape[0], *class_token.shape[1:]))

        maps = []
        for index, depth in enumerate(config.depths):
            if index:
                tokens_btc, maps_bhwc = getattr(self, f"pool{index - 1}")(tokens_btc, maps_bhwc)
            keys, block_keys = block_keys[:depth], block_keys[depth:]
            tokens_btc, maps_bhwc = getattr(self, f"stage{index}")(
                tokens_btc, maps_bhwc, keys, record, f"stage{index}"
            )
            record.save("stages", f"stage{index}/tokens", tokens_btc)
            record.save("stages", f"stage{index}/map", maps_bhwc)
            maps.append(maps_bhwc)
        return tokens_btc, maps

    def _classify(self, tokens_btc: jax.Array, train: bool) -> Logits:
        config = self.config
        outputs = [tokens_btc[:, index] for index in range(config.class_tokens)]
        if config.num_classes:
            heads = [self.head, self.head_distillation] if config.distilled else [self.head]
            outputs = [head(token) for head, token in zip(heads, outputs, strict=True)]
        outputs = [output.astype(jnp.float32) for output in outputs]
        if not config.distilled:
            return outputs[0]
        return (outputs[0], outputs[1]) if train else (outputs[0] + outputs[1]) / 2
