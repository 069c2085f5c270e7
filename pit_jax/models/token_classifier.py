"""What PiT and ViT share: the network around the blocks, from images to the logits of class tokens.

Letters: B batch, H W map height and width, N tokens, T class-type tokens (1, or 2 when distilled),
C channels, K classes.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.initializers import LinearInit
from pit_jax.models.layers import (
    DropRates,
    FeatureInfo,
    Logits,
    Recorder,
    check_images,
    layer_norm,
    linear,
    split_key,
)
from pit_jax.models.pit.config import PiTConfig
from pit_jax.models.vit.config import ViTConfig


class TokenClassifier(nnx.Module):
    """A transformer with a class token, and a distillation token when distilled; families fill in
    the parts.

    A family sets `config` and `dtype` first and calls `_add_heads` last.
    """

    # What `capture=` can ask for.
    captures: ClassVar[tuple[str, ...]]

    config: PiTConfig | ViTConfig
    dtype: DTypeLike
    embedding: nnx.Module
    norm: nnx.LayerNorm
    head: nnx.Linear
    head_distillation: nnx.Linear

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
          capture: intermediates to return as well, of the family's `CAPTURES`: "embedding" (B, H,
            W, C); "blocks", every block's tokens (B, N, C), class tokens first; "attention", every
            block's post-softmax map (B, heads, N, N) in float32, before dropout; in PiT "stages",
            every stage's class tokens (B, T, C) and map (B, H, W, C), not normalised; "pre_logits",
            the normalised class tokens (B, T, C).

        Returns:
          Logits (B, K) in float32; distilled models give the mean of their two heads' logits, and
          in training the pair (class logits, distillation logits). With `num_classes=0` the class
          token's features (B, C) take the place of logits. With `capture`, (logits, dict of named
          intermediates), e.g. PiT's "stage1/block3/attention", ViT's "block3/attention".

        Raises:
          ValueError: images of another rank, size, channel count or an integer dtype; an unknown
            intermediate; no key where one is needed.
        """
        record = Recorder(capture, self.captures)
        # Only the class tokens are read, so only they are normalised.
        tokens_btc = self.norm(self._class_tokens(images, train, key, record))
        record.save("pre_logits", "pre_logits", tokens_btc)
        logits = self._classify(tokens_btc, train)
        return (logits, record.values) if record.requested else logits

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Stride, channels and grid of every map of `features`, finest first."""
        config = self.config
        return tuple(map(FeatureInfo, config.strides, config.widths, config.grids))

    def _class_tokens(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> jax.Array:
        """Class tokens (B, T, C) after the last block, not normalised."""
        raise NotImplementedError

    def _prepare(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> tuple[jax.Array, list[jax.Array | None]]:
        """The images' embedding (B, H, W, C), and keys: of its dropout, then of every block."""
        config = self.config
        check_images(images, (*config.image_size, config.in_channels))
        rates = (config.dropout_rate, config.attention_dropout_rate, config.drop_path_rate)
        blocks = len(config.drop_path_rates)
        keys = split_key(key if train else None, 1 + blocks, needed=train and any(rates))
        maps_bhwc = self.embedding(images.astype(self.dtype))
        record.save("embedding", "embedding", maps_bhwc)
        return maps_bhwc, keys

    def _add_heads(self, *, init: LinearInit, rngs: nnx.Rngs) -> None:
        config, width = self.config, self.config.widths[-1]
        self.norm = layer_norm(width, dtype=self.dtype, rngs=rngs)
        if config.num_classes:
            head = functools.partial(linear, init=init, dtype=self.dtype, rngs=rngs)
            self.head = head(width, config.num_classes)
            if config.distilled:
                self.head_distillation = head(width, config.num_classes)

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


def block_rates(config: PiTConfig | ViTConfig) -> list[DropRates]:
    """Drop probabilities of every block."""
    return [
        DropRates(features=config.dropout_rate, attention=config.attention_dropout_rate, path=path)
        for path in config.drop_path_rates
    ]
