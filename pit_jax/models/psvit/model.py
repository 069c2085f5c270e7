"""PSViT: tokens pooled between stages, attention maps shared inside them (Chen et al. 2021).

Reads in the order of the paper: tokens, token pooling, stages with shared attention (`sharing`),
network. docs/psvit.md lists what the paper leaves open.
Letters: B batch, H W map height and width, N tokens, C channels, K classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.convnet.layers import BatchNorm
from pit_jax.models.initializers import deit_init, normal, torch_default_init
from pit_jax.models.interface import FeatureInfo, check_images
from pit_jax.models.layers import Block, LayerNorm, Linear, PatchProjection
from pit_jax.models.psvit.config import STRIDE, PSViTConfig
from pit_jax.models.psvit.sharing import SharingBlock
from pit_jax.models.stochastic import DropRates, split_key, training_key
from pit_jax.ops.gelu import gelu
from pit_jax.ops.shared_attention import SharedMap

# Kinds of intermediates that `capture=` accepts.
CAPTURES = ("embedding", "blocks", "attention", "stages", "pre_logits", "batch_statistics")

# For the class token and the positions.
token_init = normal(0.02)

_ACTIVATIONS = {"relu": jax.nn.relu, "gelu": gelu, "elu": jax.nn.elu}


class Embedding(nnx.Module):
    """Patches side by side, a class token in front of a sequence, positions: DeiT's, and with 2D
    pooling without the class token.
    """

    def __init__(self, config: PSViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = PatchProjection(
            config.in_channels,
            config.stage_widths[0],
            patch=config.patch_size,
            stride=config.patch_size,
            dtype=dtype,
            rngs=rngs,
        )
        if config.class_tokens:
            shape = (1, config.class_tokens, config.stage_widths[0])
            self.class_token = nnx.Param(token_init(rngs.params(), shape))
        self.position = nnx.Param(token_init(rngs.params(), config.position_shape(0)))

    def __call__(self, images: jax.Array, record: Recorder) -> jax.Array:
        maps_bhwc = self.conv(images)
        record.save("embedding", "embedding", maps_bhwc)
        x_bnc = maps_bhwc.reshape(len(maps_bhwc), -1, maps_bhwc.shape[-1])
        if hasattr(self, "class_token"):
            class_token = self.class_token[...].astype(x_bnc.dtype)
            class_tokens = jnp.broadcast_to(class_token, (len(x_bnc), *class_token.shape[1:]))
            x_bnc = jnp.concatenate([class_tokens, x_bnc], axis=1)
        return x_bnc + as_sequence(self.position[...]).astype(x_bnc.dtype)


def as_sequence(values: jax.Array) -> jax.Array:
    """(1, H, W, C) or (1, N, C) to (1, N, C)."""
    return values.reshape(1, -1, values.shape[-1])


class TokenPooling(nnx.Module):
    """Pooling in front of a stage: widens the tokens, and halves them along their axes.

    In 1D a convolution along the row-major sequence widens them, then max-pooling leaves the larger
    one of two neighbours; an odd one at the end goes. The class token is no neighbour of any patch,
    so that a linear layer widens it, unless `class_pool` is "joint". In 2D one convolution of
    stride 2 does both. The positions of the stage are added behind.
    """

    def __init__(self, config: PSViTConfig, stage: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.stage = config, stage
        width, out_width = config.stage_widths[stage - 1 : stage + 1]
        axes = 1 if config.pooling == "1d" else 2
        window = (config.pool_kernel,) * axes
        margins = [(config.pool_margin,) * 2] * axes
        kernel_init, bias_init = torch_default_init(config.pool_kernel**axes * width)
        self.conv = nnx.Conv(
            width,
            out_width,
            window,
            strides=1 if axes == 1 else STRIDE,
            padding="CIRCULAR" if config.pool_padding == "circular" else margins,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )
        if config.class_tokens and config.class_pool == "linear":
            self.fc = Linear(width, out_width, init=deit_init, dtype=dtype, rngs=rngs)
        norms = {
            "none": lambda: None,
            "batch": lambda: BatchNorm(out_width, zero_scale=False, dtype=dtype),
            "layer": lambda: LayerNorm(out_width, dtype=dtype, rngs=rngs),
        }
        self.norm: BatchNorm | LayerNorm | None = norms[config.pool_norm]()
        if config.stage_positions:
            self.position = nnx.Param(token_init(rngs.params(), config.position_shape(stage)))

    def __call__(self, x_bnc: jax.Array, train: bool, record: Recorder, name: str) -> jax.Array:
        config = self.config
        if config.pooling == "2d":
            maps_bhwc = x_bnc.reshape(len(x_bnc), *config.grids[self.stage - 1], x_bnc.shape[-1])
            maps_bhwc = self.conv(maps_bhwc)
            x_bnc = maps_bhwc.reshape(len(x_bnc), -1, maps_bhwc.shape[-1])
        elif config.class_pool == "joint":
            x_bnc = self._convolve(x_bnc, train, record, name)
            x_bnc = nnx.max_pool(x_bnc, (3,), (STRIDE,), ((1, 1),))
        else:
            class_tokens, patches = x_bnc[:, :1], x_bnc[:, 1:]
            patches = self._convolve(patches, train, record, name)
            patches = nnx.max_pool(patches, (STRIDE,), (STRIDE,))
            x_bnc = jnp.concatenate([self.fc(class_tokens), patches], axis=1)
        if config.stage_positions:
            x_bnc = x_bnc + as_sequence(self.position[...]).astype(x_bnc.dtype)
        return x_bnc

    def _convolve(self, x_bnc: jax.Array, train: bool, record: Recorder, name: str) -> jax.Array:
        """Convolution, normalisation and activation of a sequence."""
        x_bnc = self.conv(x_bnc)
        if isinstance(self.norm, BatchNorm):
            x_bnc = self.norm(x_bnc[:, None], train, record, f"{name}/norm")[:, 0]
        elif self.norm is not None:
            x_bnc = self.norm(x_bnc)
        activate = _ACTIVATIONS.get(self.config.pool_activation)
        return activate(x_bnc) if activate else x_bnc


class Stage(nnx.Module):
    """Blocks `block0`, `block1`, ... at one length and width; maps are shared inside of it only."""

    def __init__(
        self,
        config: PSViTConfig,
        stage: int,
        drops: list[DropRates],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.groups = config.groups[stage]
        sizes = (config.stage_widths[stage], config.heads[stage], config.mlp_ratio)
        rates = iter(enumerate(drops))
        for size in self.groups:
            for place in range(size):
                index, drop = next(rates)
                block: Block | SharingBlock
                if size == 1:
                    block = Block(*sizes, drop, init=deit_init, dtype=dtype, rngs=rngs)
                else:
                    reuses = place > 0
                    block = SharingBlock(*sizes, drop, reuses_map=reuses, dtype=dtype, rngs=rngs)
                setattr(self, f"block{index}", block)

    def __call__(
        self, x_bnc: jax.Array, keys: list[jax.Array | None], record: Recorder, stage: str
    ) -> jax.Array:
        numbered = iter(enumerate(keys))
        for size in self.groups:
            shared: SharedMap | None = None
            for _ in range(size):
                index, key = next(numbered)
                block, name = getattr(self, f"block{index}"), f"{stage}/block{index}"
                if size == 1:
                    x_bnc = block(x_bnc, key, record, name)
                else:
                    x_bnc, shared = block(x_bnc, shared, key, record, name)
        return x_bnc


class PSViT(nnx.Module):
    """Vision transformer with token pooling and attention sharing.

    Args:
      config: the architecture.
      dtype: of the arithmetic; parameters, softmax, normalisation statistics and logits are
        float32.
      rngs: source of the initial parameters.
    """

    def __init__(self, config: PSViTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.embedding = Embedding(config, dtype=dtype, rngs=rngs)
        drops = [DropRates(path=rate) for rate in config.drop_path_rates]
        for stage, depth in enumerate(config.depths):
            if stage:
                pool = TokenPooling(config, stage, dtype=dtype, rngs=rngs)
                setattr(self, f"pool{stage - 1}", pool)
            setattr(
                self, f"stage{stage}", Stage(config, stage, drops[:depth], dtype=dtype, rngs=rngs)
            )
            drops = drops[depth:]
        width = config.stage_widths[-1]
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        if config.num_classes:
            self.head = Linear(width, config.num_classes, init=deit_init, dtype=dtype, rngs=rngs)

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
          train: turns stochastic depth on, and batch normalisation over the batch.
          key: a JAX random key, needed when `train` and the rate is above zero.
          capture: intermediates to return as well, of `CAPTURES`: "embedding", the patches (B, H,
            W, C) before positions; "blocks" and "stages", tokens (B, N, C) behind every block and
            stage, the class token first; "attention", post-softmax maps (B, heads, N, N) in
            float32, of a block that reuses the map of the one before as "shared_attention";
            "pre_logits", the features (B, C) that the head reads; "batch_statistics", in training
            those of the options with batch normalisation, see `parameters.update_statistics`.

        Returns:
          Logits (B, K) in float32; with `num_classes=0` the features (B, C). With `capture`,
          (logits, dict of named intermediates), e.g. "stage0/block1/shared_attention".

        Raises:
          ValueError: images of another rank, size, channel count or an integer dtype; an unknown
            intermediate; no key where one is needed; statistics of the batch without `train`.
        """
        record = Recorder(capture, CAPTURES)
        if record.wants("batch_statistics") and not train:
            raise ValueError("batch statistics can be captured with train=True only")
        features_bc = self._pooled(self._stages(images, train, key, record)[-1])
        record.save("pre_logits", "pre_logits", features_bc)
        logits = self.head(features_bc) if self.config.num_classes else features_bc
        logits = logits.astype(jnp.float32)
        return (logits, record.values) if record.requested else logits

    def features(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Un-normalised maps, {stride: (B, H, W, C)}, for use as a backbone: of every stage with 2D
        pooling. With 1D pooling the first stage's is the only one: behind it a token stands for a
        run of patches, and has no place on a grid; `capture=("stages",)` gives the sequences.
        """
        config = self.config
        stages = self._stages(images, train, key, Recorder((), CAPTURES))
        maps = {}
        for stride, grid, x_bnc in zip(config.strides, config.grids, stages, strict=False):
            patches = x_bnc[:, config.class_tokens :]
            maps[stride] = patches.reshape(len(patches), *grid, patches.shape[-1])
        return maps

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Stride, channels and grid of every map of `features`, finest first: with 1D pooling of
        the first stage alone.
        """
        config = self.config
        return tuple(map(FeatureInfo, config.strides, config.widths, config.grids))

    def _stages(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> list[jax.Array]:
        """Tokens (B, N, C) behind every stage, the class token first, not normalised."""
        config = self.config
        check_images(images, (*config.image_size, config.in_channels))
        key = training_key(key, train=train, random=config.drop_path_rate > 0)
        keys = split_key(key, sum(config.depths))
        x_bnc = self.embedding(images.astype(self.dtype), record)
        stages = []
        for stage, depth in enumerate(config.depths):
            if stage:
                pool = f"pool{stage - 1}"
                x_bnc = getattr(self, pool)(x_bnc, train, record, pool)
            stage_keys, keys = keys[:depth], keys[depth:]
            x_bnc = getattr(self, f"stage{stage}")(x_bnc, stage_keys, record, f"stage{stage}")
            record.save("stages", f"stage{stage}/tokens", x_bnc)
            stages.append(x_bnc)
        return stages

    def _pooled(self, x_bnc: jax.Array) -> jax.Array:
        """Features (B, C) of the last stage's tokens: the class token, or the mean of the map."""
        if self.config.class_tokens:
            return self.norm(x_bnc[:, 0])
        if self.config.head_norm == "after":
            return self.norm(x_bnc.mean(1))
        return self.norm(x_bnc).mean(1)
