"""Reads compiled programs: the text of their optimised HLO.

Instructions count in the order in which they run: the entry computation, the bodies of its loops
as often as they run, and the longest branch of a condition. Arrays inside a fusion are not stored.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

DTYPE_BITS = {
    "pred": 8, "token": 0, "opaque": 0,
    "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64,
    "u2": 2, "u4": 4, "u8": 8, "u16": 16, "u32": 32, "u64": 64,
    "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_VMEM = "S(1)"


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that an instruction returns.

    Attributes:
      dtype: HLO's name of the type, such as "bf16".
      shape: as in the program, without padding.
      in_memory: whether it is in the device's main memory; otherwise in the memory of a core.
    """

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool

    @property
    def bytes(self) -> int:
        bits = DTYPE_BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 32)
        return -(-math.prod(self.shape) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: of the instruction.
      arrays: its results.
      operands: names of the instructions that it reads.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def cycles(self) -> int | None:
        """The TPU compiler's estimate; None if it made none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """JAX's name of it, such as "jit(train_step)/transpose(jvp())/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def is_backward(self) -> bool:
        return "transpose(" in self.op_name

    @property
    def is_kernel(self) -> bool:
        """Whether it calls a Pallas TPU kernel."""
        return 'custom_call_target="tpu_custom_call"' in self.attributes

    @property
    def is_wait(self) -> bool:
        """Whether it starts or awaits an asynchronous instruction."""
        waits = self.opcode.endswith(("-start", "-update", "-done"))
        return waits or self.name.startswith("async-collective-")

    @property
    def kernel_body(self) -> str:
        """Serialised code of the kernel, which identifies it."""
        found = re.search(r'"body":"([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, attribute: str) -> list[str]:
        """Lists the computations that an attribute names, such as "body"."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", found[1]) if found else []


@dataclasses.dataclass(frozen=True)
class Step:
    """An instruction that runs, how often, and the computation that it belongs to."""

    instruction: Instruction
    times: int
    computation: str


class Module:
    """A compiled program.

    Args:
      text: result of `jax.stages.Compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        # Names of loops of unknown length, which count as one round.
        self.unknown_loops: list[str] = []
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and (instruction := parse_instruction(line)):
                current[instruction.name] = instruction

    @functools.cached_property
    def steps(self) -> list[Step]:
        """The instructions that run, in order."""
        return list(self._walk(self.entry, 1))

    def _walk(self, name: str, times: int) -> Iterator[Step]:
        for instruction in self.computations.get(name, {}).values():
            match instruction.opcode:
                case "while":
                    (body,) = instruction.called("body")
                    yield from self._walk(body, times * self._rounds(instruction))
                case "conditional":
                    yield from self._longest(instruction, times)
                case "call" | "async-start":
                    attribute = "to_apply" if instruction.called("to_apply") else "calls"
                    for callee in instruction.called(attribute):
                        yield from self._walk(callee, times)
                case _:
                    yield Step(instruction, times, name)

    def _longest(self, instruction: Instruction, times: int) -> list[Step]:
        names = instruction.called("branch_computations")
        names += instruction.called("true_computation") + instruction.called("false_computation")
        branches = [list(self._walk(name, times)) for name in names]
        return max(branches, key=_cycles, default=[])

    def _rounds(self, loop: Instruction) -> int:
        """Returns how often a loop's body runs: loops of JAX count from zero to a constant."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        (name,) = loop.called("condition")
        condition = self.computations.get(name, {})
        for instruction in condition.values():
            if instruction.opcode == "compare" and "direction=LT" in instruction.attributes:
                bound = condition.get(instruction.operands[1])
                value = re.match(r"(\d+)\)", bound.attributes) if bound else None
                if bound and bound.opcode == "constant" and value:
                    return int(value[1])
        self.unknown_loops.append(loop.name)
        return 1

    @property
    def grouped_convolutions(self) -> list[str]:
        """Names of convolutions that process groups of channels, or of images, one by one."""
        counts = re.compile(r"\b(?:feature|batch)_group_count=(\d+)")
        return [
            instruction.name
            for instructions in self.computations.values()
            for instruction in instructions.values()
            if any(int(count) > 1 for count in counts.findall(instruction.attributes))
        ]

    @property
    def stored(self) -> set[Array]:
        """The arrays that are written to main memory."""
        arrays = (array for step in self.steps for array in step.instruction.arrays)
        return {array for array in arrays if array.in_memory}

    def inside(self, step: Step) -> Iterator[tuple[Instruction, dict[str, Instruction]]]:
        """Yields a step and the instructions fused into it, each with the computation that holds
        its operands.
        """
        yield step.instruction, self.computations[step.computation]
        if step.instruction.opcode == "fusion":
            for name in step.instruction.called("calls"):
                for instruction in self.computations.get(name, {}).values():
                    yield instruction, self.computations[name]

    @functools.cached_property
    def _frames(self) -> dict[int, tuple[int, int]]:
        """Numbers of the location and of the calling frame, by stack frame."""
        rows = re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", self.text, re.M
        )
        # The first frame has no caller. If it names itself, all numbers are one too high.
        shift = int(bool(rows) and rows[0][2] == rows[0][0])
        return {int(row[0]): (int(row[1]), int(row[2] or 0) - shift) for row in rows}

    @functools.cached_property
    def _locations(self) -> dict[int, tuple[str, str, int]]:
        """File, function and line, by location."""
        files, functions = self._table("FileNames"), self._table("FunctionNames")
        rows = re.findall(
            r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)", self.text, re.M
        )
        return {
            int(row[0]): (files.get(row[1], ""), functions.get(row[2], ""), int(row[3]))
            for row in rows
        }

    def _table(self, name: str) -> dict[str, str]:
        found = re.search(rf'^{name}\n((?:\d+ ".*"\n)*)', self.text, re.M)
        return dict(re.findall(r'(\d+) "(.*)"\n', found[1])) if found else {}

    def location(self, instruction: Instruction, package: str = "pit_jax") -> str:
        """Returns the innermost line of the package that an instruction comes from, such as
        "pit_jax/models/layers.py:201 MLP.__call__"; "" if there is none.

        The choice between lowerings is passed over: the operation that it chooses for is named.
        """
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        frame = int(found[1]) if found else 0
        while frame in self._frames:
            number, frame = self._frames[frame]
            file, function, line = self._locations.get(number, ("", "", 0))
            start = file.rfind(f"/{package}/")
            if start >= 0 and not file.endswith("/ops/lowerings.py"):
                return f"{file[start + 1 :]}:{line} {function.replace('.<locals>', '')}"
        return ""


def _cycles(steps: list[Step]) -> int:
    return sum(step.times * (step.instruction.cycles or 0) for step in steps)


def parse_instruction(line: str) -> Instruction | None:
    """Reads the instruction of a line of HLO; None if the line has none."""
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, bracket, rest = rest.partition("(")
    if not bracket:
        return None
    stop = _closing("(" + rest) - 1
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", rest[:stop]))
    attributes = rest if opcode == "constant" else rest[stop + 1 :]
    return Instruction(name, opcode, parse_arrays(shape), operands, attributes)


def parse_arrays(shape: str) -> tuple[Array, ...]:
    """Reads the arrays of a shape such as "(bf16[8,4]{1,0:T(8,128)}, f32[])"."""
    return tuple(
        Array(
            dtype,
            tuple(int(size.removeprefix("<=")) for size in sizes.split(",") if size),
            _VMEM not in (layout or ""),
        )
        for dtype, sizes, layout in _ARRAY.findall(shape)
    )


def _closing(text: str) -> int:
    """Returns the index of the bracket that closes the first one."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    return len(text)
