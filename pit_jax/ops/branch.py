"""Residual branches of a transformer block: their lowerings, and the choice between them.

As "parts", a branch is the modules one after the other; as "pallas", for TPUs, it is one kernel
forward and one back (`branch_tpu`), which writes nothing in between to main memory.
"""

from collections.abc import Callable

import jax

from pit_jax.ops import lowerings

# From tokens (B, N, C) to the same, the branch added.
Branch = Callable[[jax.Array], jax.Array]

# What is inside of a branch: whoever overrides one of these wants to see it, and gets parts.
_INSIDE = ("attention", "gelu", "layer_norm", "linear")


def residual_branch(x: jax.Array, *, parts: Branch, fused: Branch, pays: bool) -> jax.Array:
    """The tokens with a branch added, by the lowering that is the fastest where it is compiled for,
    or that `lowerings.override(branch=...)` names.

    Args:
      x: (B, N, C).
      parts: the branch, operation by operation.
      fused: the same in a Pallas kernel, which takes TPUs.
      pays: whether the kernel takes this shape and dtype, and is the faster one on TPUs.

    Returns:
      As `x`.

    Raises:
      ValueError: an unknown lowering, or a kernel asked for that does not take `x`.
    """
    chosen = lowerings.chosen("branch")
    if chosen is not None:
        return lowerings.lookup("branch", chosen, {"parts": parts, "pallas": fused})(x)
    if not pays or any(lowerings.chosen(operation) for operation in _INSIDE):
        return parts(x)
    return lowerings.by_platform(x, tpu=fused, default=parts)
