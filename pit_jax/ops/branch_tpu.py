"""Residual branches of a transformer block for TPUs, each one Pallas kernel forward and one back.

A branch is x + keep * out(middle(in(norm(x)))): layer norm, a linear layer, attention or the exact
GELU, a second linear layer, stochastic depth. Nothing of an image leaves VMEM between these but
what the backward pass reads again, and nothing is copied from one layout into another. The
gradients of the weights are summed over images in VMEM, too.

Letters: B batch, N tokens, C channels, M what the first linear layer gives (3C or the hidden
width), K what the second one takes (C or the hidden width). Kernels see (P, C, lanes), P programs,
tokens in lanes, as those of attention do.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pit_jax.ops.attention_tpu import LANES, VMEM_BYTES, Ref, dot
from pit_jax.ops.branch_middle import ROWS, Array, Gelu, Middle, Work
from pit_jax.ops.layer_norm import EPSILON, normalised
from pit_jax.ops.linear import linear_map
from pit_jax.ops.sharded_kernel import per_batch_shard, share

# Of the lanes, for kernels to be faster (docs/performance.md).
_MIN_FILLED = 0.6
# Images side by side in lanes: how many, in how many lanes at most, and which share of the best
# filling is as good as the best.
_TOGETHER = (1, 2, 4, 8, 16)
_MAX_LANES = 1024
_NEARLY = 0.95
# Bytes of VMEM for a program: all that the oldest TPUs have, and as much as the least of others.
_SMALL_VMEM = VMEM_BYTES
_VMEM = 4 * _SMALL_VMEM
_SMALL_TPUS = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")


class Weights(NamedTuple):
    """Of a branch, named after what they do.

    Attributes:
      scale, shift: (C,), of the layer norm, float32.
      kernel_in: (C, M), in the dtype of the tokens.
      bias_in: (M,), likewise.
      kernel_out: (K, C), likewise.
      bias_out: (C,), likewise.
    """

    scale: jax.Array
    shift: jax.Array
    kernel_in: jax.Array
    bias_in: jax.Array
    kernel_out: jax.Array
    bias_out: jax.Array


def pays(middle: Middle, x: jax.Array | jax.ShapeDtypeStruct, width: int) -> bool:
    """Whether the kernels take such tokens, and are on TPUs faster than the parts."""
    work = _work(middle, x, width)
    filled = _filled(work.lanes) >= _MIN_FILLED
    return x.dtype == jnp.bfloat16 and filled and _block_fits(middle, work, x)


def supports(middle: Middle, x: jax.Array | jax.ShapeDtypeStruct, width: int) -> bool:
    """Whether the kernels take tokens (B, N, C) that the first layer widens to M = `width`."""
    return _fits(middle, _work(middle, x, width), x)


def add_branch(
    middle: Middle, x: jax.Array, keep: jax.Array, weights: Weights, *, interpret: bool = False
) -> jax.Array:
    """x + keep * (middle(norm(x) @ kernel_in + bias_in) @ kernel_out + bias_out).

    Args:
      middle: `Gelu` or `Attention`.
      x: (B, N, C), bfloat16 or float32; `supports` says whether its shape will do.
      keep: (B,), float32: what an image's branch is multiplied by; it has no gradient.
      weights: of the layers.
      interpret: runs the kernel off TPUs, slowly, operation by operation.

    Returns:
      As `x`.

    Raises:
      ValueError: what `supports` refuses.
    """
    width = weights.kernel_in.shape[1]
    if not supports(middle, x, width):
        raise ValueError(
            "the TPU kernel of a branch takes bfloat16 or float32, channels and head widths that "
            f"{ROWS} divides, and images that fit in VMEM; found {x.dtype}{list(x.shape)} widened "
            f'to {width} for {middle.name}: use lowerings.override(branch="parts")'
        )
    work = _work(middle, x, width)
    setting = _Setting(middle, work, _vmem(x), _cores(x), interpret)
    keep = keep.reshape(-1, work.together)
    return _unpacked(_branch(setting, _packed(x, work), keep, weights), work)


def _packed(x: jax.Array, work: Work) -> jax.Array:
    """(B, N, C) to (P, C, lanes)."""
    return x.reshape(-1, work.lanes, work.channels).transpose(0, 2, 1)


def _unpacked(x: jax.Array, work: Work) -> jax.Array:
    """(P, C, lanes) to (B, N, C)."""
    return x.transpose(0, 2, 1).reshape(-1, work.tokens, work.channels)


def _work(middle: Middle, x: jax.Array | jax.ShapeDtypeStruct, width: int) -> Work:
    """For tokens (B, N, C): as few images together as fill the lanes well enough, because those
    that a sequence leaves empty are computed, too.
    """
    batch, (_, tokens, channels) = share(x), x.shape
    work = Work(tokens, 1, channels, width, jnp.dtype(x.dtype))
    programs = batch // math.gcd(batch, _cores(x))
    counts = [
        count
        for count in _TOGETHER
        if programs % count == 0
        and count * tokens <= _MAX_LANES
        and _block_fits(middle, dataclasses.replace(work, together=count), x)
    ] or [1]
    enough = _NEARLY * max(_filled(count * tokens) for count in counts)
    together = next(count for count in counts if _filled(count * tokens) >= enough)
    return dataclasses.replace(work, together=together)


def _filled(lanes: int) -> float:
    return lanes / (pl.cdiv(lanes, LANES) * LANES)


def _fits(middle: Middle, work: Work, x: jax.Array | jax.ShapeDtypeStruct) -> bool:
    if work.dtype not in (jnp.bfloat16, jnp.float32) or work.channels % ROWS or work.width % ROWS:
        return False
    return middle.supports(work) and vmem_bytes(middle, work) <= _vmem(x)


def _block_fits(middle: Middle, work: Work, x: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether both branches of a block fit, as far as can be told from one: they take as many
    images together, or tokens would be copied between them. The other one is mostly an MLP of four
    times the width.
    """
    mlp = dataclasses.replace(work, width=4 * work.channels)
    return _fits(middle, work, x) and _fits(Gelu(), mlp, x)


