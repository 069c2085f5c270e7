"""Analytic cost of a configuration: multiply-accumulates of one forward pass, and parameters.

Counted as the papers and fvcore do: convolutions, linear layers and the two matrix products of
attention; not biases, normalisation, activations, softmax or pooling. One multiply-accumulate is
two floating-point operations.
"""

import dataclasses
import functools
import operator

from pit_jax.models.convnet.config import RESNET_PATCH, RegNetConfig, ResNetConfig
from pit_jax.models.pit.config import PiTConfig
from pit_jax.models.vit.config import ViTConfig
from pit_jax.models.zoo import ModelConfig
from pit_jax.ops.pooling import WINDOW


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one image by kind of operation, and the number of parameters."""

    convolution: int = 0
    linear: int = 0
    attention: int = 0
    parameters: int = 0

    @property
    def macs(self) -> int:
        return self.convolution + self.linear + self.attention

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * value for value in dataclasses.astuple(self)))


def cost(config: ModelConfig) -> Cost:
    """Cost of one image of `config.image_size`."""
    if isinstance(config, PiTConfig):
        return _pit(config)
    if isinstance(config, ViTConfig):
        return _vit(config)
    if isinstance(config, ResNetConfig):
        return _resnet(config)
    return _regnet(config)


def model_flops(config: ModelConfig, *, training: bool) -> int:
    """Floating-point operations that an image needs, whatever a program spends: forward, and in
    training for the gradients of parameters and activations, though not of the image.
    """
    forward = 2 * cost(config).macs
    return 3 * forward - 2 * _stem(config).macs if training else forward


def _stem(config: ModelConfig) -> Cost:
    """The first convolution."""
    if isinstance(config, PiTConfig | ViTConfig):
        width = config.widths[0] if isinstance(config, PiTConfig) else config.width
        inputs = config.in_channels * config.patch_size**2
        return _convolution(_area(config.grids[0]), inputs, width)
    if isinstance(config, ResNetConfig) and not config.pooling:
        inputs = config.in_channels * RESNET_PATCH**2
        return _conv_norm(_area(config.stage_grids[0]), inputs, config.stage_widths[0])
    window, width = (
        (3, config.stem_width) if isinstance(config, RegNetConfig) else (7, config.base_width)
    )
    return _conv_norm(_area(_halved(config.image_size)), config.in_channels * window**2, width)


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return -(-height // 2), -(-width // 2)


def _pit(config: PiTConfig) -> Cost:
    tokens_t = config.class_tokens
    positions = _area(config.grids[0])
    parts = [
        _stem(config),
        Cost(parameters=config.widths[0] * (positions + tokens_t)),  # position map, class tokens
    ]
    for index, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        positions = _area(config.grids[index])
        if index:
            parts.append(_convolution(positions, WINDOW**2, width))
            parts.append(_linear(tokens_t, config.widths[index - 1], width))
        hidden = int(width * config.mlp_ratio)
        parts.append(_block(positions + tokens_t, width, hidden) * depth)
    parts.append(Cost(parameters=2 * config.widths[-1]))  # norm
    parts.append(_linear(1, config.widths[-1], config.num_classes) * tokens_t)
    return _total(parts)


def _vit(config: ViTConfig) -> Cost:
    width, positions = config.width, _area(config.grids[0])
    tokens = positions + config.class_tokens
    return _total(
        [
            _stem(config),
            Cost(parameters=width * (tokens + config.class_tokens)),  # positions, class tokens
            _block(tokens, width, int(width * config.mlp_ratio)) * config.depth,
            Cost(parameters=2 * width),  # norm
            _linear(1, width, config.num_classes) * config.class_tokens,
        ]
    )


def _resnet(config: ResNetConfig) -> Cost:
    width = config.base_width if config.pooling else config.stage_widths[0]
    parts = [_stem(config)]
    for index, (depth, inner, features) in enumerate(
        zip(config.depths, config.inner_widths, config.stage_widths, strict=True)
    ):
        grid = config.stage_grids[index]
        before = config.stage_grids[max(index - 1, 0)]
        for block in range(depth):
            parts.append(_conv_norm(_area(grid if block else before), width, inner))
            parts.append(_conv_norm(_area(grid), 9 * inner, inner))
            parts.append(_conv_norm(_area(grid), inner, features))
            if config.pooling and block == 0:
                parts.append(_conv_norm(_area(grid), width, features))
            width = features
    parts.append(_linear(1, width, config.num_classes))
    return _total(parts)


def _regnet(config: RegNetConfig) -> Cost:
    before = _halved(config.image_size)
    parts = [_stem(config)]
    width = config.stem_width
    for depth, features, grid in zip(config.depths, config.widths, config.grids, strict=True):
        for block in range(depth):
            squeezed = config.squeezed_width(width)
            parts.append(_conv_norm(_area(grid if block else before), width, features))
            parts.append(_conv_norm(_area(grid), 9 * config.group_width, features))
            parts.append(_convolution(1, features, squeezed))
            parts.append(_convolution(1, squeezed, features))
            parts.append(_conv_norm(_area(grid), features, features))
            if block == 0:
                parts.append(_conv_norm(_area(grid), width, features))
            width = features
        before = grid
    parts.append(_linear(1, width, config.num_classes))
    return _total(parts)


def _block(tokens: int, width: int, hidden: int) -> Cost:
    """Transformer block: two norms, attention with its projections, MLP."""
    return _total(
        [
            Cost(attention=2 * tokens * tokens * width, parameters=4 * width),
            _linear(tokens, width, 3 * width),
            _linear(tokens, width, width),
            _linear(tokens, width, hidden),
            _linear(tokens, hidden, width),
        ]
    )


def _linear(rows: int, inputs: int, outputs: int) -> Cost:
    return Cost(linear=rows * inputs * outputs, parameters=(inputs + 1) * outputs)


def _convolution(positions: int, inputs: int, outputs: int) -> Cost:
    """`inputs` counts the numbers one output is a sum of: window times channels of the group."""
    return Cost(convolution=positions * inputs * outputs, parameters=(inputs + 1) * outputs)


def _conv_norm(positions: int, inputs: int, outputs: int) -> Cost:
    """Convolution without bias, then batch normalisation."""
    return _convolution(positions, inputs, outputs) + Cost(parameters=outputs)


def _area(grid: tuple[int, ...]) -> int:
    height, width = grid
    return height * width


def _total(parts: list[Cost]) -> Cost:
    return functools.reduce(operator.add, parts)
