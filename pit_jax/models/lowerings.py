"""Which lowering a whole model uses, for measurements and tests.

Every operation with several lowerings chooses one by platform and shape. `override` makes that
choice for all of a model's operations at once:

    with lowerings.override(pooling="grouped", attention="plain", gelu="xla"):
        compiled = jax.jit(step).lower(state, batch).compile()

It acts while a function is traced, and only then: a function that `jax.jit` has already traced for
these shapes keeps the lowering it was traced with, so give each choice a `jax.jit` of a function of
its own.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import TypeVar

from pit_jax.errors import suggestion

Lowering = TypeVar("Lowering")

OPERATIONS = ("attention", "gelu", "layer_norm", "linear", "pooling")

_CHOSEN: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("lowerings")


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
