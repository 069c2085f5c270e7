"""What a program sends between devices, and about how long that takes.

No measurement and no simulation: the bandwidth of the links a ring uses, without latency, and as if
nothing else ran meanwhile.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from pit_jax.compile_report.chips import Slice
from pit_jax.compile_report.hlo import Instruction, Module

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Exchanges of one kind among groups of one size.

    Attributes:
      kind: of `KINDS`.
      devices: of a group.
      calls: in a step.
      bytes: in a step, of the whole array that a group shares: what is reduced, or gathered.
      seconds: in a step; None off TPUs.
    """

    kind: str
    devices: int
    calls: int
    bytes: int
    seconds: float | None


def collectives(
    module: Module, num_devices: int, coordinates: Sequence[Sequence[int]] | None, on: Slice | None
) -> list[Collective]:
    """All exchanges of a step, the largest first.

    Args:
      module: the program.
      num_devices: it runs on.
      coordinates: of these devices in the torus, in the program's order; None off TPUs.
      on: the slice; None off TPUs.
    """
    found: dict[tuple[str, int], list[Collective]] = {}
    for kind, instruction, size, times in _exchanges(module):
        if kind == "collective-permute":
            group = [0, 1]
        else:
            group = first_group(instruction.attributes, num_devices)
        if len(group) < 2:
            continue
        whole = size * len(group) if kind == "all-gather" else size
        seconds = None
        if on is not None and coordinates is not None:
            places = [coordinates[index] for index in group]
            seconds = times * exchange_seconds(kind, whole, places, on)
        one = Collective(
            kind=kind, devices=len(group), calls=times, bytes=times * whole, seconds=seconds
        )
        found.setdefault((kind, len(group)), []).append(one)
    sums = [_sum(same) for same in found.values()]
    return sorted(sums, key=lambda one: -one.bytes)


def _exchanges(module: Module) -> Iterator[tuple[str, Instruction, int, int]]:
    """Kind, instruction, bytes of its operands on one device, and calls, of every exchange."""
    for step in module.steps:
        # On TPUs a reduce-scatter is an all-reduce in a fusion of this name.
        scatters = any("all-reduce-scatter" in name for name in step.instruction.called("calls"))
        for instruction, beside in module.inside(step):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            operands = [beside[name] for name in instruction.operands if name in beside]
            size = sum(array.bytes for operand in operands for array in operand.arrays)
            if kind == "all-reduce" and scatters:
                kind = "reduce-scatter"
            yield kind, instruction, size, step.times


def _sum(same: list[Collective]) -> Collective:
    seconds = [one.seconds for one in same if one.seconds is not None]
    return dataclasses.replace(
        same[0],
        calls=sum(one.calls for one in same),
        bytes=sum(one.bytes for one in same),
        seconds=sum(seconds) if seconds else None,
    )


def first_group(attributes: str, num_devices: int) -> list[int]:
    """Numbers of the devices of the first group that exchanges among itself.

    HLO writes groups as lists, {{0,1},{2,3}}; as an array of all devices, [2,2]<=[4] or transposed
    [2,2]<=[2,2]T(1,0); or as axes of a mesh, mesh['x'=2,'y'=2] {'y'}.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return list(_numbers(listed[1]))
    array = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if array:
        devices = np.arange(int(array[1]) * int(array[2])).reshape(_numbers(array[3]))
        if array[4]:
            devices = devices.transpose(_numbers(array[4]))
        return devices.reshape(int(array[1]), int(array[2]))[0].tolist()
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        chosen = re.findall(r"'(\w+)'", mesh[2])
        devices = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        return (
            devices[tuple(slice(None) if axis in chosen else 0 for axis in axes)].ravel().tolist()
        )
    return list(range(num_devices))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def exchange_seconds(kind: str, size: int, places: Sequence[Sequence[int]], on: Slice) -> float:
    """Seconds of one exchange, by the bandwidth of the links.

    Args:
      kind: of `KINDS`.
      size: bytes of the whole array, as in `Collective.bytes`.
      places: coordinates of the devices of one group.
      on: the slice they are of.
    """
    number, link = len(places), on.chip.link
    if kind == "collective-permute":
        return size / (link / 2)
    lengths = [len(set(axis)) for axis in zip(*places, strict=True)]
    speeds = [
        link if length == whole and length % on.chip.wraps == 0 else link / 2
        for length, whole in zip(lengths, on.shape, strict=False)
        if length > 1
    ]
    if kind in ("all-to-all", "ragged-all-to-all"):
        # On a ring an array travels a quarter of its length, on average and in each direction.
        spread = [length for length in lengths if length > 1]
        crossed = [size * length / 4 / speed for length, speed in zip(spread, speeds, strict=True)]
        return sum(crossed) / max(len(crossed), 1)
    passes = 2 if kind == "all-reduce" else 1
    return passes * size * (number - 1) / number / sum(speeds)
