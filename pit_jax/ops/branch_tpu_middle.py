"""The operation between the two linear layers of a residual branch, inside the TPU kernels of
`branch_tpu`: the GELU of an MLP, or attention.

Letters: C channels, M outputs of the first linear layer, K inputs of the second one, H heads, D
head width. Tokens lie in lanes, those of several images side by side.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pit_jax.ops import attention_tpu
from pit_jax.ops.attention import self_attention
from pit_jax.ops.gelu import COEFFICIENTS, gelu
from pit_jax.ops.linear import linear
from pit_jax.ops.tpu import LANES, ROWS, Ref, ShapeAndDtype

# Both bound the time that a program takes to compile: registers of the maps of one image, and
# values of a hidden layer that are computed at a time.
_PROGRAM_REGISTERS = 4096
_SLICE_SIZE = 1280 * 1024


@dataclasses.dataclass(frozen=True)
class Work:
    """The tokens and weights of one program.

    Attributes:
      tokens: N of one image.
      images: number of images side by side in lanes.
      channels: C.
      width: M.
      dtype: of tokens and weights.
    """

    tokens: int
    images: int
    channels: int
    width: int
    dtype: jnp.dtype

    @property
    def lanes(self) -> int:
        """Tokens of all images."""
        return self.tokens * self.images


@dataclasses.dataclass(frozen=True)
class Gelu:
    """GELU of an MLP, as `gelu.by_polynomial`, computed from half of x."""

    name = "mlp"

    def by_xla(self, tokens: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        """The first linear layer and this operation without a kernel: (B, N, C) to (B, N, K)."""
        return gelu(linear(tokens, kernel, bias))

    def width_out(self, work: Work) -> int:
        """K."""
        return work.width

    def supports(self, work: Work) -> bool:
        """Whether the kernels can do this work, VMEM aside."""
        return True

    def slices(self, work: Work) -> int:
        """Number of equal slices of M and K that the kernels loop over."""
        least = pl.cdiv(work.width * work.lanes, _SLICE_SIZE)
        counts = range(least, work.width // LANES + 1)
        return next((n for n in counts if work.width % (n * LANES) == 0), 1) if least > 1 else 1

    def residuals(self, work: Work) -> list[ShapeAndDtype]:
        """Results of the forward pass that the backward pass reads."""
        return [((work.width, work.lanes), work.dtype)]

    def forward_scratch(self, work: Work) -> list[ShapeAndDtype]:
        """VMEM of the forward pass, in place of the residuals, where none are needed."""
        return []

    def backward_scratch(self, work: Work) -> list[ShapeAndDtype]:
        """VMEM of the backward pass."""
        return []

    def temporaries(self, work: Work) -> list[ShapeAndDtype]:
        """Upper estimate of the intermediate values that the compiler keeps in VMEM."""
        return [((work.width // self.slices(work), work.lanes), jnp.float32)] * 3

    def forward(self, x: jax.Array, work: Work, kept: Sequence[Ref]) -> jax.Array:
        """A slice of (M, lanes), float32, to one of (K, lanes).

        Args:
          x: outputs of the first linear layer.
          work: of the program.
          kept: where residuals go, or the scratch in their place. The result is computed from the
            residuals as they are rounded, so that the backward pass sees the same values.
        """
        half = 0.5 * x
        for half_ref in kept:
            half_ref[0] = half.astype(work.dtype)
            half = half_ref[0].astype(jnp.float32)
        return (half + half * _tanh(half)[0]).astype(work.dtype)

    def backward(
        self, gradient: jax.Array, work: Work, kept: Sequence[Ref], scratch: Sequence[Ref]
    ) -> tuple[jax.Array, jax.Array]:
        """The result of `forward` again, a slice of (K, lanes), and the gradient of its input, a
        slice of (M, lanes), from the gradient of the result.
        """
        (half_ref,) = kept
        half = half_ref[0].astype(jnp.float32)
        tanh, square = _tanh(half)
        # Beyond 16 the density is zero in float32; squares must not overflow.
        exponent = (-2 * math.log2(math.e)) * jnp.minimum(square, 64.0)
        slope = 0.5 + 0.5 * tanh + (math.sqrt(2 / math.pi) * half) * jnp.exp2(exponent)
        return (half + half * tanh).astype(work.dtype), (gradient * slope).astype(work.dtype)


# Coefficients of the argument of tanh for x / 2 instead of x.
_HALF_COEFFICIENTS = tuple(2 * 4**power * value for power, value in enumerate(COEFFICIENTS))


def _tanh(half: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(2 Phi(2 * half) - 1, half squared)."""
    square = half * half
    value = jnp.full_like(half, _HALF_COEFFICIENTS[-1])
    for coefficient in _HALF_COEFFICIENTS[-2::-1]:
        value = value * square + coefficient
    return jnp.tanh(half * value), square


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention softmax(q k^T / sqrt(D)) v of all heads of an image.

    Attributes:
      heads: H, which divides the channels.
    """

    heads: int

    name = "attention"

    def by_xla(self, tokens: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return self_attention(self.heads, tokens, kernel, bias).reshape(tokens.shape)

    def width_out(self, work: Work) -> int:
        return work.width // 3

    def supports(self, work: Work) -> bool:
        registers = self.heads * pl.cdiv(work.tokens, 8) * pl.cdiv(work.tokens, LANES)
        return work.width % (3 * self.heads * ROWS) == 0 and registers <= _PROGRAM_REGISTERS

    def slices(self, work: Work) -> int:
        """One: all heads of an image are computed at a time."""
        return 1

    def residuals(self, work: Work) -> list[ShapeAndDtype]:
        """Queries, keys and values; outputs; logarithms of the softmax's denominators."""
        channels = work.width // 3 // self.heads
        return [
            ((3, self.heads, channels, work.lanes), work.dtype),
            ((self.heads, channels, work.lanes), work.dtype),
            ((self.heads, 1, work.lanes), jnp.float32),
        ]

    def forward_scratch(self, work: Work) -> list[ShapeAndDtype]:
        return [((1, *shape), dtype) for shape, dtype in self.residuals(work)]

    def backward_scratch(self, work: Work) -> list[ShapeAndDtype]:
        """Gradients of queries, keys and values; of outputs; sums over blocks of queries."""
        joint, mixed, _ = self.residuals(work)
        sums: ShapeAndDtype = ((*mixed[0][:2], work.tokens), jnp.float32)
        in_blocks = self._plan(work).queries < work.tokens
        return [
            ((1, *joint[0]), work.dtype),
            ((1, *mixed[0]), work.dtype),
            *([sums] * 2 * in_blocks),
        ]

    def temporaries(self, work: Work) -> list[ShapeAndDtype]:
        """Maps, the input of the second linear layer, the gradients of both linear layers."""
        maps: ShapeAndDtype = ((work.tokens, self._plan(work).queries), jnp.float32)
        joint: ShapeAndDtype = ((work.width, work.lanes), work.dtype)
        mixed: ShapeAndDtype = ((self.width_out(work), work.lanes), work.dtype)
        product: ShapeAndDtype = ((work.channels + ROWS, work.width), jnp.float32)
        return [*[maps] * 3, joint, mixed, product]

    def forward(self, x: jax.Array, work: Work, kept: Sequence[Ref]) -> jax.Array:
        joint, mixed, log_sum = kept
        channels = joint.shape[3]
        for kind in range(3):
            for head in range(self.heads):
                start = (kind * self.heads + head) * channels
                joint[0, kind, head] = x[start : start + channels].astype(work.dtype)
        plan = self._plan(work)
        for _, keys, queries in _blocks(work, plan.queries):
            results = (_Lanes(ref, (), queries) for ref in (mixed, log_sum))
            attention_tpu.attend(plan, work.tokens, *_heads(joint, queries, keys), *results)
        return mixed[0].reshape(self.width_out(work), work.lanes)

    def backward(
        self, gradient: jax.Array, work: Work, kept: Sequence[Ref], scratch: Sequence[Ref]
    ) -> tuple[jax.Array, jax.Array]:
        joint, mixed, log_sum = kept
        to_joint, to_mixed, *sums = scratch
        channels = joint.shape[3]
        for head in range(self.heads):
            part = gradient[head * channels : (head + 1) * channels]
            to_mixed[0, head] = part.astype(work.dtype)
        plan = self._plan(work)
        for block, keys, queries in _blocks(work, plan.queries):
            known = (_Lanes(ref, (), queries) for ref in (mixed, log_sum, to_mixed))
            refs = (*_heads(joint, queries, keys), *known, *_heads(to_joint, queries, keys), *sums)
            attention_tpu.attend_backward(plan, work.tokens, *refs, block=block)
        out = mixed[0].reshape(self.width_out(work), work.lanes)
        return out, to_joint[0].reshape(work.width, work.lanes)

    def _plan(self, work: Work) -> attention_tpu.Plan:
        return attention_tpu.whole_image_plan(work.tokens, self.heads)