def vmem_bytes(middle: Middle, work: Work) -> int:
    """VMEM of a program of the backward kernel, an estimate from above."""

    def padded(*arrays: Array) -> int:
        total = 0
        for (*others, rows, columns), dtype in arrays:
            size = jnp.dtype(dtype).itemsize
            tile_rows = 32 // size
            tiles = math.prod(others) * pl.cdiv(rows, tile_rows) * pl.cdiv(columns, LANES)
            total += tiles * tile_rows * LANES * size
        return total

    taken = middle.taken(work)
    tokens: Array = ((work.channels, work.lanes), work.dtype)
    weights = [((work.channels, width), work.dtype) for width in (work.width, taken)]
    sums = [
        ((work.channels + ROWS, width), dtype)
        for width in (work.width, taken)
        for dtype in (jnp.float32, work.dtype)
    ]
    values = [((work.channels, work.lanes), jnp.float32)] * 4 + middle.values(work)
    once = [*middle.scratch(work), *_totals(middle, work), *values]
    # What images bring and take is there twice, for one program and the next.
    return 2 * padded(*[tokens] * 3, *middle.saved(work)) + padded(*weights, *sums, *once)


def _chip(x: jax.Array | jax.ShapeDtypeStruct) -> Any:
    """The TPU that a program is for: what the mesh that an array's type knows is made of, or else
    the one that is there; None where neither says.
    """
    mesh = jax.typeof(x).sharding.mesh if isinstance(x, jax.Array) else None
    known = None if mesh is None or mesh.empty else mesh.abstract_device
    chip = known or jax.devices()[0]
    return chip if chip.platform == "tpu" else None


