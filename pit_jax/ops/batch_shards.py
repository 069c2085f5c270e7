"""Kernels that the compiler cannot partition, run on each device's shard of the batch."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# Maps arrays to arrays, for any batch size. The batch is the first axis of every array but the
# shared ones. A kernel with sums returns two sequences: such arrays, and sums over the batch.
Kernel = Callable[..., Any]


def per_batch_shard(
    kernel: Kernel, *operands: jax.Array, shared: Sequence[jax.Array] = (), sums: bool = False
) -> Any:
    """Calls a kernel on arrays (B, ...) that may be split over devices; axis 0 is independent.

    If the operands' types know the mesh, this is a `shard_map`, whose programs the persistent
    compilation cache finds again. Otherwise the compiler finds the operands' shardings.
    Under `jax.vmap` the mapped axis joins the batch, unless arrays are shared or summed: then one
    call follows the other.

    Args:
      kernel: takes `operands`, then `shared`.
      *operands: each (B, ...).
      shared: arrays that the whole batch needs, such as weights; replicated on every device.
      sums: whether the kernel returns a second sequence, of sums over the batch; these are then
        summed over devices, too.

    Returns:
      The kernel's results.
    """
    if shared or sums:
        count = len(operands)

        def call_split(*arrays: jax.Array) -> Any:
            return _split(kernel, arrays[:count], arrays[count:], sums)

        return sequential_vmap(call_split)(*operands, *shared)

    @custom_vmap
    def call(*arrays: jax.Array) -> Sequence[jax.Array]:
        return tuple(_split(kernel, arrays, (), False))

    @call.def_vmap
    def call_mapped(size: int, mapped: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        joined = [
            (array if axis else array[None].repeat(size, 0)).reshape(-1, *array.shape[axis + 1 :])
            for array, axis in zip(arrays, mapped, strict=True)
        ]
        outputs = tuple(
            output.reshape(size, -1, *output.shape[1:])
            for output in _split(kernel, joined, (), False)
        )
        return outputs, (True,) * len(outputs)

    return call(*operands)


def rows_per_shard(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Number of rows of an array (B, ...) that divides every device's shard: the size of the shard,
    where that is known.
    """
    if not isinstance(x, jax.Array):
        return x.shape[0]
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty:
        return x.shape[0] if len(jax.devices()) == 1 else 1
    if AxisType.Auto not in mesh.axis_types:
        return x.shape[0]
    return x.shape[0] // math.prod(mesh.shape[name] for name in _axes(x))


def _axes(x: jax.Array) -> tuple[str, ...]:
    """Axes of the mesh in an array's type that split its first axis evenly."""
    axes: list[str] = []
    shards = 1
    for name, size in jax.typeof(x).sharding.mesh.shape.items():
        if x.shape[0] % (shards * size) == 0:
            axes.append(name)
            shards *= size
    return tuple(axes)


def _split(
    kernel: Kernel, operands: Sequence[jax.Array], shared: Sequence[jax.Array], sums: bool
) -> Any:
    mesh = jax.typeof(operands[0]).sharding.mesh
    if mesh.empty:
        return _partitioned(kernel, operands, shared, sums)
    if AxisType.Auto not in mesh.axis_types:
        # Inside a shard_map: this is a device's shard already, and so are its sums.
        return kernel(*operands, *shared)
    axes = _axes(operands[0])
    rows, whole = PartitionSpec(axes), PartitionSpec()
    # With `check_vma` the kernel would have to state the axes that its results vary over.
    return jax.shard_map(
        _summed(kernel, axes) if sums else kernel,
        mesh=mesh,
        in_specs=(rows,) * len(operands) + (whole,) * len(shared),
        out_specs=(rows, whole) if sums else rows,
        check_vma=False,
    )(*operands, *shared)


def _summed(kernel: Kernel, axes: str | Sequence[str] | None) -> Kernel:
    """Kernel whose sums run over the devices of mesh axes, too."""

    def call(*arrays: jax.Array) -> Any:
        results, totals = kernel(*arrays)
        return tuple(results), jax.lax.psum(tuple(totals), axes) if axes else tuple(totals)

    return call


def _partitioned(
    kernel: Kernel, operands: Sequence[jax.Array], shared: Sequence[jax.Array], sums: bool
) -> Any:
    """Kernel with a rule for the compiler's partitioner: along the batch, or not at all."""
    both = jax.eval_shape(kernel, *operands, *shared)
    results, totals = both if sums else (both, ())

    def partition(mesh: Any, inputs: Any, outputs: Any) -> tuple[Any, ...]:
        spec = inputs[0].sharding.spec
        axes = spec[0] if len(spec) else None
        rows, whole = (NamedSharding(mesh, PartitionSpec(names)) for names in (axes, None))
        placed = (rows,) * len(results)
        return (
            mesh,
            _summed(kernel, axes) if sums else kernel,
            (placed, (whole,) * len(totals)) if sums else placed,
            (rows,) * len(operands) + (whole,) * len(shared),
        )

    # "batch x0 x1, batch x2, x3 x4 -> batch x5, x6": arrays have no axis in common but the batch.
    own = (f"x{number}" for number in itertools.count())

    def axes_of(array: Any, batched: bool) -> str:
        return " ".join(["batch"] * batched + list(itertools.islice(own, array.ndim - batched)))

    terms = [
        ", ".join(
            [axes_of(array, True) for array in split] + [axes_of(array, False) for array in whole]
        )
        for split, whole in ((operands, shared), (results, totals))
    ]
    call = custom_partitioning(kernel)
    call.def_partition(partition=partition, sharding_rule=" -> ".join(terms))
    return call(*operands, *shared)
