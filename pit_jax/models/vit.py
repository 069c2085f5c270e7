"""ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021): the network PiT pools.

Letters: B batch, H W patches down and across, N = T + H*W tokens, T class-type tokens (1, or 2 when
distilled), C channels, K classes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.config import ViTConfig
from pit_jax.models.initializers import deit_init, normal, torch_default_init
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
CAPTURES = ("embedding", "blocks", "attention", "pre_logits")

# Of the class tokens and the positions.
token_init = normal(0.02)


class PatchEmbedding(nnx.Module):
    """Patches side by side, each projected to a token: a convolution whose stride is its size.

    DeiT leaves this one layer at PyTorch's default initialisation.
    """

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        patch = config.patch_size
        kernel_init, bias_init = torch_default_init(config.in_channels * patch * patch)
        self.conv = nnx.Conv(
            config.in_channels,
            config.width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.conv(images)  # (B, H, W, C)


class ViT(nnx.Module):
    """Vision transformer with a class token, and DeiT's distillation token when distilled.

    Unlike in PiT, positions are a sequence with entries for the class tokens too, and the
    distillation token is a parameter of its own.

    Args:
      config: the architecture.
      dtype: what the arithmetic runs in; parameters, softmax, normalisation statistics and logits
        are float32.
      rngs: source of the initial parameters.
    """

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.embedding = PatchEmbedding(config, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(token_init(rngs.params(), (1, 1, config.width)))
        if config.distilled:
            self.distillation_token = nnx.Param(token_init(rngs.params(), (1, 1, config.width)))
        height, width = config.grids[0]
        tokens = config.class_tokens + height * width
        self.position = nnx.Param(token_init(rngs.params(), (1, tokens, config.width)))
        for index, path in enumerate(config.drop_path_rates):
            drop = DropRates(
                features=config.dropout_rate, attention=config.attention_dropout_rate, path=path
            )
            block = Block(
                config.width,
                config.heads,
                config.mlp_ratio,
                drop,
                init=deit_init,
                dtype=dtype,
                rngs=rngs,
            )
            setattr(self, f"block{index}", block)
        self.norm = layer_norm(config.width, dtype=dtype, rngs=rngs)
        if config.num_classes:
            head = functools.partial(linear, init=deit_init, dtype=dtype, rngs=rngs)
            self.head = head(config.width, config.num_classes)
            if config.distilled:
                self.head_distillation = head(config.width, config.num_classes)

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
            (B, heads, N, N) in float32, before dropout; "pre_logits", the normalised class tokens
            (B, T, C).

        Returns:
          Logits (B, K) in float32; distilled models give the mean of their two heads' logits, and
          in training the pair (class logits, distillation logits). With `num_classes=0` the class
          token's features (B, C) take the place of logits. With `capture`, (logits, dict of named
          intermediates), e.g. "block3/attention".

        Raises:
          ValueError: images of another rank, size, channel count or an integer dtype; an unknown
            intermediate; no key where one is needed.
        """
        record = Recorder(capture, CAPTURES)
        x_bnc = self._encode(images, train, key, record)
        # Only the class tokens are read, so only they are normalised.
        tokens_btc = self.norm(x_bnc[:, : self.config.class_tokens])
        record.save("pre_logits", "pre_logits", tokens_btc)
        logits = self._classify(tokens_btc, train)
        return (logits, record.values) if record.requested else logits

    def features(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """The un-normalised patches after the last block as a map, {stride: (B, H, W, C)}."""
        config = self.config
        x_bnc = self._encode(images, train, key, Recorder((), CAPTURES))
        patches = x_bnc[:, config.class_tokens :]
        shape = (images.shape[0], *config.grids[0], config.width)
        return {config.patch_size: patches.reshape(shape)}

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Stride, channels and grid of the map of `features`."""
        config = self.config
        return (FeatureInfo(config.patch_size, config.width, config.grids[0]),)

    def _encode(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> jax.Array:
        """Tokens (B, N, C) after the last block: class, distillation, patches row by row."""
        config = self.config
        check_images(images, (*config.image_size, config.in_channels))
        rates = (config.dropout_rate, config.attention_dropout_rate, config.drop_path_rate)
        embedding_key, *block_keys = split_key(
            key if train else None, 1 + config.depth, needed=train and any(rates)
        )
        maps_bhwc = self.embedding(images.astype(self.dtype))
        record.save("embedding", "embedding", maps_bhwc)
        batch, height, width, channels = maps_bhwc.shape
        tokens = [self.class_token]
        if config.distilled:
            tokens.append(self.distillation_token)
        x_bnc = jnp.concatenate(
            [
                *(
                    jnp.broadcast_to(t[...].astype(self.dtype), (batch, 1, channels))
                    for t in tokens
                ),
                maps_bhwc.reshape(batch, height * width, channels),
            ],
            axis=1,
        )
        x_bnc = x_bnc + self.position[...].astype(self.dtype)
        x_bnc = dropout(x_bnc, config.dropout_rate, embedding_key)
        for index, block_key in enumerate(block_keys):
            x_bnc = getattr(self, f"block{index}")(x_bnc, block_key, record, f"block{index}")
        return x_bnc

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