def _vmem(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bytes of VMEM for a program; those of the oldest TPUs where it is not known which it is."""
    chip = _chip(x)
    return _SMALL_VMEM if chip is None or chip.device_kind in _SMALL_TPUS else _VMEM


def _cores(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    chip = _chip(x)
    return 1 if chip is None else chip.num_cores or 1


class _Results(NamedTuple):
    """What a kernel writes.

    Attributes:
      images: shape and dtype of each result of a program's images.
      sums: the same of what is summed over images.
      scratch: the same of what a program needs besides.
    """

    images: Sequence[Array]
    sums: Sequence[Array]
    scratch: Sequence[Array]


@dataclasses.dataclass(frozen=True)
class _Setting:
    """How the kernels of a branch are made.

    Attributes:
      middle, work: what a program does.
      vmem: bytes for it.
      cores: of a chip, which run at the same time.
      interpret: off TPUs.
    """

    middle: Middle
    work: Work
    vmem: int
    cores: int
    interpret: bool

    def call(
        self,
        kernel: Callable[..., None],
        keep: jax.Array,
        images: Sequence[jax.Array],
        shared: Sequence[jax.Array],
        results: _Results,
    ) -> Sequence[jax.Array]:
        """Runs a kernel on what images have, (P, ...), and what they share. Sums come in parts,
        (cores, ...).
        """
        programs = len(keep)
        parts = math.gcd(self.cores, programs)
        rows = programs // parts

        def of_program(shape: Sequence[int]) -> pl.BlockSpec:
            zeros = (0,) * len(shape)
            return pl.BlockSpec((1, *shape), lambda part, row: (part * rows + row, *zeros))

        def of_part(shape: Sequence[int]) -> pl.BlockSpec:
            zeros = (0,) * len(shape)
            return pl.BlockSpec(
                (1, *shape), lambda part, row: (part, *zeros), pipeline_mode=pl.Buffered(1)
            )

        def of_all(shape: Sequence[int]) -> pl.BlockSpec:
            return pl.BlockSpec(tuple(shape), lambda part, row: (0,) * len(shape))

        direction = "backward" if results.sums else "forward"
        return pl.pallas_call(
            functools.partial(kernel, self.middle, self.work, rows),
            grid=(parts, rows),
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                *(of_program(x.shape[1:]) for x in images),
                *(of_all(x.shape) for x in shared),
            ],
            out_specs=[
                *(of_program(shape) for shape, _ in results.images),
                *(of_part(shape) for shape, _ in results.sums),
            ],
            out_shape=[
                *(self._result((programs, *shape), dtype) for shape, dtype in results.images),
                *(self._result((parts, *shape), dtype) for shape, dtype in results.sums),
            ],
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in results.scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=self.vmem
            ),
            name=(
                f"pit_{self.middle.name}_branch_{direction}_{self.work.tokens}x{self.work.channels}"
            ),
            interpret=self.interpret,
        )(keep.reshape(-1), *(self._in_main_memory(x) for x in images), *shared)

    # Operands and results are not kept in VMEM between kernels: those that find theirs in different
    # places are compiled one by one, for less than a hundredth of a step.

    def _in_main_memory(self, x: jax.Array) -> jax.Array:
        return x if self.interpret else pltpu.with_memory_space_constraint(x, pltpu.HBM)

    def _result(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype) if self.interpret else pltpu.HBM(shape, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _branch(setting: _Setting, x: jax.Array, keep: jax.Array, weights: Weights) -> jax.Array:
    if setting.work.tokens >= LANES:
        return _forward(setting, False, x, keep, weights)[0]
    # Of short sequences it is the backward pass that gains; XLA is the faster one without.
    tokens = _unpacked(x, setting.work)
    normed = normalised(tokens, weights.scale, weights.shift)
    taken = setting.middle.apart(normed, weights.kernel_in, weights.bias_in)
    branch = linear_map(taken, weights.kernel_out, weights.bias_out)
    kept = keep.reshape(-1, 1, 1).astype(branch.dtype) * branch
    return _packed(tokens + kept, setting.work)


def _branch_forward(
    setting: _Setting, x: jax.Array, keep: jax.Array, weights: Weights
) -> tuple[jax.Array, Any]:
    out, *saved = _forward(setting, True, x, keep, weights)
    return out, (x, keep, weights, saved)


def _branch_backward(
    setting: _Setting, residuals: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, Weights]:
    x, keep, weights, saved = residuals
    to_x, to_weights = _backward(setting, x, keep, weights, [gradient, *saved])
    return to_x, jnp.zeros_like(keep), to_weights


_branch.defvjp(_branch_forward, _branch_backward)


def _vectors(weights: Weights) -> jax.Array:
    """Scale, shift and the second bias as columns (C, 3), float32."""
    rows = (weights.scale, weights.shift, weights.bias_out)
    return jnp.stack([row.astype(jnp.float32) for row in rows]).T


# Under `jit`, layers of one shape share one trace of a kernel.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    setting: _Setting, save: bool, x: jax.Array, keep: jax.Array, weights: Weights
) -> Sequence[jax.Array]:
    """The branch's result (P, C, lanes) and, if to be saved, what the backward pass reads."""
    middle, work = setting.middle, setting.work
    tokens = (x.shape[1:], x.dtype)
    saved, unsaved = (middle.saved(work), []) if save else ([], middle.unsaved(work))
    results = _Results([tokens, *saved], [], [*unsaved, *_totals(middle, work)])

    # What weights are turned into belongs in here: it is made of whole ones.
    def kernel(x: jax.Array, keep: jax.Array, *weights: jax.Array) -> Sequence[jax.Array]:
        operands = _forward_operands(work, Weights(*weights))
        return setting.call(_forward_kernel, keep, [x], operands, results)

    return per_batch_shard(kernel, x, keep, shared=weights)


def _forward_operands(work: Work, weights: Weights) -> list[jax.Array]:
    """Kernels (M, C or more) and (C, K), vectors, and the first bias if it is not in the kernel."""
    kernel_in, bias_in = weights.kernel_in, weights.bias_in[None]
    if _bias_in_kernel(work):
        kernel_in = jnp.concatenate([kernel_in, jnp.pad(bias_in, ((0, ROWS - 1), (0, 0)))])
    operands = [kernel_in.T, weights.kernel_out.T, _vectors(weights)]
    return operands if _bias_in_kernel(work) else [*operands, bias_in.astype(jnp.float32).T]


@functools.partial(jax.jit, static_argnums=0)
def _backward(
    setting: _Setting,
    x: jax.Array,
    keep: jax.Array,
    weights: Weights,
    arriving: Sequence[jax.Array],
) -> tuple[jax.Array, Weights]:
    """Gradients of the tokens (P, C, lanes) and of the weights, from the result's gradient and what
    the forward pass saved.
    """
    (channels, width), taken = weights.kernel_in.shape, len(weights.kernel_out)
    results = _Results(
        images=[(x.shape[1:], x.dtype)],
        sums=[
            ((channels, width), x.dtype),
            ((ROWS, width), x.dtype),
            ((channels, taken), x.dtype),
            ((3, channels, LANES), jnp.float32),
        ],
        scratch=[
            ((channels + ROWS, width), jnp.float32),
            ((channels, taken), jnp.float32),
            ((3, channels, LANES), jnp.float32),
            *setting.middle.scratch(setting.work),
            *_totals(setting.middle, setting.work),
        ],
    )

    def kernel(x: jax.Array, keep: jax.Array, *arrays: jax.Array) -> Any:
        images, whole = [x, *arrays[: len(arriving)]], Weights(*arrays[len(arriving) :])
        operands = [whole.kernel_in, whole.kernel_out, _vectors(whole)]
        to_x, *sums, vectors = setting.call(_backward_kernel, keep, images, operands, results)
        # Rounded before devices add theirs up, as the gradients of other layers are.
        to_in, to_bias, to_out = (total.sum(0) for total in sums)
        return (to_x,), (to_in, to_bias[0], to_out, vectors.sum((0, 3)))

    (to_x,), (to_in, to_bias_in, to_out, to_vectors) = per_batch_shard(
        kernel, x, keep, *arriving, shared=weights, sums=True
    )
    to_scale, to_shift, to_bias_out = to_vectors
    return to_x, Weights(
        scale=to_scale.astype(weights.scale.dtype),
        shift=to_shift.astype(weights.shift.dtype),
        kernel_in=to_in,
        bias_in=to_bias_in,
        kernel_out=to_out.T,
        bias_out=to_bias_out.astype(weights.bias_out.dtype),
    )


def _bias_in_kernel(work: Work) -> bool:
    """Whether the first bias rides along with ones behind the channels, at no cost: where they end
    in the middle of the lanes of the kernel.
    """
    return pl.cdiv(work.channels + ROWS, LANES) == pl.cdiv(work.channels, LANES)


class _Norm(NamedTuple):
    """A layer norm's result and what its gradient needs.

    Attributes:
      unit: (C, lanes), of mean 0 and variance 1.
      factor: (1, lanes), the reciprocal standard deviation.
      out: (C, lanes), scaled and shifted.
    """

    unit: jax.Array
    factor: jax.Array
    out: jax.Array


def _norm(x: jax.Array, vectors: jax.Array) -> _Norm:
    mean = x.mean(0, keepdims=True)
    variance = jnp.maximum(jnp.square(x).mean(0, keepdims=True) - jnp.square(mean), 0.0)
    factor = jax.lax.rsqrt(variance + EPSILON)
    unit = (x - mean) * factor
    return _Norm(unit, factor, unit * vectors[:, 0:1] + vectors[:, 1:2])


def _kept(keep: Ref, work: Work, programs: int) -> jax.Array:
    """What each lane's image is multiplied by: a scalar for one image, (1, lanes) for several."""
    first = (pl.program_id(0) * programs + pl.program_id(1)) * work.together
    kept = keep[first]
    for image in range(1, work.together):
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, work.lanes), 1)
        kept = jnp.where(lane < image * work.tokens, kept, keep[first + image])
    return kept


