"""Layers that ResNet and RegNet share: convolutions with batch normalisation, bottlenecks, and the
network around the stages.

Letters: B batch, H W map height and width, C channels, K classes. Modules hold parameters and
running statistics, and change neither. In training the statistics of the batch go out through the
`Recorder`, and `parameters.update_statistics` folds them into the running ones.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.convnet.config import SMALLEST_IMAGE, RegNetConfig, ResNetConfig
from pit_jax.models.initializers import Initializer, constant, normal
from pit_jax.models.interface import FeatureInfo, check_images
from pit_jax.models.layers import Linear
from pit_jax.models.stochastic import split_key, stochastic_depth, training_key

# Kinds of intermediates that `capture=` accepts.
CAPTURES = ("stem", "stages", "pre_logits", "batch_statistics")

BATCH_NORM_EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Batch normalisation: by running statistics, in training by those of the batch.

    Under `jax.jit` the batch is the global one, however it is sharded: PyTorch's synchronised
    batch normalisation. The arithmetic is float32.
    """

    def __init__(self, features: int, *, zero_scale: bool, dtype: DTypeLike):
        self.dtype = dtype
        shape, zeros, ones = (features,), constant(0.0), constant(1.0)
        self.scale = nnx.Param((zeros if zero_scale else ones)(None, shape))
        self.bias = nnx.Param(zeros(None, shape))
        self.mean = nnx.BatchStat(zeros(None, shape))
        self.var = nnx.BatchStat(ones(None, shape))

    def __call__(self, x_bhwc: jax.Array, train: bool, record: Recorder, name: str) -> jax.Array:
        x = x_bhwc.astype(jnp.float32)
        mean, var = self.mean[...].reshape(1, 1, 1, -1), self.var[...].reshape(1, 1, 1, -1)
        if train:
            mean = x.mean((0, 1, 2), keepdims=True)
            var = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
            # As in PyTorch, the biased variance normalises, the unbiased one is averaged.
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            record.save("batch_statistics", f"{name}/mean", mean.reshape(-1))
            record.save("batch_statistics", f"{name}/var", unbiased.reshape(-1))
        factor = jax.lax.rsqrt(var + BATCH_NORM_EPSILON) * self.scale[...].reshape(1, 1, 1, -1)
        return ((x - mean) * factor + self.bias[...].reshape(1, 1, 1, -1)).astype(self.dtype)


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch normalisation.

    Args:
      window: side of the kernel.
      padding: zeros on every side. Explicit: with stride 2, "SAME" would pad even maps on one side
        only, which shifts every window by a pixel.
      zero_scale: starts the normalisation, and the branch that it ends, at zero.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        window: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        zero_scale: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            features,
            (window, window),
            strides=stride,
            padding=((padding, padding), (padding, padding)),
            feature_group_count=groups,
            use_bias=False,
            kernel_init=_he_fan_out(window, features // groups),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(features, zero_scale=zero_scale, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array, train: bool, record: Recorder, name: str) -> jax.Array:
        return self.norm(self.conv(x_bhwc), train, record, f"{name}/norm")


def _he_fan_out(window: int, out_features: int) -> Initializer:
    """N(0, 2 / fan_out), the initial values of torchvision's and timm's convolutions."""
    return normal(math.sqrt(2.0 / (window * window * out_features)))


class SqueezeExcitation(nnx.Module):
    """Scales every channel by a gate in (0, 1), which two 1x1 convolutions with bias compute from
    the channels' means (Hu et al. 2018).
    """

    def __init__(self, width: int, squeezed: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def conv(in_features: int, features: int) -> nnx.Conv:
            init = _he_fan_out(1, features)
            return nnx.Conv(
                in_features,
                features,
                (1, 1),
                kernel_init=init,
                bias_init=constant(0.0),
                dtype=dtype,
                rngs=rngs,
            )

        self.fc1 = conv(width, squeezed)
        self.fc2 = conv(squeezed, width)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        means = x_bhwc.mean((1, 2), keepdims=True)  # (B, 1, 1, C)
        return x_bhwc * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(means))))


