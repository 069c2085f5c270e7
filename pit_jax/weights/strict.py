"""Equality of names and shapes: everything that does not fit, said at once."""

import dataclasses
from collections.abc import Mapping, Sequence

from pit_jax.errors import suggestion

Shape = tuple[int, ...]

# Entries of one kind that an error spells out; the rest is counted.
SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Differences:
    """Names missing, names nobody asked for, and (name, found, expected) of wrong shapes."""

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: tuple[tuple[str, Shape, Shape], ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.shapes)

    def lines(self) -> list[str]:
        """A line for each kind of problem there is."""
        unknown = [f"{name}{suggestion(name, self.missing)}" for name in self.unknown[:SHOWN]]
        shapes = [f"{name} is {found}, expected {want}" for name, found, want in self.shapes]
        lines = [
            _line("missing", self.missing, ", "),
            _line("unknown", [*unknown, *self.unknown[SHOWN:]], ", "),
            _line("mis-shaped", shapes, "; "),
        ]
        return [line for line in lines if line]


def _line(kind: str, entries: Sequence[str], separator: str) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return f"{len(entries)} {kind}: {separator.join(entries[:SHOWN])}{more}"


def differences(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Differences:
    """Compares shapes by name: entries that are missing, unknown or of another shape."""
    return Differences(
        tuple(name for name in expected if name not in found),
        tuple(name for name in found if name not in expected),
        tuple(
            (name, found[name], shape)
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
    )


def check_against(found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str) -> None:
    """Refuses shapes by name that are not exactly the expected ones.

    Raises:
      ValueError: `what`, and below it all missing, unknown and mis-shaped entries.
    """
    if problems := differences(found, expected):
        raise ValueError(report(what, problems.lines()))


def report(what: str, lines: Sequence[str]) -> str:
    """A message of a headline and indented lines."""
    return "\n  ".join([what, *lines])