def _forward_kernel(middle: Middle, work: Work, programs: int, *refs: Ref) -> None:
    """Blocks of one program's images, of those of a core, and all of what images share."""
    keep, x_ref, kernel_in, kernel_out, vectors_ref, *results = refs
    bias_in, results = _split(results, 0 if _bias_in_kernel(work) else 1)
    out, *saved = results
    saved, total = _split(saved, len(saved) - len(_totals(middle, work)))
    x, vectors = x_ref[0].astype(jnp.float32), vectors_ref[...]
    normed = _norm(x, vectors).out.astype(work.dtype)
    if not bias_in:
        normed = _with_ones(normed)

    def of_slice(rows: Any, saved: Sequence[Ref]) -> jax.Array:
        given = dot(kernel_in[rows], normed, (1, 0))
        for ref in bias_in:
            given += ref[rows]
        return dot(kernel_out[:, rows], middle.forward(given, work, saved), (1, 0))

    branch = _over_slices(middle, work, of_slice, saved, total) + vectors[:, 2:3]
    out[0] = (x + _kept(keep, work, programs) * branch).astype(work.dtype)


def _backward_kernel(middle: Middle, work: Work, programs: int, *refs: Ref) -> None:
    """The same; the last results are sums over the images of a program's core."""
    keep, x_ref, gradient_ref, *rest = refs
    saved, rest = _split(rest, len(middle.saved(work)))
    kernel_in, kernel_out, vectors_ref, to_x, *rest = rest
    results, (to_in, to_out, to_vectors, *rest) = _split(rest, 4)
    scratch, total = _split(rest, len(rest) - len(_totals(middle, work)))

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for ref in (to_in, to_out, to_vectors):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    x, vectors = x_ref[0].astype(jnp.float32), vectors_ref[...]
    norm = _norm(x, vectors)
    gradient = gradient_ref[0].astype(jnp.float32)
    to_branch = gradient * _kept(keep, work, programs)
    arriving = to_branch.astype(work.dtype)
    # With ones, for the gradient of the bias.
    normed = _with_ones(norm.out.astype(work.dtype))

    def of_slice(rows: Any, saved: Sequence[Ref]) -> jax.Array:
        to_taken = dot(kernel_out[rows], arriving, (1, 0))
        taken, to_given = middle.backward(to_taken, work, saved, scratch)
        # Both (C, ...): the matrix unit's time goes by the rows of the first operand.
        to_out[:, rows] += dot(arriving, taken, (1, 1))
        to_in[:, rows] += dot(normed, to_given, (1, 1))
        return dot(kernel_in[:, rows], to_given, (1, 0))

    to_normed = _over_slices(middle, work, of_slice, saved, total)
    to_vectors[0] += _over_lanes(to_normed * norm.unit)
    to_vectors[1] += _over_lanes(to_normed)
    to_vectors[2] += _over_lanes(to_branch)
    to_unit = to_normed * vectors[:, 0:1]
    level = to_unit.mean(0, keepdims=True)
    along = (to_unit * norm.unit).mean(0, keepdims=True)
    to_x[0] = (gradient + norm.factor * (to_unit - level - norm.unit * along)).astype(work.dtype)

    @pl.when(pl.program_id(1) == programs - 1)
    def _() -> None:
        sums = (to_in[: work.channels], to_in[work.channels :], to_out[...], to_vectors[...])
        for out, total in zip(results, sums, strict=True):
            out[0] = total.astype(out.dtype)