class Bottleneck(nnx.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution, with the stride on the 3x3 one.

    Args:
      inner: channels of the 3x3 convolution, in `groups` groups.
      squeezed: channels between the two layers of squeeze-and-excitation; 0 for none.
      drop_path: probability of dropping the branch.
    """

    def __init__(
        self,
        in_features: int,
        inner: int,
        features: int,
        *,
        stride: int,
        groups: int = 1,
        squeezed: int = 0,
        drop_path: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.drop_path = drop_path
        self.conv1 = ConvNorm(in_features, inner, 1, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(
            inner, inner, 3, stride=stride, padding=1, groups=groups, dtype=dtype, rngs=rngs
        )
        self.se = SqueezeExcitation(inner, squeezed, dtype=dtype, rngs=rngs) if squeezed else None
        self.conv3 = ConvNorm(inner, features, 1, zero_scale=True, dtype=dtype, rngs=rngs)
        changes = stride != 1 or in_features != features
        self.downsample = (
            ConvNorm(in_features, features, 1, stride=stride, dtype=dtype, rngs=rngs)
            if changes
            else None
        )

    def __call__(
        self,
        x_bhwc: jax.Array,
        train: bool,
        key: jax.Array | None,
        record: Recorder,
        name: str,
    ) -> jax.Array:
        branch = jax.nn.relu(self.conv1(x_bhwc, train, record, f"{name}/conv1"))
        branch = jax.nn.relu(self.conv2(branch, train, record, f"{name}/conv2"))
        if self.se is not None:
            branch = self.se(branch)
        branch = self.conv3(branch, train, record, f"{name}/conv3")
        branch = stochastic_depth(branch, self.drop_path, key)
        if self.downsample is not None:
            x_bhwc = self.downsample(x_bhwc, train, record, f"{name}/downsample")
        return jax.nn.relu(x_bhwc + branch)


class Stage(nnx.Module):
    """Blocks `block0`, `block1`, ... at one width."""

    def __init__(self, blocks: list[Bottleneck]):
        self.depth = len(blocks)
        for index, block in enumerate(blocks):
            setattr(self, f"block{index}", block)

    def __call__(
        self,
        x_bhwc: jax.Array,
        train: bool,
        keys: list[jax.Array | None],
        record: Recorder,
        name: str,
    ) -> jax.Array:
        for index, key in enumerate(keys):
            x_bhwc = getattr(self, f"block{index}")(
                x_bhwc, train, key, record, f"{name}/block{index}"
            )
        return x_bhwc


class ConvNet(nnx.Module):
    """A stem, stages, and a linear head on the mean of the last map.

    A family sets `stem`, `stage0`, `stage1`, ..., and with classes `head`.
    """

    config: ResNetConfig | RegNetConfig
    dtype: DTypeLike
    stem: ConvNorm
    head: Linear

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
          images: (B, H, W, 3), floating, normalised with the ImageNet mean and standard deviation;
            of any size from 16x16.
          train: normalises by the statistics of this batch, and turns stochastic depth on.
          key: a JAX random key, needed when `train` and the rate is above zero.
          capture: intermediates to return as well, of `CAPTURES`: "stem" (B, H, W, C); "stages",
            every stage's map (B, H, W, C); "pre_logits", the mean of the last map (B, C);
            "batch_statistics", in training the mean and the unbiased variance (C,) of every
            normalisation's input, under the paths of the running statistics, for
            `parameters.update_statistics`.

        Returns:
          Logits (B, K) in float32. With `num_classes=0` the mean of the last map (B, C) takes the
          place of logits. With `capture`, (logits, dict of named intermediates), e.g. "stage1/map".

        Raises:
          ValueError: images of another rank, too small, of another channel count or an integer
            dtype; an unknown intermediate; no key where one is needed; statistics of the batch
            asked for without `train`.
        """
        record = Recorder(capture, CAPTURES)
        if record.wants("batch_statistics") and not train:
            raise ValueError("batch statistics can be captured with train=True only")
        pooled_bc = self._encode(images, train, key, record)[-1].mean((1, 2))
        record.save("pre_logits", "pre_logits", pooled_bc)
        logits = self.head(pooled_bc) if self.config.num_classes else pooled_bc
        logits = logits.astype(jnp.float32)
        return (logits, record.values) if record.requested else logits

    def features(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> dict[int, jax.Array]:
        """Map of every stage, {stride: (B, H, W, C)}, for use as a backbone; where all stages have
        one grid, that of the last stage alone.
        """
        maps = self._encode(images, train, key, Recorder((), CAPTURES))
        strides = self.config.strides
        return dict(zip(strides, maps[-len(strides) :], strict=True))

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Stride and channels of every map of `features`, finest first, and its grid at
        `config.image_size`.
        """
        config = self.config
        return tuple(map(FeatureInfo, config.strides, config.widths, config.grids))

    def _encode(
        self, images: jax.Array, train: bool, key: jax.Array | None, record: Recorder
    ) -> list[jax.Array]:
        """Every stage's map (B, H, W, C)."""
        config = self.config
        size = config.image_size
        if images.ndim == 4 and min(images.shape[1:3]) >= SMALLEST_IMAGE:
            size = (images.shape[1], images.shape[2])
        check_images(images, (*size, config.in_channels))
        key = training_key(key, train=train, random=config.drop_path_rate > 0)
        keys = iter(split_key(key, sum(config.depths)))
        x_bhwc = self._enter(images.astype(self.dtype), train, record)
        record.save("stem", "stem", x_bhwc)
        maps = []
        for index, depth in enumerate(config.depths):
            stage_keys = list(itertools.islice(keys, depth))
            x_bhwc = getattr(self, f"stage{index}")(
                x_bhwc, train, stage_keys, record, f"stage{index}"
            )
            record.save("stages", f"stage{index}/map", x_bhwc)
            maps.append(x_bhwc)
        return maps

    def _enter(self, images: jax.Array, train: bool, record: Recorder) -> jax.Array:
        """Images (B, H, W, 3) to the input of the first stage."""
        return jax.nn.relu(self.stem(images, train, record, "stem"))
