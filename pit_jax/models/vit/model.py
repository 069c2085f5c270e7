"""ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021): the network PiT pools.

Letters: B batch, H W patches down and across, N = T + H*W tokens, T class-type tokens (1, or 2 when
distilled), C channels, K classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.initializers import deit_init, normal
from pit_jax.models.layers import Block, PatchProjection
from pit_jax.models.stochastic import dropout
from pit_jax.models.token_classifier import TokenClassifier, block_rates
from pit_jax.models.vit.config import ViTConfig

# Kinds of intermediates that `capture=` accepts.
CAPTURES = ("embedding", "blocks", "attention", "pre_logits")

# For the class tokens and the positions.
token_init = normal(0.02)


class PatchEmbedding(nnx.Module):
    """Projects patches that do not overlap: a convolution whose stride is its window.

    DeiT leaves this one layer at PyTorch's default initialisation.
    """

    def __init__(self, config: ViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = PatchProjection(
            config.in_channels,
            config.width,
            patch=config.patch_size,
            stride=config.patch_size,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.conv(images)  # (B, H, W, C)


class ViT(TokenClassifier):
    """Vision transformer with a class token, and DeiT's distillation token when distilled.

    Unlike in PiT, positions are a sequence with entries for the class tokens too, and the
    distillation token is a parameter of its own.

    Args:
      config: the architecture.
      dtype: of the arithmetic; parameters, softmax, normalisation statistics and logits are
        float32.
      rngs: source of the initial parameters.
    """

    captures = CAPTURES
    config: ViTConfig

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
        for index, drop in enumerate(block_rates(config)):
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
        self._add_heads(init=deit_init, rngs=rngs)

    def features(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Map of the patches after the last block, not normalised, {stride: (B, H, W, C)}."""
        config = self.config
        x_bnc = self._encode(images, train, key, Recorder((), CAPTURES))
        patches = x_bnc[:, config.class_tokens :]
        shape = (images.shape[0], *config.grids[0], config.width)
        return {config.patch_size: patches.reshape(shape)}

    def _class_tokens(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> jax.Array:
        return self._encode(images, train, key, record)[:, : self.config.class_tokens]

    def _encode(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> jax.Array:
        """Tokens (B, N, C) after the last block: class, distillation, patches row by row."""
        config = self.config
        maps_bhwc, embedding_key, block_keys = self._embed(images, train, key, record)
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
