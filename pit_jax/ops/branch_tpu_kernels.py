"""Bodies of the Pallas kernels of `branch_tpu`, forward and backward.

Letters: C channels, M outputs of the first linear layer, K inputs of the second. Tokens lie in
lanes, those of several images side by side. `to_x` is the gradient with respect to x.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pit_jax.ops.branch_tpu_middle import Middle, Work, slice_sums
from pit_jax.ops.layer_norm import EPSILON
from pit_jax.ops.tpu import LANES, ROWS, Ref, dot


def bias_in_kernel(work: Work) -> bool:
    """Whether the first bias becomes one more row of its kernel, multiplied by ones: free where the
    channels do not fill the last lanes.
    """
    return pl.cdiv(work.channels + ROWS, LANES) == pl.cdiv(work.channels, LANES)


class _Norm(NamedTuple):
    """Result of a layer norm, and the values that its gradient needs.

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


def _factors(keep: Ref, work: Work, programs: int) -> jax.Array:
    """Factor of the branch: a scalar for one image, (1, lanes) for several."""
    first = (pl.program_id(0) * programs + pl.program_id(1)) * work.images
    kept = keep[first]
    for image in range(1, work.images):
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, work.lanes), 1)
        kept = jnp.where(lane < image * work.tokens, kept, keep[first + image])
    return kept


def forward_kernel(middle: Middle, work: Work, programs: int, *refs: Ref) -> None:
    """The whole branch of one program's images.

    Args:
      middle: the operation between the linear layers.
      work: of the program.
      programs: number of programs of a core.
      *refs: `keep` of all images; blocks of the images' operands; the shared operands; blocks of
        the images' results; scratch.
    """
    keep, x_ref, kernel_in, kernel_out, vectors_ref, *results = refs
    bias_in, results = _split(results, 0 if bias_in_kernel(work) else 1)
    out, *kept = results
    kept, total = _split(kept, len(kept) - len(slice_sums(middle, work)))
    x, vectors = x_ref[0].astype(jnp.float32), vectors_ref[...]
    normed = _norm(x, vectors).out.astype(work.dtype)
    if not bias_in:
        normed = _with_ones(normed)

    def slice_result(rows: Any, kept: Sequence[Ref]) -> jax.Array:
        hidden = dot(kernel_in[rows], normed, (1, 0))
        for ref in bias_in:
            hidden += ref[rows]
        return dot(kernel_out[:, rows], middle.forward(hidden, work, kept), (1, 0))

    branch = _sum_over_slices(middle, work, slice_result, kept, total) + vectors[:, 2:3]
    out[0] = (x + _factors(keep, work, programs) * branch).astype(work.dtype)


def backward_kernel(middle: Middle, work: Work, programs: int, *refs: Ref) -> None:
    """Gradients of one program's images, and their sums for the weights over the images of a core.

    Args:
      middle, work, programs: as in `forward_kernel`.
      *refs: as in `forward_kernel`; the results end with the sums.
    """
    keep, x_ref, gradient_ref, *rest = refs
    kept, rest = _split(rest, len(middle.residuals(work)))
    kernel_in, kernel_out, vectors_ref, to_x, *rest = rest
    results, (to_in, to_out, to_vectors, *rest) = _split(rest, 4)
    scratch, total = _split(rest, len(rest) - len(slice_sums(middle, work)))

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for ref in (to_in, to_out, to_vectors):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    x, vectors = x_ref[0].astype(jnp.float32), vectors_ref[...]
    norm = _norm(x, vectors)
    gradient = gradient_ref[0].astype(jnp.float32)
    to_branch = gradient * _factors(keep, work, programs)
    arriving = to_branch.astype(work.dtype)
    # The rows of ones give the gradient of the first bias.
    normed = _with_ones(norm.out.astype(work.dtype))

    def slice_gradient(rows: Any, kept: Sequence[Ref]) -> jax.Array:
        to_mixed = dot(kernel_out[rows], arriving, (1, 0))
        mixed, to_hidden = middle.backward(to_mixed, work, kept, scratch)
        # Both (C, ...): the matrix unit's time grows with the rows of the first operand.
        to_out[:, rows] += dot(arriving, mixed, (1, 1))
        to_in[:, rows] += dot(normed, to_hidden, (1, 1))
        return dot(kernel_in[:, rows], to_hidden, (1, 0))

    to_normed = _sum_over_slices(middle, work, slice_gradient, kept, total)
    to_vectors[0] += _sum_over_lanes(to_normed * norm.unit)
    to_vectors[1] += _sum_over_lanes(to_normed)
    to_vectors[2] += _sum_over_lanes(to_branch)
    to_unit = to_normed * vectors[:, 0:1]
    level = to_unit.mean(0, keepdims=True)
    along = (to_unit * norm.unit).mean(0, keepdims=True)
    to_x[0] = (gradient + norm.factor * (to_unit - level - norm.unit * along)).astype(work.dtype)

    @pl.when(pl.program_id(1) == programs - 1)
    def _() -> None:
        sums = (to_in[: work.channels], to_in[work.channels :], to_out[...], to_vectors[...])
        for out, total in zip(results, sums, strict=True):
            out[0] = total.astype(out.dtype)


def _sum_over_slices(
    middle: Middle,
    work: Work,
    compute: Callable[[Any, Sequence[Ref]], jax.Array],
    kept: Sequence[Ref],
    total: Sequence[Ref],
) -> jax.Array:
    """Sum over slices of M and K of `compute(rows, kept of these rows)`."""
    if not total:
        return compute(slice(None), kept)
    (total_ref,) = total
    size = work.width // middle.slices(work)
    total_ref[...] = jnp.zeros(total_ref.shape, total_ref.dtype)

    @pl.loop(0, middle.slices(work))
    def _(index: jax.Array) -> None:
        rows = pl.ds(pl.multiple_of(index * size, size), size)
        total_ref[...] += compute(rows, [ref.at[:, rows] for ref in kept])

    return total_ref[...]


def _split(refs: Sequence[Ref], count: int) -> tuple[list[Ref], list[Ref]]:
    return list(refs[:count]), list(refs[count:])


def _with_ones(tokens: jax.Array) -> jax.Array:
    """(C, lanes) with one more register, of rows of ones."""
    return jnp.concatenate([tokens, jnp.ones((ROWS, tokens.shape[1]), tokens.dtype)])


def _sum_over_lanes(x: jax.Array) -> jax.Array:
    """Partial sums (C, 128) of (C, lanes) over registers."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES)))
    registers = (padded[:, start : start + LANES] for start in range(0, padded.shape[1], LANES))
    return functools.reduce(jnp.add, registers)
