"""The choice of an operation's lowering.

Every operation with several lowerings chooses one by platform and shape. `override` makes that
choice for all operations of a model, for measurements and tests:

    with lowerings.override(pooling="grouped", attention="plain", gelu="xla"):
        compiled = jax.jit(step).lower(state, batch).compile()

If the target platform is known, trace inside `compiling_for(platform)`: the other platforms'
lowerings are then not traced, and the TPU kernels are a third of all there is to trace.

Both work as decorators, too, and act only while a function is traced. A function that `jax.jit` has
already traced for these shapes keeps the lowering that it was traced with, so give each choice a
`jax.jit` of a function of its own.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from pit_jax.errors import suggestion

Lowering = TypeVar("Lowering")

OPERATIONS = (
    "attention",
    "branch",
    "gelu",
    "layer_norm",
    "linear",
    "patches",
    "pooling",
    "shared_attention",
)

# Platforms of which `jax.Device.platform` is the name in `jax.lax.platform_dependent`. For GPUs it
# is "gpu", where that function distinguishes "cuda" and "rocm".
PLATFORMS = ("cpu", "tpu")

_CHOSEN: contextvars.ContextVar[Mapping[str, str | None]] = contextvars.ContextVar("lowerings")
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def chosen(operation: str) -> str | None:
    """The lowering that the innermost `override` names for an operation; None leaves the choice to
    the operation.
    """
    return _CHOSEN.get({}).get(operation)


def lookup(operation: str, name: str, known: Mapping[str, Lowering]) -> Lowering:
    """The lowering of an operation by its name.

    Raises:
      ValueError: no such lowering.
    """
    if name not in known:
        raise ValueError(
            f"{operation} has no lowering {name!r}{suggestion(name, known)}; there are "
            f"{', '.join(known)}"
        )
    return known[name]


@contextlib.contextmanager
def override(**lowerings: str | None) -> Iterator[None]:
    """Makes operations traced inside use the named lowerings; inner overrides win.

    Args:
      lowerings: by operation, one of `OPERATIONS`, the name of a lowering, or None to leave the
        choice to the operation again. An operation refuses unknown names when it is traced.

    Raises:
      ValueError: no such operation.
    """
    for operation in lowerings:
        if operation not in OPERATIONS:
            raise ValueError(
                f"no operation {operation!r}{suggestion(operation, OPERATIONS)}; there are "
                f"{', '.join(OPERATIONS)}"
            )
    token = _CHOSEN.set({**_CHOSEN.get({}), **lowerings})
    try:
        yield
    finally:
        _CHOSEN.reset(token)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """States the platform that everything traced inside will be compiled for.

    Args:
      platform: `jax.Device.platform` of the device. Ignored unless in `PLATFORMS`.
    """
    token = _PLATFORM.set(platform if platform in PLATFORMS else None)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def by_platform(*operands: Any, default: Callable[..., Any], **branches: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`; within `compiling_for` the platform's own branch alone."""
    platform = _PLATFORM.get()
    if platform is not None:
        return branches.get(platform, default)(*operands)
    return jax.lax.platform_dependent(*operands, default=default, **branches)


def target_platform() -> str | None:
    """The platform of the innermost `compiling_for`; None outside of it, and for GPUs."""
    return _PLATFORM.get()


def is_known(size: Any) -> bool:
    """Whether a size is a number while tracing, not a symbol of `jax.export.symbolic_shape`.

    Choices that compute with the batch size need the number; with a symbol they fall back to a
    lowering that does not.
    """
    return isinstance(size, int)
