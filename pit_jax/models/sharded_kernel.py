"""Kernels that the compiler cannot partition, run on each device's share of the batch."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# Takes arrays and gives arrays, of any batch size, which is the first axis of each.
Kernel = Callable[..., Sequence[jax.Array]]


def per_batch_shard(kernel: Kernel, *operands: jax.Array) -> Sequence[jax.Array]:
    """Calls a kernel on arrays (B, ...) that may be split over devices; axis 0 is independent.

    A mesh known from the operands' types gives a `shard_map`, whose programs the compilation cache
    can find again. Without one, the operands' shardings are found while compiling.
    Under `jax.vmap` the mapped axis joins the batch.
    """

    @custom_vmap
    def call(*arrays: jax.Array) -> Sequence[jax.Array]:
        return tuple(_split(kernel, arrays))

    @call.def_vmap
    def call_mapped(size: int, mapped: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        joined = [
            (array if axis else array[None].repeat(size, 0)).reshape(-1, *array.shape[axis + 1 :])
            for array, axis in zip(arrays, mapped, strict=True)
        ]
        outputs = tuple(
            output.reshape(size, -1, *output.shape[1:]) for output in _split(kernel, joined)
        )
        return outputs, (True,) * len(outputs)

    return call(*operands)


def _split(kernel: Kernel, operands: Sequence[jax.Array]) -> Sequence[jax.Array]:
    mesh = jax.typeof(operands[0]).sharding.mesh
    if mesh.empty:
        return _partitioned(kernel, operands)
    if AxisType.Auto not in mesh.axis_types:
        # Inside a shard_map: this is a device's share already.
        return kernel(*operands)
    axes: list[str] = []
    shares = 1
    for name, size in mesh.shape.items():
        if operands[0].shape[0] % (shares * size) == 0:
            axes.append(name)
            shares *= size
    # `check_vma` would have the kernel say which axes its results differ over.
    spec = PartitionSpec(tuple(axes))
    return jax.shard_map(kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(
        *operands
    )


def _partitioned(kernel: Kernel, operands: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The kernel with a rule for the compiler's partitioner: along the batch, or not at all."""

    def partition(mesh: Any, inputs: Any, outputs: Any) -> tuple[Any, ...]:
        spec = inputs[0].sharding.spec
        rows = NamedSharding(mesh, PartitionSpec(spec[0] if len(spec) else None))
        return mesh, kernel, (rows,) * len(outputs), (rows,) * len(inputs)

    # "batch x0 x1, batch x2 x3 -> batch x4": every axis but the first is an array's own.
    own = (f"x{number}" for number in itertools.count())
    outputs = jax.eval_shape(kernel, *operands)
    terms = [
        ", ".join(" ".join(["batch", *itertools.islice(own, array.ndim - 1)]) for array in arrays)
        for arrays in (operands, outputs)
    ]
    call = custom_partitioning(kernel)
    call.def_partition(partition=partition, sharding_rule=" -> ".join(terms))
    return call(*operands)
