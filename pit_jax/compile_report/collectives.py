"""The exchanges between devices of a program, and an estimate of their time.

The estimate is neither a measurement nor a simulation: it uses the bandwidth of the links of a
ring, without latency, and as if nothing else ran at the same time.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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

_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Exchanges of one kind among groups of one size.

    Attributes:
      kind: one of `KINDS`.
      devices: number of devices of a group.
      calls: exchanges of a step.
      asynchronous: number of these that are started first and awaited later.
      bytes: size per step of the whole array that a group reduces or gathers.
      seconds: time per step; None off TPUs.
    """

    kind: str
    devices: int
    calls: int
    asynchronous: int
    bytes: int
    seconds: float | None


def collectives(
    module: Module, num_devices: int, coordinates: Sequence[Sequence[int]] | None, on: Slice | None
) -> list[Collective]:
    """Lists all exchanges of a step, the largest first.

    Args:
      module: the program.
      num_devices: number of devices that it runs on.
      coordinates: places of these devices in the torus, in the program's order; None off TPUs.
      on: the slice; None off TPUs.
    """
    found: dict[tuple[str, int], list[Collective]] = {}
    for exchange in _exchanges(module):
        kind = exchange.kind
        group = [0, 1]
        if kind != "collective-permute":
            group = first_group(exchange.instruction.attributes, num_devices)
        if len(group) < 2:
            continue
        whole = exchange.bytes * len(group) if kind == "all-gather" else exchange.bytes
        seconds = None
        if on is not None and coordinates is not None:
            places = [coordinates[index] for index in group]
            seconds = exchange.times * exchange_seconds(kind, whole, places, on)
        one = Collective(
            kind=kind,
            devices=len(group),
            calls=exchange.times,
            asynchronous=exchange.times * exchange.asynchronous,
            bytes=exchange.times * whole,
            seconds=seconds,
        )
        found.setdefault((kind, len(group)), []).append(one)
    sums = [_sum(same) for same in found.values()]
    return sorted(sums, key=lambda one: -one.bytes)


class _Exchange(NamedTuple):
    """An instruction that exchanges `bytes` of each device, `times` times per step."""

    kind: str
    instruction: Instruction
    bytes: int
    times: int
    asynchronous: bool


def _exchanges(module: Module) -> Iterator[_Exchange]:
    seen = set()
    for step in module.steps:
        # On TPUs a reduce-scatter is an all-reduce inside a fusion of this name.
        scatters = any("all-reduce-scatter" in name for name in step.instruction.called("calls"))
        for instruction, beside in module.inside(step):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # An asynchronous exchange appears in the fusion that starts it and in all fusions up to
            # the one that waits for it, under one channel. Others may share a channel as well.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key: tuple[Any, ...] = (kind, instruction.name)
            if channel and not scatters and instruction is not step.instruction:
                key = (kind, channel[1], instruction.arrays)
            if key in seen:
                continue
            seen.add(key)
            operands = [beside[name] for name in instruction.operands if name in beside]
            size = sum(array.bytes for operand in operands for array in operand.arrays)
            if kind == "all-reduce" and scatters:
                kind = "reduce-scatter"
            asynchronous = instruction.opcode.endswith("-start") or step.instruction.is_wait
            yield _Exchange(kind, instruction, size, step.times, asynchronous)


def _sum(same: list[Collective]) -> Collective:
    seconds = [one.seconds for one in same if one.seconds is not None]
    return dataclasses.replace(
        same[0],
        calls=sum(one.calls for one in same),
        asynchronous=sum(one.asynchronous for one in same),
        bytes=sum(one.bytes for one in same),
        seconds=sum(seconds) if seconds else None,
    )


def first_group(attributes: str, num_devices: int) -> list[int]:
    """Returns the numbers of the devices of the first group.

    HLO writes groups in three ways: as lists, {{0,1},{2,3}}; as an array of all devices,
    [2,2]<=[4], or transposed, [2,2]<=[2,2]T(1,0); or as axes of a mesh of devices, in their order
    or another, mesh['x'=2,'y'=2] {'y'} or mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return list(_numbers(listed[1]))
    array = re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_ORDER}", attributes)
    if array:
        return _ordered(array[3], array[4]).reshape(int(array[1]), int(array[2]))[0].tolist()
    order = rf"(?:, device_ids=\({_ORDER}\))?"
    mesh = re.search(rf"replica_groups=mesh\[([^\]]*)\]{order} \{{([^}}]*)\}}", attributes)
    if mesh:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        chosen = re.findall(r"'(\w+)'", mesh[4])
        shape = tuple(axes.values())
        devices = _ordered(mesh[2] or str(math.prod(shape)), mesh[3]).reshape(shape)
        group = devices[tuple(slice(None) if axis in chosen else 0 for axis in axes)]
        return group.ravel().tolist()
    return list(range(num_devices))


def _ordered(shape: str, transposed: str | None) -> np.ndarray:
    """Numbers all devices as an array of a shape, its axes transposed if an order is given."""
    devices = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return devices.transpose(_numbers(transposed)) if transposed else devices


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def exchange_seconds(kind: str, size: int, places: Sequence[Sequence[int]], on: Slice) -> float:
    """Estimates the seconds of one exchange from the bandwidth of the links.

    Args:
      kind: one of `KINDS`.
      size: bytes of the whole array, as in `Collective.bytes`.
      places: coordinates of the devices of one group.
      on: the slice of these devices.
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
        # On a ring, data travels a quarter of its length on average, in each direction.
        spread = [length for length in lengths if length > 1]
        crossed = [size * length / 4 / speed for length, speed in zip(spread, speeds, strict=True)]
        return sum(crossed) / max(len(crossed), 1)
    passes = 2 if kind == "all-reduce" else 1
    return passes * size * (number - 1) / number / sum(speeds)