def _totals(middle: Middle, work: Work) -> list[Array]:
    """Scratch for the sum over slices of M and K, if there are several."""
    return [((work.channels, work.lanes), jnp.float32)] * (middle.slices(work) > 1)


def _over_slices(
    middle: Middle,
    work: Work,
    of_slice: Callable[[Any, Sequence[Ref]], jax.Array],
    saved: Sequence[Ref],
    total: Sequence[Ref],
) -> jax.Array:
    """The sum over slices of M and K of what their rows, and what is saved of them, give."""
    if not total:
        return of_slice(slice(None), saved)
    (total_ref,) = total
    size = work.width // middle.slices(work)
    total_ref[...] = jnp.zeros(total_ref.shape, total_ref.dtype)

    @pl.loop(0, middle.slices(work))
    def _(index: jax.Array) -> None:
        rows = pl.ds(pl.multiple_of(index * size, size), size)
        total_ref[...] += of_slice(rows, [ref.at[:, rows] for ref in saved])

    return total_ref[...]


def _split(refs: Sequence[Ref], count: int) -> tuple[list[Ref], list[Ref]]:
    return list(refs[:count]), list(refs[count:])


def _with_ones(tokens: jax.Array) -> jax.Array:
    """(C, lanes) with a register of rows of ones."""
    return jnp.concatenate([tokens, jnp.ones((ROWS, tokens.shape[1]), tokens.dtype)])


def _over_lanes(x: jax.Array) -> jax.Array:
    """Sums of (C, lanes) in (C, 128), which are still to be added up."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES)))
    registers = (padded[:, start : start + LANES] for start in range(0, padded.shape[1], LANES))
    return functools.reduce(jnp.add, registers)
