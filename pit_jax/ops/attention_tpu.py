"""Attention for TPUs: a Pallas kernel that keeps the attention maps of an image in VMEM.

PiT's sequences are short: all keys of a head fit in VMEM, and so does the map of a block of
queries. The kernel therefore computes whole softmax rows, without an online softmax, and writes no
map to HBM. The backward pass recomputes the map from the queries, the keys and the logarithm of
each softmax's denominator.

Letters: B batch, N tokens, H heads, D head width. Kernels see (B, H, D, N): tokens lie in lanes, so
that a map is (keys, queries), the softmax reduces over sublanes, and only the keys and values of
the map's own products are transposed. `to_x` is the gradient with respect to x.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pit_jax.ops.batch_shards import per_batch_shard
from pit_jax.ops.tpu import LANES, SMALL_VMEM_BYTES, Ref, dot

# Bytes of VMEM for operands; maps take the rest.
MAX_OPERAND_BYTES = 7 * 2**20
# Sizes of maps, in registers of 8 x 128 float32 values.
# The largest map: larger ones are computed in blocks of queries. The backward pass holds five.
_MAP_REGISTERS = 600
# All maps of one program, which bounds its compile time; and of one group of heads, whose phases
# are interleaved to hide latencies.
_PROGRAM_REGISTERS = 2048
_GROUP_REGISTERS = 320
_LOG2_E = math.log2(math.e)
_COMPILER_PARAMS = pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "arbitrary"),
    # Explicit: otherwise the share of VMEM that XLA leaves to its fusions would limit the kernels.
    vmem_limit_bytes=SMALL_VMEM_BYTES,
)

# Matrix products of one head, each (keys, queries).
Products = tuple[jax.Array, ...]


class Plan(NamedTuple):
    """The share of the work that one program does.

    Attributes:
      heads: of a program.
      group: heads whose operations are interleaved.
      queries: of a program; all of them, or a multiple of 128.
    """

    heads: int
    group: int
    queries: int


def operand_bytes(tokens: int, width: int, dtype: jnp.dtype) -> int:
    """Bytes of VMEM for one head: eight operands and results of the backward pass, each held twice
    (double buffering).
    """
    return 16 * width * pl.cdiv(tokens, LANES) * LANES * jnp.dtype(dtype).itemsize


def _query_block(tokens: int) -> tuple[int, int]:
    """Number of queries in a block, and of registers of its map (keys, queries)."""
    rows, columns = pl.cdiv(tokens, 8), pl.cdiv(tokens, LANES)
    if rows * columns <= _MAP_REGISTERS:
        return tokens, rows * columns
    columns = max(_MAP_REGISTERS // rows, 1)
    return columns * LANES, rows * columns


def plan(tokens: int, heads: int, width: int, dtype: jnp.dtype) -> Plan:
    """Plan for a sequence length: short sequences need many heads at once to fill the units."""
    queries, registers = _query_block(tokens)
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    most = min(
        _PROGRAM_REGISTERS // registers, MAX_OPERAND_BYTES // operand_bytes(tokens, width, dtype)
    )
    in_program = max(n for n in divisors if n == 1 or n <= most)
    in_group = max(
        n for n in divisors if in_program % n == 0 and (n == 1 or n * registers <= _GROUP_REGISTERS)
    )
    return Plan(in_program, in_group, queries)


def whole_image_plan(tokens: int, heads: int) -> Plan:
    """Plan for programs that have all heads of an image. Maps may still be computed in blocks of
    queries, one after the other.
    """
    queries, registers = _query_block(tokens)
    most = max(_GROUP_REGISTERS // registers, 1)
    return Plan(heads, max(n for n in range(1, heads + 1) if heads % n == 0 and n <= most), queries)


def supports(query: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the kernel takes queries (B, N, H, D) of this shape and dtype, with like keys and
    values.
    """
    tokens, width = query.shape[1], query.shape[3]
    if query.dtype not in (jnp.bfloat16, jnp.float32) or width % 16:
        return False
    return operand_bytes(tokens, width, query.dtype) <= MAX_OPERAND_BYTES


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Scaled dot-product attention, like `pit_jax.ops.attention.attention`.

    Args:
      query: (B, N, H, D), bfloat16 or float32, of a shape that `supports` accepts.
      key, value: same shape and dtype.
      interpret: runs the kernel on other platforms, slowly, operation by operation.

    Returns:
      (B, N, H, D), in the dtype of `query`.

    Raises:
      ValueError: operands of different shapes, or of one that `supports` refuses.
    """
    if not query.shape == key.shape == value.shape or not supports(query):
        raise ValueError(
            "the TPU kernel attends within one sequence that fits in VMEM, in bfloat16 or float32, "
            "with a head width that 16 divides; found queries "
            f"{query.dtype}{list(query.shape)}, keys {list(key.shape)} and values "
            f'{list(value.shape)}: use lowerings.override(attention="plain")'
        )
    operands = (x.transpose(0, 2, 3, 1) for x in (query, key, value))  # (B, H, D, N)
    return _attention(*operands, interpret).transpose(0, 3, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool) -> jax.Array:
    return _forward(interpret, query, key, value)[0]


def _attention_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, log_sum = _forward(interpret, query, key, value)
    return out, (query, key, value, out, log_sum)


def _attention_backward(
    interpret: bool, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    return tuple(_backward(interpret, *residuals, gradient))


_attention.defvjp(_attention_forward, _attention_backward)


# Under `jit`, layers of one shape share one trace of the kernel.
@functools.partial(jax.jit, static_argnums=0)
def _forward(interpret: bool, *operands: jax.Array) -> Sequence[jax.Array]:
    """Outputs (B, H, D, N), and base-2 logarithms (B, H, 1, N) of the softmax's denominators, of
    queries, keys and values (B, H, D, N).
    """
    dtype = operands[0].dtype
    call = _Call(operands[0], "forward", interpret)
    kernel = call(attend, "qkk", [("q", dtype), ("l", jnp.float32)])
    return per_batch_shard(kernel, *operands)


@functools.partial(jax.jit, static_argnums=0)
def _backward(interpret: bool, *operands: jax.Array) -> Sequence[jax.Array]:
    """Gradients of queries, keys and values, each (B, H, D, N), from these, the outputs, their
    logarithms and their gradient.
    """
    dtype = operands[0].dtype
    call = _Call(operands[0], "backward", interpret)
    kernel = call(attend_backward, "qkkqlq", [("q", dtype), ("k", dtype), ("k", dtype)], sums=2)
    return per_batch_shard(kernel, *operands)


class _Call:
    """Builder of `pallas_call`s for one shape (B, H, D, N) of queries."""

    def __init__(self, query: jax.Array, direction: str, interpret: bool):
        _, self.heads, self.width, self.tokens = query.shape
        self.plan = plan(self.tokens, self.heads, self.width, query.dtype)
        self.name = f"pit_attention_{direction}_{self.tokens}x{self.heads}x{self.width}"
        self.interpret = interpret

    def spec(self, kind: str) -> pl.BlockSpec:
        """Block of queries ("q"), of keys or values ("k"), or of denominators ("l")."""
        rows = 1 if kind == "l" else self.width
        if kind == "k":
            shape = (1, self.plan.heads, rows, self.tokens)
            return pl.BlockSpec(shape, lambda image, heads, block: (image, heads, 0, 0))
        shape = (1, self.plan.heads, rows, self.plan.queries)
        return pl.BlockSpec(shape, lambda image, heads, block: (image, heads, 0, block))

    def __call__(
        self,
        kernel: Callable[..., None],
        inputs: str,
        outputs: list[tuple[str, jnp.dtype]],
        sums: int = 0,
    ) -> Callable[..., Sequence[jax.Array]]:
        """A function of arrays of the kinds `inputs`, for any batch size. Where there are several
        blocks of queries, its kernel keeps `sums` sums over them.
        """
        blocks = pl.cdiv(self.tokens, self.plan.queries)
        summed = pltpu.VMEM((self.plan.heads, self.width, self.tokens), jnp.float32)

        def call(*operands: jax.Array) -> Sequence[jax.Array]:
            batch, rows = operands[0].shape[0], {"q": self.width, "k": self.width, "l": 1}
            return pl.pallas_call(
                functools.partial(kernel, self.plan, self.tokens),
                grid=(batch, self.heads // self.plan.heads, blocks),
                in_specs=[self.spec(kind) for kind in inputs],
                out_specs=[self.spec(kind) for kind, _ in outputs],
                out_shape=[
                    jax.ShapeDtypeStruct((batch, self.heads, rows[kind], self.tokens), dtype)
                    for kind, dtype in outputs
                ],
                scratch_shapes=[summed] * (sums if blocks > 1 else 0),
                compiler_params=_COMPILER_PARAMS,
                name=self.name,
                interpret=self.interpret,
            )(*operands)

        return call


def _in_groups(
    plan: Plan,
    start: Callable[[int], Products],
    finish: Callable[[list[int], list[Products]], None],
) -> None:
    """Runs `start` for each head and `finish` for each group of heads. A group starts before the
    previous one finishes: its matrix products run beside the other's softmax.
    """
    groups = [list(range(h, h + plan.group)) for h in range(0, plan.heads, plan.group)]
    started = [start(h) for h in groups[0]]
    for heads, following in zip(groups, [*groups[1:], []], strict=True):
        current, started = started, [start(h) for h in following]
        finish(heads, current)


def attend(plan: Plan, tokens: int, *refs: Ref) -> None:
    """Kernel of the forward pass.

    Args:
      plan: its share of the work.
      tokens: N.
      *refs: blocks (1, heads, D or 1, queries or all tokens) of the operands, then of the results.
    """
    query, key, value, out, log_sum = refs
    width = query.shape[2]
    scale = width**-0.5 * _LOG2_E

    def start(h: int) -> Products:
        return (dot(key[0, h], query[0, h], (0, 0)),)  # (keys, queries)

    def finish(heads: list[int], products: list[Products]) -> None:
        tops = [s.max(0, keepdims=True) * scale for (s,) in products]
        maps = [
            jnp.exp2(s * scale - top).astype(value.dtype)
            for (s,), top in zip(products, tops, strict=True)
        ]
        for h, weights, top in zip(heads, maps, tops, strict=True):
            # Rows of ones, a register of them: the matrix unit adds up the denominators as well.
            ones = jnp.ones((32 // value.dtype.itemsize, tokens), value.dtype)
            sums = dot(jnp.concatenate([value[0, h], ones]), weights, (1, 0))
            total = sums[width : width + 1]
            out[0, h] = (sums[:width] * (1 / total)).astype(out.dtype)
            log_sum[0, h] = top + jnp.log2(total)

    _in_groups(plan, start, finish)


def attend_backward(plan: Plan, tokens: int, *refs: Ref, block: int | None = None) -> None:
    """Kernel of the backward pass; the results are gradients of queries, keys and values.

    Args:
      plan: as in `attend`.
      tokens: N.
      *refs: blocks as in `attend`, then the sums over blocks of queries, if there are several.
      block: index of the block of queries when the caller, not the grid, iterates over blocks; its
        references then end with the sequence.
    """
    query, key, value, out, log_sum, gradient, to_query, to_key, to_value, *sums = refs
    scale = query.shape[2] ** -0.5
    in_blocks = plan.queries < tokens
    grid_blocks = in_blocks and block is None
    number: int | jax.Array = pl.program_id(2) if grid_blocks else block or 0

    def load(ref: Ref, h: int) -> jax.Array:
        if not grid_blocks:
            return ref[0, h]
        # The last block reaches past the sequence, where memory may hold anything, NaN included.
        place = jax.lax.broadcasted_iota(jnp.int32, ref.shape[2:], 1) + number * plan.queries
        return jnp.where(place < tokens, ref[0, h], jnp.zeros((), ref.dtype))

    def add(ref: Ref, h: int, part: jax.Array) -> None:
        if in_blocks:
            so_far = sums[ref is to_value]
            if grid_blocks:
                part = jnp.where(number == 0, part, so_far[h] + part)
            elif number:
                part = so_far[h] + part
            so_far[h] = part
        ref[0, h] = part.astype(ref.dtype)

    def start(h: int) -> Products:
        logits = dot(key[0, h], load(query, h), (0, 0))  # (keys, queries)
        return logits, dot(value[0, h], load(gradient, h), (0, 0))

    def finish(heads: list[int], products: list[Products]) -> None:
        means = [  # means of the map's gradient, weighted by the map
            (load(gradient, h) * load(out, h).astype(jnp.float32)).sum(0, keepdims=True)
            for h in heads
        ]
        maps = [
            jnp.exp2(s * (scale * _LOG2_E) - load(log_sum, h))
            for h, (s, _) in zip(heads, products, strict=True)
        ]
        for h, weights in zip(heads, maps, strict=True):
            add(to_value, h, dot(load(gradient, h), weights.astype(value.dtype), (1, 1)))
        slopes = [
            (weights * (to_weights - mean)).astype(value.dtype)
            for weights, (_, to_weights), mean in zip(maps, products, means, strict=True)
        ]
        for h, slope in zip(heads, slopes, strict=True):
            to_query[0, h] = (dot(key[0, h], slope, (1, 0)) * scale).astype(to_query.dtype)
            add(to_key, h, dot(load(query, h), slope, (1, 1)) * scale)

    _in_groups(plan, start, finish)
