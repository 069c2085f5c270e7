"""Analytic cost of a network: multiply-accumulates of one forward pass, and parameters.

Counted as the papers and fvcore do: convolutions, linear layers and the two matrix products of
attention; not biases, normalisation, activations, softmax or pooling. One multiply-accumulate is
two floating-point operations.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable

from pit_jax.models.config import TransformerStage


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one image. Costs of parts add up; `cost * n` is that of n equal parts.

    Attributes:
      convolution: multiply-accumulates of convolutions.
      linear: multiply-accumulates of linear layers.
      attention: multiply-accumulates of the products query by key and map by value.
      parameters: number of trained parameters.
      on_pixels: how many of these multiply-accumulates read the image itself. Training needs no
        gradient of the image, so it skips one of their three passes.
    """

    convolution: int = 0
    linear: int = 0
    attention: int = 0
    parameters: int = 0
    on_pixels: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return self.convolution + self.linear + self.attention

    def flops(self, *, training: bool) -> int:
        """Floating-point operations that an image needs, whatever a program spends: those of the
        forward pass, and in training those of the gradients of parameters and activations.
        """
        forward = 2 * self.macs
        return 3 * forward - 2 * self.on_pixels if training else forward

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * value for value in dataclasses.astuple(self)))


def total(parts: Iterable[Cost]) -> Cost:
    """Sum of the costs of a network's parts."""
    return functools.reduce(operator.add, parts, Cost())


def linear(rows: int, inputs: int, outputs: int) -> Cost:
    """A linear layer with bias, applied to so many rows."""
    return Cost(linear=rows * inputs * outputs, parameters=(inputs + 1) * outputs)


def convolution(positions: int, inputs: int, outputs: int) -> Cost:
    """A convolution with bias.

    Args:
      positions: height times width of the output.
      inputs: numbers that one output is a sum of: window times channels of a group.
      outputs: channels of the output.
    """
    return Cost(convolution=positions * inputs * outputs, parameters=(inputs + 1) * outputs)


def conv_norm(positions: int, inputs: int, outputs: int) -> Cost:
    """A convolution without bias, then batch normalisation: two parameters a channel in all."""
    return convolution(positions, inputs, outputs) + Cost(parameters=outputs)


def reading_pixels(part: Cost) -> Cost:
    """The same part, marked as reading the image itself."""
    return dataclasses.replace(part, on_pixels=part.macs)


def transformer_block(
    tokens: int, width: int, mlp_ratio: float, *, reuses_map: bool = False
) -> Cost:
    """One block: two norms, attention with its projections, MLP.

    Args:
      tokens: length of the sequence, class tokens included.
      width: channels.
      mlp_ratio: channels inside the MLP, as a multiple of `width`.
      reuses_map: the block weighs its values by another one's attention map, and has neither
        queries nor keys.
    """
    hidden = int(width * mlp_ratio)
    projections, products = (1, 1) if reuses_map else (3, 2)
    return total(
        [
            Cost(attention=products * tokens * tokens * width, parameters=4 * width),
            linear(tokens, width, projections * width),
            linear(tokens, width, width),
            linear(tokens, width, hidden),
            linear(tokens, hidden, width),
        ]
    )


def transformer_blocks(stage: TransformerStage, mlp_ratio: float) -> Cost:
    """All blocks of a stage."""
    return transformer_block(stage.tokens, stage.width, mlp_ratio) * stage.depth


def area(grid: tuple[int, int]) -> int:
    """Positions of a grid (height, width)."""
    height, width = grid
    return height * width
