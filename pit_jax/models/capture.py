"""Intermediates of a model that its caller asked for."""

from collections.abc import Iterable, Sequence

import jax

from pit_jax.errors import suggestion


class Recorder:
    """Collects the requested intermediates; the others cost nothing.

    Args:
      requested: kinds to keep, e.g. ("attention", "stages").
      available: every kind the model has.

    Raises:
      ValueError: a kind the model does not have.
    """

    def __init__(self, requested: Iterable[str], available: Sequence[str]):
        self.requested = frozenset([requested] if isinstance(requested, str) else requested)
        self.values: dict[str, jax.Array] = {}
        for kind in sorted(self.requested - set(available)):
            raise ValueError(
                f"cannot capture {kind!r}{suggestion(kind, available)}; there are "
                f"{', '.join(available)}"
            )

    def wants(self, kind: str) -> bool:
        """Whether intermediates of a kind were requested."""
        return kind in self.requested

    def save(self, kind: str, name: str, value: jax.Array) -> None:
        """Keeps an intermediate under its name, if its kind was requested."""
        if self.wants(kind):
            self.values[name] = value
