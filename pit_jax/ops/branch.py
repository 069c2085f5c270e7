"""Residual branches of a transformer block: their lowerings, and the choice between them.

As "parts", a branch is its layers one after the other. As "pallas", for TPUs, it is one kernel
forward and one backward (`branch_tpu`), which write nothing in between to main memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pit_jax.ops import branch_tpu, lowerings
from pit_jax.ops.branch_tpu import Weights
from pit_jax.ops.branch_tpu_middle import Attention, Gelu, Middle
from pit_jax.ops.branch_tpu_plan import is_faster
from pit_jax.ops.layer_norm import EPSILON

__all__ = ["Attention", "DropPath", "Fusible", "Gelu", "Middle", "Weights", "residual_branch"]

# Adds a branch to tokens (B, N, C).
Branch = Callable[[jax.Array], jax.Array]
# Zeroes some rows of (B, ...) and rescales the others: stochastic depth.
DropPath = Callable[[jax.Array], jax.Array]

# The operations inside a branch. An override of one of them asks for that operation by itself, so
# that the branch runs in parts.
_INSIDE = ("attention", "gelu", "layer_norm", "linear")


class Fusible(NamedTuple):
    """A branch of the form that the kernels compute: x + drop_path(out(middle(in(norm(x))))).

    Attributes:
      middle: `Attention` or `Gelu`.
      weights: of the layers, in any floating dtype.
      epsilon: of the layer norm.
      dtype: of the layers' arithmetic.
      drop_path: stochastic depth.
    """

    middle: Middle
    weights: Weights
    epsilon: float
    dtype: DTypeLike | None
    drop_path: DropPath


def residual_branch(x: jax.Array, parts: Branch, fusible: Fusible | None) -> jax.Array:
    """Adds a branch to tokens.

    The lowering is "pallas" on TPUs where the kernel is faster, "parts" elsewhere, or the one that
    `lowerings.override(branch=...)` names.

    Args:
      x: (B, N, C).
      parts: x plus the branch, layer by layer.
      fusible: the same for the kernels; None for a branch that only `parts` can compute, whatever
        an override names.

    Returns:
      As `x`.

    Raises:
      ValueError: an override names an unknown lowering, or the kernel for an `x` that it does not
        take.
    """
    # The kernels know one epsilon.
    if fusible is None or fusible.epsilon != EPSILON:
        return parts(x)

    def fused(x: jax.Array) -> jax.Array:
        scale, shift, *linear = fusible.weights
        weights = Weights(scale, shift, *(jnp.asarray(weight, x.dtype) for weight in linear))
        keep = fusible.drop_path(jnp.ones(x.shape[0], jnp.float32))
        return branch_tpu.add_branch(fusible.middle, x, keep, weights)

    name = lowerings.chosen("branch")
    if name is not None:
        return lowerings.lookup("branch", name, {"parts": parts, "pallas": fused})(x)
    if any(lowerings.chosen(operation) for operation in _INSIDE) or x.dtype != fusible.dtype:
        return parts(x)
    width = fusible.weights.kernel_in.shape[1]
    if not is_faster(fusible.middle, x, width):
        return parts(x)
    return lowerings.by_platform(x, tpu=fused, default=parts)
