"""The hardware that Pallas kernels for TPUs are cut to, and what all these kernels use."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# Columns of a register; it has 8 rows of float32, 16 of bfloat16.
LANES = 128
# Rows of a bfloat16 register: sizes have to be multiples of it.
ROWS = 16
# Bytes of VMEM that a program may use: what every TPU has, and what all but the oldest have.
SMALL_VMEM_BYTES = 16 * 2**20
VMEM_BYTES = 4 * SMALL_VMEM_BYTES
_SMALL_VMEM_TPUS = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")

# A block of an operand or a result in VMEM, inside a kernel.
Ref = Any
# Shape and dtype of an array.
ShapeAndDtype = tuple[tuple[int, ...], Any]


def dot(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Matrix product accumulated in float32, contracting one axis of each operand."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    # Products of bfloat16 are exact in float32, and Mosaic refuses to be asked for more.
    precision = jax.lax.Precision.DEFAULT if left.dtype == jnp.bfloat16 else None
    return jax.lax.dot_general(
        left, right, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def lane_utilisation(columns: int) -> float:
    """Share of the lanes that hold data when an array has so many columns."""
    return columns / (pl.cdiv(columns, LANES) * LANES)


def vmem_bytes(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bytes of VMEM for a program on the TPU that `x` is for; those of the oldest TPUs where the
    model of the TPU is unknown.
    """
    chip = _chip(x)
    small = chip is None or chip.device_kind in _SMALL_VMEM_TPUS
    return SMALL_VMEM_BYTES if small else VMEM_BYTES


def cores(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """TensorCores of the TPU that `x` is for, among which a kernel's programs are divided; 1 where
    the TPU is unknown.
    """
    chip = _chip(x)
    return 1 if chip is None else chip.num_cores or 1


def _chip(x: jax.Array | jax.ShapeDtypeStruct) -> Any:
    """The TPU that a program is compiled for: a device of the mesh in the type of `x`, else this
    process's first device; None if that is no TPU.
    """
    mesh = jax.typeof(x).sharding.mesh if isinstance(x, jax.Array) else None
    known = None if mesh is None or mesh.empty else mesh.abstract_device
    chip = known or jax.devices()[0]
    return chip if chip.platform == "tpu" else None
