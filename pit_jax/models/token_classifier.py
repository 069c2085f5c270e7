"""The network around the blocks that PiT and ViT share, from images to the logits of class tokens.

Letters: B batch, H W map height and width, N tokens, T class-type tokens (1, or 2 when distilled),
C channels, K classes.
"""

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.config import ModelConfig
from pit_jax.models.initializers import LinearInit
from pit_jax.models.interface import FeatureInfo, Logits, check_images
from pit_jax.models.layers import LayerNorm, Linear
from pit_jax.models.stochastic import DropRates, split_key, training_key


class TokenConfig(ModelConfig, Protocol):
    """The fields and properties of a configuration that this network reads."""

    @property
    def distilled(self) -> bool: ...
    @property
    def class_tokens(self) -> int: ...
    @property
    def dropout_rate(self) -> float: ...
    @property
    def attention_dropout_rate(self) -> float: ...
    @property
    def drop_path_rates(self) -> tuple[float, ...]: ...


class TokenClassifier(nnx.Module):
    """A transformer with a class token, and a distillation token when distilled.

    A family sets `config` and `dtype` first, then its own parts, and calls `_add_heads` last.
    """

    # Kinds of intermediates that `capture=` accepts.
    captures: ClassVar[tuple[str, ...]]

    config: TokenConfig
    dtype: DTypeLike
    embedding: nnx.Module
    norm: LayerNorm
    head: Linear
    head_distillation: Linear

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
        # The patches are not normalised: nothing reads them any more.
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

    def _embed(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> tuple[jax.Array, jax.Array | None, list[jax.Array | None]]:
        """The images' embedding (B, H, W, C), the key of its dropout, and one key per block."""
        config = self.config
        check_images(images, (*config.image_size, config.in_channels))
        rates = (config.dropout_rate, config.attention_dropout_rate, config.drop_path_rate)
        key = training_key(key, train=train, random=any(rates))
        embedding_key, *block_keys = split_key(key, 1 + len(config.drop_path_rates))
        maps_bhwc = self.embedding(images.astype(self.dtype))
        record.save("embedding", "embedding", maps_bhwc)
        return maps_bhwc, embedding_key, block_keys

    def _add_heads(self, *, init: LinearInit, rngs: nnx.Rngs) -> None:
        config, width, dtype = self.config, self.config.widths[-1], self.dtype
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        if config.num_classes:
            self.head = Linear(width, config.num_classes, init=init, dtype=dtype, rngs=rngs)
            if config.distilled:
                self.head_distillation = Linear(
                    width, config.num_classes, init=init, dtype=dtype, rngs=rngs
                )

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


def block_rates(config: TokenConfig) -> list[DropRates]:
    """Drop probabilities of every block."""
    return [
        DropRates(features=config.dropout_rate, attention=config.attention_dropout_rate, path=path)
        for path in config.drop_path_rates
    ]
