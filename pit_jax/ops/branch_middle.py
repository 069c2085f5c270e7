"""What is between the two linear layers of a residual branch, in the TPU kernels of `branch_tpu`.

Letters: C channels, M what the first linear layer gives, K what the second one takes, H heads, D
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
from pit_jax.ops.attention_tpu import LANES, Ref
from pit_jax.ops.gelu import COEFFICIENTS, gelu
from pit_jax.ops.linear import linear_map

# Shape and dtype.
Array = tuple[tuple[int, ...], Any]

# Rows of a register in bfloat16: what sizes have to be multiples of.
ROWS = 16
# Of the maps of one image, which bounds the time that a program takes to compile.
_PROGRAM_REGISTERS = 4096
# Values of a hidden layer that are worked on at a time, which bounds the same.
_SLICE_SIZE = 1280 * 1024


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program works on at a time.

    Attributes:
      tokens: of an image.
      together: images side by side.
      channels: C.
      width: M.
      dtype: of tokens and weights.
    """

    tokens: int
    together: int
    channels: int
    width: int
    dtype: jnp.dtype

    @property
    def lanes(self) -> int:
        return self.tokens * self.together


@dataclasses.dataclass(frozen=True)
class Gelu:
    """The middle of an MLP, as `gelu.by_polynomial`; half of x is what most is computed from."""

    name = "mlp"

    def apart(self, tokens: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        """The first linear layer and this of (B, N, C), to (B, N, K), without these kernels."""
        return gelu(linear_map(tokens, kernel, bias))

    def taken(self, work: Work) -> int:
        """K for M."""
        return work.width

    def supports(self, work: Work) -> bool:
        """Whether it can do that."""
        return True

    def slices(self, work: Work) -> int:
        """Into how many equal ones M and K are split, for a loop over them."""
        least = pl.cdiv(work.width * work.lanes, _SLICE_SIZE)
        counts = range(least, work.width // LANES + 1)
        return next((n for n in counts if work.width % (n * LANES) == 0), 1) if least > 1 else 1

    def saved(self, work: Work) -> list[Array]:
        """What the backward pass reads."""
        return [((work.width, work.lanes), work.dtype)]

    def unsaved(self, work: Work) -> list[Array]:
        """VMEM of the forward pass where nothing is saved."""
        return []

    def scratch(self, work: Work) -> list[Array]:
        """VMEM of the backward pass."""
        return []

    def values(self, work: Work) -> list[Array]:
        """What the compiler keeps in VMEM besides, an estimate from above."""
        return [((work.width // self.slices(work), work.lanes), jnp.float32)] * 3

    def forward(self, given: jax.Array, work: Work, saved: Sequence[Ref]) -> jax.Array:
        """From a slice of (M, lanes), float32, to that of (K, lanes); what it saves, it saves as
        rounded.
        """
        half = 0.5 * given
        for half_ref in saved:
            half_ref[0] = half.astype(work.dtype)
            half = half_ref[0].astype(jnp.float32)
        return (half + half * _tanh(half)[0]).astype(work.dtype)

    def backward(
        self, gradient: jax.Array, work: Work, saved: Sequence[Ref], scratch: Sequence[Ref]
    ) -> tuple[jax.Array, jax.Array]:
        """From the gradient of that result, of a slice of (K, lanes), the result, and the gradient
        of that slice of (M, lanes).
        """
        (half_ref,) = saved
        half = half_ref[0].astype(jnp.float32)
        tanh, square = _tanh(half)
        # Beyond 16 the density is zero in float32; squares must not overflow.
        exponent = (-2 * math.log2(math.e)) * jnp.minimum(square, 64.0)
        slope = 0.5 + 0.5 * tanh + (math.sqrt(2 / math.pi) * half) * jnp.exp2(exponent)
        return (half + half * tanh).astype(work.dtype), (gradient * slope).astype(work.dtype)


# Of the argument of tanh for x / 2 instead of x.
_HALF_COEFFICIENTS = tuple(2 * 4**power * value for power, value in enumerate(COEFFICIENTS))


def _tanh(half: jax.Array) -> tuple[jax.Array, jax.Array]:
    """2 Phi(2 * half) - 1, and half squared."""
    square = half * half
    value = jnp.full_like(half, _HALF_COEFFICIENTS[-1])
    for coefficient in _HALF_COEFFICIENTS[-2::-1]:
        value = value * square + coefficient
    return jnp.tanh(half * value), square


@dataclasses.dataclass(frozen=True)
class Attention:
    """The middle of an attention branch: softmax(q k^T / sqrt(D)) v of all heads of an image.

    Attributes:
      heads: H, which divides the channels.
    """

    heads: int

    name = "attention"

    def apart(self, tokens: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return self_attention(self.heads, tokens, kernel, bias).reshape(tokens.shape)

    def taken(self, work: Work) -> int:
        return work.width // 3

    def supports(self, work: Work) -> bool:
        registers = self.heads * pl.cdiv(work.tokens, 8) * pl.cdiv(work.tokens, LANES)
        return work.width % (3 * self.heads * ROWS) == 0 and registers <= _PROGRAM_REGISTERS

    def slices(self, work: Work) -> int:
        """All heads of an image are worked on together."""
        return 1

    def saved(self, work: Work) -> list[Array]:
        """Queries, keys and values; outputs; logarithms of the softmax's denominators."""
        channels = work.width // 3 // self.heads
        return [
            ((3, self.heads, channels, work.lanes), work.dtype),
            ((self.heads, channels, work.lanes), work.dtype),
            ((self.heads, 1, work.lanes), jnp.float32),
        ]

    def unsaved(self, work: Work) -> list[Array]:
        return [((1, *shape), dtype) for shape, dtype in self.saved(work)]

    def scratch(self, work: Work) -> list[Array]:
        """Gradients of queries, keys and values; of outputs; sums over blocks of queries."""
        joint, mixed, _ = self.saved(work)
        sums: Array = ((*mixed[0][:2], work.tokens), jnp.float32)
        in_blocks = self._plan(work).queries < work.tokens
        return [
            ((1, *joint[0]), work.dtype),
            ((1, *mixed[0]), work.dtype),
            *([sums] * 2 * in_blocks),
        ]

    def values(self, work: Work) -> list[Array]:
        """Maps, what the second linear layer takes, both of its gradients, and the first one's."""
        maps: Array = ((work.tokens, self._plan(work).queries), jnp.float32)
        joint: Array = ((work.width, work.lanes), work.dtype)
        mixed: Array = ((self.taken(work), work.lanes), work.dtype)
        product: Array = ((work.channels + ROWS, work.width), jnp.float32)
        return [*[maps] * 3, joint, mixed, product]

    def forward(self, given: jax.Array, work: Work, saved: Sequence[Ref]) -> jax.Array:
        joint, mixed, log_sum = saved
        channels = joint.shape[3]
        for kind in range(3):
            for head in range(self.heads):
                start = (kind * self.heads + head) * channels
                joint[0, kind, head] = given[start : start + channels].astype(work.dtype)
        plan = self._plan(work)
        for _, keys, queries in _blocks(work, plan.queries):
            results = (_Lanes(ref, (), queries) for ref in (mixed, log_sum))
            attention_tpu.attend(plan, work.tokens, *_heads(joint, queries, keys), *results)
        return mixed[0].reshape(self.taken(work), work.lanes)

    def backward(
        self, gradient: jax.Array, work: Work, saved: Sequence[Ref], scratch: Sequence[Ref]
    ) -> tuple[jax.Array, jax.Array]:
        joint, mixed, log_sum = saved
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
        taken = mixed[0].reshape(self.taken(work), work.lanes)
        return taken, to_joint[0].reshape(work.width, work.lanes)

    def _plan(self, work: Work) -> attention_tpu.Plan:
        return attention_tpu.whole_image(work.tokens, self.heads)


Middle = Gelu | Attention


def _blocks(work: Work, queries: int) -> Iterator[tuple[int, Any, Any]]:
    """Of the images that lie side by side, and of their blocks of queries: the number of the block,
    the lanes of the keys and those of the queries.
    """
    for start in range(0, work.lanes, work.tokens):
        for block, first in enumerate(range(0, work.tokens, queries)):
            size = min(queries, work.tokens - first)
            yield block, pl.ds(start, work.tokens), pl.ds(start + first, size)


class _Lanes:
    """Some lanes of a reference (1, ..., H, D, lanes), which need not begin at a register's first:
    views of references themselves do.
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
    """Queries, keys and values (1, H, D, their lanes) of (1, 3, H, D, lanes)."""
    return [_Lanes(joint, (kind,), lanes) for kind, lanes in enumerate((queries, keys, keys))]
