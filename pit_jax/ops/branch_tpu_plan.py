"""The choice of residual branches for the kernels of `branch_tpu`, and of the number of images that
a program takes.

Letters: B batch, N tokens, C channels, M outputs of the first linear layer, K inputs of the second.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pit_jax.ops import lowerings, tpu
from pit_jax.ops.batch_shards import rows_per_shard
from pit_jax.ops.branch_tpu_middle import Gelu, Middle, Work, slice_sums
from pit_jax.ops.tpu import LANES, ROWS, ShapeAndDtype, lane_utilisation

# Smallest share of lanes in use at which the kernels beat XLA (docs/performance.md).
_MIN_UTILISATION = 0.6
# Images side by side in lanes: possible numbers, the most lanes they may take, and the share of the
# best utilisation that is good enough.
_IMAGES = (1, 2, 4, 8, 16)
_MAX_LANES = 1024
_GOOD_ENOUGH = 0.95


def is_faster(middle: Middle, x: jax.Array | jax.ShapeDtypeStruct, width: int) -> bool:
    """Whether the kernels take tokens (B, N, C) that the first layer widens to M = `width`, and
    beat XLA on TPUs. False for a batch size that is a symbol.
    """
    if x.dtype != jnp.bfloat16 or not lowerings.is_known(x.shape[0]):
        return False
    work = plan_work(middle, x, width)
    return lane_utilisation(work.lanes) >= _MIN_UTILISATION and _block_fits(middle, work, x)


def supports(middle: Middle, x: jax.Array | jax.ShapeDtypeStruct, width: int) -> bool:
    """Whether the kernels take tokens (B, N, C) that the first layer widens to M = `width`."""
    return _fits(middle, plan_work(middle, x, width), x)


def plan_work(middle: Middle, x: jax.Array | jax.ShapeDtypeStruct, width: int) -> Work:
    """The work of one program on tokens (B, N, C).

    Unused lanes cost as much as used ones, so that several images lie side by side: as few as use
    the lanes well enough.
    """
    batch, (_, tokens, channels) = rows_per_shard(x), x.shape
    work = Work(tokens, 1, channels, width, jnp.dtype(x.dtype))
    programs = batch // math.gcd(batch, tpu.cores(x))
    counts = [
        count
        for count in _IMAGES
        if programs % count == 0
        and count * tokens <= _MAX_LANES
        and _block_fits(middle, dataclasses.replace(work, images=count), x)
    ] or [1]
    enough = _GOOD_ENOUGH * max(lane_utilisation(count * tokens) for count in counts)
    images = next(count for count in counts if lane_utilisation(count * tokens) >= enough)
    return dataclasses.replace(work, images=images)


def _fits(middle: Middle, work: Work, x: jax.Array | jax.ShapeDtypeStruct) -> bool:
    if work.dtype not in (jnp.bfloat16, jnp.float32) or work.channels % ROWS or work.width % ROWS:
        return False
    return middle.supports(work) and needed_vmem_bytes(middle, work) <= tpu.vmem_bytes(x)


def _block_fits(middle: Middle, work: Work, x: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether both branches of a block fit, as far as one of them can tell.

    Both must take the same number of images, or tokens would be copied between them. The other
    branch is assumed to be an MLP of four times the width.
    """
    mlp = dataclasses.replace(work, width=4 * work.channels)
    return _fits(middle, work, x) and _fits(Gelu(), mlp, x)


def needed_vmem_bytes(middle: Middle, work: Work) -> int:
    """Upper estimate of the VMEM of a program of the backward kernel, in bytes."""
    width_out = middle.width_out(work)
    tokens: ShapeAndDtype = ((work.channels, work.lanes), work.dtype)
    weights = [((work.channels, width), work.dtype) for width in (work.width, width_out)]
    sums = [
        ((work.channels + ROWS, width), dtype)
        for width in (work.width, width_out)
        for dtype in (jnp.float32, work.dtype)
    ]
    temporaries = [((work.channels, work.lanes), jnp.float32)] * 4 + middle.temporaries(work)
    single = [*middle.backward_scratch(work), *slice_sums(middle, work), *temporaries]
    # Operands and results of images are there twice, for one program and the next.
    double = [*[tokens] * 3, *middle.residuals(work)]
    return 2 * _padded_bytes(*double) + _padded_bytes(*weights, *sums, *single)


def _padded_bytes(*arrays: ShapeAndDtype) -> int:
    """Bytes of arrays in VMEM, padded to whole registers."""
    total = 0
    for (*others, rows, columns), dtype in arrays:
        size = jnp.dtype(dtype).itemsize
        tile_rows = 32 // size
        tiles = math.prod(others) * pl.cdiv(rows, tile_rows) * pl.cdiv(columns, LANES)
        total += tiles * tile_rows * LANES * size
    return total
