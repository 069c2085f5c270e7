"""Residual branches of a transformer block for TPUs, each one Pallas kernel forward and one
backward.

A branch is x + keep * out(middle(in(norm(x)))): layer norm, a linear layer, attention or the exact
GELU, a second linear layer, stochastic depth. Between these, an image leaves VMEM only in the
residuals of the backward pass, and no array changes its layout. The gradients of the weights are
summed over images in VMEM, too.

Letters: B batch, N tokens, C channels, M outputs of the first linear layer (3C or the hidden
width), K inputs of the second one (C or the hidden width). Kernels see (P, C, lanes), P programs,
tokens in lanes, as those of attention do. `to_x` is the gradient with respect to x.
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

from pit_jax.ops import tpu
from pit_jax.ops.batch_shards import per_batch_shard
from pit_jax.ops.branch_tpu_kernels import backward_kernel, bias_in_kernel, forward_kernel
from pit_jax.ops.branch_tpu_middle import Middle, Work, slice_sums
from pit_jax.ops.branch_tpu_plan import plan_work, supports
from pit_jax.ops.layer_norm import layer_norm
from pit_jax.ops.linear import linear
from pit_jax.ops.tpu import LANES, ROWS, ShapeAndDtype


class Weights(NamedTuple):
    """Weights of one residual branch.

    Attributes:
      scale, shift: (C,), float32, of the layer norm.
      kernel_in: (C, M), in the dtype of the tokens, like all that follow.
      bias_in: (M,).
      kernel_out: (K, C).
      bias_out: (C,).
    """

    scale: jax.Array
    shift: jax.Array
    kernel_in: jax.Array
    bias_in: jax.Array
    kernel_out: jax.Array
    bias_out: jax.Array


def add_branch(
    middle: Middle, x: jax.Array, keep: jax.Array, weights: Weights, *, interpret: bool = False
) -> jax.Array:
    """x + keep * (middle(norm(x) @ kernel_in + bias_in) @ kernel_out + bias_out).

    Args:
      middle: `Gelu` or `Attention`.
      x: (B, N, C), bfloat16 or float32, of a shape that `branch_tpu_plan.supports` accepts.
      keep: (B,), float32, factor of each image's branch (stochastic depth); it has no gradient.
      weights: of the layers.
      interpret: runs the kernel on other platforms, slowly, operation by operation.

    Returns:
      As `x`.

    Raises:
      ValueError: a shape or dtype that `supports` refuses.
    """
    width = weights.kernel_in.shape[1]
    if not supports(middle, x, width):
        raise ValueError(
            "the TPU kernel of a branch takes bfloat16 or float32, channels and head widths that "
            f"{ROWS} divides, and images that fit in VMEM; found {x.dtype}{list(x.shape)} widened "
            f'to {width} for {middle.name}: use lowerings.override(branch="parts")'
        )
    work = plan_work(middle, x, width)
    launch = _Launch(middle, work, tpu.vmem_bytes(x), tpu.cores(x), interpret)
    keep = keep.reshape(-1, work.images)
    return _unpack(_branch(launch, _pack(x, work), keep, weights), work)


def _pack(x: jax.Array, work: Work) -> jax.Array:
    """(B, N, C) to (P, C, lanes)."""
    return x.reshape(-1, work.lanes, work.channels).transpose(0, 2, 1)


def _unpack(x: jax.Array, work: Work) -> jax.Array:
    """(P, C, lanes) to (B, N, C)."""
    return x.transpose(0, 2, 1).reshape(-1, work.tokens, work.channels)


class _Results(NamedTuple):
    """Arrays that a kernel writes.

    Attributes:
      images: results of a program's images.
      sums: results that are sums over images.
      scratch: intermediates of a program in VMEM.
    """

    images: Sequence[ShapeAndDtype]
    sums: Sequence[ShapeAndDtype]
    scratch: Sequence[ShapeAndDtype]


@dataclasses.dataclass(frozen=True)
class _Launch:
    """Parameters of a branch's kernels, and the call of one.

    Attributes:
      middle, work: of a program.
      vmem: bytes of VMEM for a program.
      cores: of a chip, which run at the same time.
      interpret: runs kernels on other platforms.
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
        """Runs a kernel on operands of the images (P, ...) and on shared ones. Sums are partial,
        (cores, ...): one for each core.
        """
        programs = len(keep)
        parts = math.gcd(self.cores, programs)
        rows = programs // parts

        def image_block(shape: Sequence[int]) -> pl.BlockSpec:
            zeros = (0,) * len(shape)
            return pl.BlockSpec((1, *shape), lambda part, row: (part * rows + row, *zeros))

        def sum_block(shape: Sequence[int]) -> pl.BlockSpec:
            zeros = (0,) * len(shape)
            return pl.BlockSpec(
                (1, *shape), lambda part, row: (part, *zeros), pipeline_mode=pl.Buffered(1)
            )

        def whole(shape: Sequence[int]) -> pl.BlockSpec:
            return pl.BlockSpec(tuple(shape), lambda part, row: (0,) * len(shape))

        direction = "backward" if results.sums else "forward"
        return pl.pallas_call(
            functools.partial(kernel, self.middle, self.work, rows),
            grid=(parts, rows),
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                *(image_block(x.shape[1:]) for x in images),
                *(whole(x.shape) for x in shared),
            ],
            out_specs=[
                *(image_block(shape) for shape, _ in results.images),
                *(sum_block(shape) for shape, _ in results.sums),
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

    # Operands and results are kept out of VMEM between kernels. XLA would compile each kernel anew
    # whose operands lie in other places, and gain less than a hundredth of a step.

    def _in_main_memory(self, x: jax.Array) -> jax.Array:
        return x if self.interpret else pltpu.with_memory_space_constraint(x, pltpu.HBM)

    def _result(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype) if self.interpret else pltpu.HBM(shape, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _branch(launch: _Launch, x: jax.Array, keep: jax.Array, weights: Weights) -> jax.Array:
    if launch.work.tokens >= LANES:
        return _forward(launch, False, x, keep, weights)[0]
    # Without a gradient, XLA is faster on short sequences: only the backward kernel gains there.
    tokens = _unpack(x, launch.work)
    normed = layer_norm(tokens, weights.scale, weights.shift)
    mixed = launch.middle.by_xla(normed, weights.kernel_in, weights.bias_in)
    branch = linear(mixed, weights.kernel_out, weights.bias_out)
    kept = keep.reshape(-1, 1, 1).astype(branch.dtype) * branch
    return _pack(tokens + kept, launch.work)


def _branch_forward(
    launch: _Launch, x: jax.Array, keep: jax.Array, weights: Weights
) -> tuple[jax.Array, Any]:
    out, *residuals = _forward(launch, True, x, keep, weights)
    return out, (x, keep, weights, residuals)


def _branch_backward(
    launch: _Launch, operands: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, Weights]:
    x, keep, weights, residuals = operands
    to_x, to_weights = _backward(launch, x, keep, weights, [gradient, *residuals])
    return to_x, jnp.zeros_like(keep), to_weights


_branch.defvjp(_branch_forward, _branch_backward)


def _vectors(weights: Weights) -> jax.Array:
    """Scale, shift and the second bias as columns (C, 3), float32."""
    rows = (weights.scale, weights.shift, weights.bias_out)
    return jnp.stack([row.astype(jnp.float32) for row in rows]).T


# Under `jit`, layers of one shape share one trace of the kernel.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    launch: _Launch, differentiated: bool, x: jax.Array, keep: jax.Array, weights: Weights
) -> Sequence[jax.Array]:
    """Result of the branch (P, C, lanes) and, if differentiated, the backward pass's residuals."""
    middle, work = launch.middle, launch.work
    tokens = (x.shape[1:], x.dtype)
    residuals = middle.residuals(work) if differentiated else []
    scratch = [] if differentiated else middle.forward_scratch(work)
    results = _Results([tokens, *residuals], [], [*scratch, *slice_sums(middle, work)])

    # Weights are rearranged inside the kernel's shard, where they are whole.
    def kernel(x: jax.Array, keep: jax.Array, *weights: jax.Array) -> Sequence[jax.Array]:
        operands = _forward_operands(work, Weights(*weights))
        return launch.call(forward_kernel, keep, [x], operands, results)

    return per_batch_shard(kernel, x, keep, shared=weights)


def _forward_operands(work: Work, weights: Weights) -> list[jax.Array]:
    """Kernels (M, C or more) and (C, K), vectors (C, 3), and the first bias (M, 1) unless it is in
    the first kernel.
    """
    kernel_in, bias_in = weights.kernel_in, weights.bias_in[None]
    if bias_in_kernel(work):
        kernel_in = jnp.concatenate([kernel_in, jnp.pad(bias_in, ((0, ROWS - 1), (0, 0)))])
    operands = [kernel_in.T, weights.kernel_out.T, _vectors(weights)]
    return operands if bias_in_kernel(work) else [*operands, bias_in.astype(jnp.float32).T]


@functools.partial(jax.jit, static_argnums=0)
def _backward(
    launch: _Launch,
    x: jax.Array,
    keep: jax.Array,
    weights: Weights,
    arriving: Sequence[jax.Array],
) -> tuple[jax.Array, Weights]:
    """Gradients of the tokens (P, C, lanes) and of the weights.

    Args:
      launch: of the kernel.
      x, keep, weights: operands of the forward pass.
      arriving: gradient of the result, then the residuals.
    """
    (channels, width), width_out = weights.kernel_in.shape, len(weights.kernel_out)
    results = _Results(
        images=[(x.shape[1:], x.dtype)],
        sums=[
            ((channels, width), x.dtype),
            ((ROWS, width), x.dtype),
            ((channels, width_out), x.dtype),
            ((3, channels, LANES), jnp.float32),
        ],
        scratch=[
            ((channels + ROWS, width), jnp.float32),
            ((channels, width_out), jnp.float32),
            ((3, channels, LANES), jnp.float32),
            *launch.middle.backward_scratch(launch.work),
            *slice_sums(launch.middle, launch.work),
        ],
    )

    def kernel(x: jax.Array, keep: jax.Array, *arrays: jax.Array) -> Any:
        images, whole = [x, *arrays[: len(arriving)]], Weights(*arrays[len(arriving) :])
        operands = [whole.kernel_in, whole.kernel_out, _vectors(whole)]
        to_x, *sums, vectors = launch.call(backward_kernel, keep, images, operands, results)
        # Rounded before the sum over devices, as the gradients of other layers are.
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
