"""ResNet with bottlenecks (He et al. 2016), in torchvision's form and without pooling."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.capture import Recorder
from pit_jax.models.convnet.config import RESNET_PATCH, ResNetConfig
from pit_jax.models.convnet.layers import Bottleneck, ConvNet, ConvNorm, Stage
from pit_jax.models.initializers import torch_default_init
from pit_jax.models.layers import Linear


class ResNet(ConvNet):
    """ResNet-50 and its relatives.

    The stride of a stage is on the 3x3 convolution of its first block ("v1.5"). Initial values are
    timm's: convolutions He-normal by fan-out, every branch starting at zero, the head PyTorch's
    default.

    Args:
      config: the architecture.
      dtype: of the arithmetic; parameters, batch normalisation and logits are float32.
      rngs: source of the initial parameters.
    """

    config: ResNetConfig

    def __init__(self, config: ResNetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width = config.base_width if config.pooling else config.stage_widths[0]
        window, stride, padding = (7, 2, 3) if config.pooling else (RESNET_PATCH, RESNET_PATCH, 0)
        self.stem = ConvNorm(
            config.in_channels,
            width,
            window,
            stride=stride,
            padding=padding,
            dtype=dtype,
            rngs=rngs,
        )
        paths = list(config.drop_path_rates)
        for index, (depth, inner, features) in enumerate(
            zip(config.depths, config.inner_widths, config.stage_widths, strict=True)
        ):
            blocks = []
            for block in range(depth):
                halves = config.pooling and index > 0 and block == 0
                blocks.append(
                    Bottleneck(
                        width,
                        inner,
                        features,
                        stride=2 if halves else 1,
                        drop_path=paths.pop(0),
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                width = features
            setattr(self, f"stage{index}", Stage(blocks))
        if config.num_classes:
            self.head = Linear(
                width, config.num_classes, init=torch_default_init, dtype=dtype, rngs=rngs
            )

    def _enter(self, images: jax.Array, train: bool, record: Recorder) -> jax.Array:
        x_bhwc = super()._enter(images, train, record)
        if not self.config.pooling:
            return x_bhwc
        return nnx.max_pool(x_bhwc, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
