"""RegNetY (Radosavovic et al. 2020); the 16 GF model is the teacher of DeiT and PiT."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pit_jax.models.convnet.config import RegNetConfig
from pit_jax.models.convnet.layers import Bottleneck, ConvNet, ConvNorm, Stage
from pit_jax.models.initializers import Initializer, constant, normal
from pit_jax.models.layers import Linear


class RegNet(ConvNet):
    """RegNetY: grouped bottlenecks with squeeze-and-excitation, the first of a stage halving.

    Initial values are timm's: convolutions He-normal by fan-out, every branch starting at zero, the
    head N(0, 0.01^2) with zero bias.

    Args:
      config: the architecture.
      dtype: of the arithmetic; parameters, batch normalisation and logits are float32.
      rngs: source of the initial parameters.
    """

    config: RegNetConfig

    def __init__(self, config: RegNetConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.stem = ConvNorm(
            config.in_channels,
            config.stem_width,
            3,
            stride=2,
            padding=1,
            dtype=dtype,
            rngs=rngs,
        )
        width = config.stem_width
        paths = list(config.drop_path_rates)
        for index, (depth, features) in enumerate(zip(config.depths, config.widths, strict=True)):
            blocks = []
            for block in range(depth):
                blocks.append(
                    Bottleneck(
                        width,
                        features,
                        features,
                        stride=1 if block else 2,
                        groups=features // config.group_width,
                        squeezed=config.squeezed_width(width),
                        drop_path=paths.pop(0),
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                width = features
            setattr(self, f"stage{index}", Stage(blocks))
        if config.num_classes:
            self.head = Linear(width, config.num_classes, init=_head_init, dtype=dtype, rngs=rngs)


def _head_init(fan_in: int) -> tuple[Initializer, Initializer]:
    del fan_in
    return normal(0.01), constant(0.0)
