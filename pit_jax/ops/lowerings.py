"""Which lowering an operation uses.

Every operation with several lowerings chooses one by platform and shape. `override` makes that
choice for all of a model's operations at once, for measurements and tests:

    with lowerings.override(pooling="grouped", attention="plain", gelu="xla"):
        compiled = jax.jit(step).lower(state, batch).compile()

Who knows the platform while tracing says so by `compiling_for`, and spares the other platforms'
lowerings the tracing: the TPU's kernels are a third of all there is to trace.

Both act while a function is traced, and only then: a function that `jax.jit` has already traced for
these shapes keeps the lowering it was traced with, so give each choice a `jax.jit` of a function of
its own.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from pit_jax.errors import suggestion

Lowering = TypeVar("Lowering")

OPERATIONS = ("attention", "branch", "gelu", "layer_norm", "linear", "patches", "pooling")

# Whose devices are named as `jax.lax.platform_dependent` names them; not so those of GPUs.
PLATFORMS = ("cpu", "tpu")

_CHOSEN: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("lowerings")
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def chosen(operation: str) -> str | None:
    """The lowering that an enclosing `override` names for an operation, else None."""
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
def override(**lowerings: str) -> Iterator[None]:
    """Makes operations traced inside use the named lowerings; inner overrides win.

    Args:
      lowerings: by operation, one of `OPERATIONS`, a name that the operation knows: it is the
        operation that refuses one that it does not.

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
    """Says what for everything traced inside is going to be compiled.

    Args:
      platform: of a device, `jax.Device.platform`. It says nothing unless it is in `PLATFORMS`.
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
