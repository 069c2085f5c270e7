"""Analytic cost of a configuration: multiply-accumulates of one forward pass, and parameters.

Counted as the papers and fvcore do: convolutions, linear layers and the two matrix products of
attention; not biases, normalisation, GELU or softmax. One multiply-accumulate is two floating-point
operations.
"""

import dataclasses

from pit_jax.models.config import PiTConfig
from pit_jax.models.pooling import WINDOW


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one image by kind of operation, and the number of parameters."""

    convolution: int
    linear: int
    attention: int
    parameters: int

    @property
    def macs(self) -> int:
        return self.convolution + self.linear + self.attention


def cost(config: PiTConfig) -> Cost:
    """Cost of one image of `config.image_size` through a PiT."""
    tokens_t, classes = config.class_tokens, config.num_classes
    patch_inputs = config.in_channels * config.patch_size**2
    first_positions = config.grids[0][0] * config.grids[0][1]
    convolution = first_positions * patch_inputs * config.widths[0]
    linear = attention = 0
    # Patch embedding and its bias, position map, class tokens; the final norm and the heads.
    parameters = config.widths[0] * (patch_inputs + 1 + first_positions + tokens_t)
    parameters += 2 * config.widths[-1]

    for index, (width, depth, (height, breadth)) in enumerate(
        zip(config.widths, config.depths, config.grids, strict=True)
    ):
        positions = height * breadth
        tokens = positions + tokens_t
        hidden = int(width * config.mlp_ratio)
        linear += depth * tokens * (4 * width * width + 2 * width * hidden)
        attention += depth * 2 * tokens * tokens * width
        norms_and_biases = 4 * width + 3 * width + width + hidden + width
        parameters += depth * (4 * width * width + 2 * width * hidden + norms_and_biases)
        if index:
            narrow = config.widths[index - 1]
            convolution += positions * width * WINDOW**2
            linear += tokens_t * narrow * width
            parameters += width * (WINDOW**2 + 1) + (narrow + 1) * width

    if classes:
        linear += tokens_t * config.widths[-1] * classes
        parameters += tokens_t * (config.widths[-1] + 1) * classes
    return Cost(convolution, linear, attention, parameters)