Middle = Gelu | Attention


def slice_sums(middle: Middle, work: Work) -> list[ShapeAndDtype]:
    """Scratch for the sum over slices of M and K; none where there is a single slice."""
    return [((work.channels, work.lanes), jnp.float32)] * (middle.slices(work) > 1)


def _blocks(work: Work, queries: int) -> Iterator[tuple[int, Any, Any]]:
    """(index of the block, lanes of the keys, lanes of the queries) for every block of queries of
    every image side by side.
    """
    for start in range(0, work.lanes, work.tokens):
        for block, first in enumerate(range(0, work.tokens, queries)):
            size = min(queries, work.tokens - first)
            yield block, pl.ds(start, work.tokens), pl.ds(start + first, size)


class _Lanes:
    """View of some lanes of a reference (1, ..., H, D, lanes). Unlike Pallas's own views, it may
    begin in the middle of a register.
    """

    def __init__(self, ref: Ref, at: tuple[int, ...], lanes: Any):
        self._ref = ref
        self._at = at
        self._lanes = lanes
        self.dtype = ref.dtype
        self.shape = (1, *ref.shape[1 + len(at) : -1], lanes.size)

    def _place(self, index: tuple[int, int]) -> tuple[Any, ...]:
        return (index[0], *self._at, index[1], slice(None), self._lanes)

    def __getitem__(self, index: tuple[int, int]) -> jax.Array:
        return self._ref[self._place(index)]

    def __setitem__(self, index: tuple[int, int], value: jax.Array) -> None:
        self._ref[self._place(index)] = value


def _heads(joint: Ref, queries: Any, keys: Any) -> list[_Lanes]:
    """Queries, keys and values, views (1, H, D, their lanes) of (1, 3, H, D, lanes)."""
    return [_Lanes(joint, (kind,), lanes) for kind, lanes in enumerate((queries, keys, keys))]
