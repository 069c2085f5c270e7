"""Figures of TPU chips that the estimates take from data sheets."""

import dataclasses
import re

from pit_jax.errors import suggestion

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of TPU.

    Attributes:
      dimensions: number of axes of a slice's torus.
      clock: of a core, in Hz; converts the compiler's cycles to seconds.
      memory: HBM that the compiler leaves to a program, in bytes.
      link: bytes per second along one axis of the torus, both directions together.
      wraps: an axis is a ring if its length is a multiple of this, else a line.
      config: libtpu's name of the mode in which JAX drives the chip; None for libtpu's default.
    """

    dimensions: int
    clock: float
    memory: float
    link: float
    wraps: int
    config: str | None = None


# Links and clocks: Google's pages of system architecture, and "How to Scale Your Model". Memory:
# the figure that libtpu reports for a program that is too large. JAX drives the two cores of a v4
# or v5p as one.
CHIPS = {
    "v4": Chip(
        dimensions=3, clock=1.05e9, memory=30.75 * GIB, link=90e9, wraps=4, config="megacore"
    ),
    "v5e": Chip(dimensions=2, clock=1.5e9, memory=15.75 * GIB, link=90e9, wraps=16),
    "v5p": Chip(dimensions=3, clock=1.75e9, memory=95.74 * GIB, link=180e9, wraps=4),
    "v6e": Chip(dimensions=2, clock=1.75e9, memory=31.25 * GIB, link=180e9, wraps=16),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of TPUs, such as "v5e:16x16"."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def full_name(self) -> str:
        """The name as libtpu spells it: "v4:2x2x1" for "v4:2x2"."""
        return f"{self.name.partition(':')[0]}:{'x'.join(map(str, self.shape))}"


def parse_slice(name: str) -> Slice:
    """Reads the name of a slice such as "v5e:16x16" or "v4:4x4x8".

    Raises:
      ValueError: a malformed name, or a chip that is not in the table.
    """

    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not found:
        raise ValueError(
            f"--topology={name}: expected CHIP:SHAPE such as v5e:16x16 or v4:4x4x8, or local"
        )
    kind, shape = found[1], tuple(map(int, found[2].split("x")))
    if kind not in CHIPS:
        raise ValueError(
            f"--topology={name}: no chip {kind!r}{suggestion(kind, CHIPS)}; there are "
            f"{', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    shape += (1,) * (chip.dimensions - len(shape))
    if len(shape) != chip.dimensions or not all(shape):
        raise ValueError(
            f"--topology={name}: slices of {kind} have {chip.dimensions} positive dimensions"
        )
    return Slice(name, chip, shape)
