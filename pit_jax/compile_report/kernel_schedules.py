"""Reads the final schedules of TPU instructions, which libtpu writes on request.

A TPU core issues one bundle of instructions per cycle, in the order of the schedule. The bundles
that a kernel executes are therefore its cycles, except for stalls on memory, which only a TPU can
show.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# An iteration of a kernel's grid takes three rounds of its loop: while one iteration computes, the
# inputs of the next one and the outputs of the previous one are copied.
PIPELINE_ROUNDS = 2

_BUNDLE = re.compile(r"^\s*(?:0x)?[0-9a-f]+\s+(?:([A-Z]{2}) *)?: *(>*) *\{(.*)$")
_EXIT = re.compile(r"scmp\.(?:ge|eq)\.s32\.totalorder %(\w+), (\d+) /\* loop exit test \*/")


@dataclasses.dataclass
class Loop:
    """A loop of a schedule.

    Attributes:
      bundles: number of its own bundles, without those of inner loops.
      loops: inner loops.
      over_grid: whether it runs over the kernel's grid.
      rounds: how often it runs; None if the schedule lacks it.
    """

    bundles: int = 0
    loops: list["Loop"] = dataclasses.field(default_factory=list)
    over_grid: bool = False
    rounds: int | None = None

    @property
    def executed(self) -> int:
        """Bundles of one round, with those of inner loops as often as they run."""
        return self.bundles + sum(loop.executed * (loop.rounds or 1) for loop in self.loops)

    @property
    def unknown(self) -> int:
        """Number of inner loops, at any depth, that count once because their length is unknown."""
        return sum((loop.rounds is None) + loop.unknown for loop in self.loops)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cost of a kernel.

    Attributes:
      name: of the instruction that calls it.
      grid: iterations of its grid on one core.
      bundles: number of bundles of one iteration, with inner loops as often as they run.
      executed: number of bundles of a whole call.
      unknown_loops: loops that count once because their length is not in the schedule.
    """

    name: str
    grid: int
    bundles: int
    executed: int
    unknown_loops: int


def read_folder(folder: Path, names: Iterable[str]) -> dict[str, Schedule]:
    """Reads the schedules in a folder that belong to instructions of these names."""
    wanted = set(names)
    schedules = {}
    for path in sorted(folder.glob("*-final_bundles.txt")):
        found = re.fullmatch(r"\d+-(.+?)-\d+-final_bundles", path.stem)
        if found and found[1] in wanted:
            schedules[found[1]] = parse(found[1], path.read_text())
    return schedules


def parse(name: str, text: str) -> Schedule:
    """Reads the schedule of a "final_bundles" file."""
    kernel = parse_loops(text.splitlines())
    grid = next((loop for loop in kernel.loops if loop.over_grid), None)
    rounds = (grid.rounds or 1) if grid else 1
    # Filling and emptying the pipeline computes nothing: a branch skips the body.
    outside = kernel.executed - (grid.executed * rounds if grid else 0)
    bundles = grid.executed if grid else outside
    executed = outside + bundles * rounds if grid else outside
    return Schedule(name, rounds, bundles, executed, kernel.unknown)


def parse_loops(lines: Iterable[str]) -> Loop:
    """Reads the loops of a schedule, as inner loops of one that runs once."""
    bundles = _bundles(lines)
    kernel = Loop(rounds=1)
    stack, ends = [kernel], [len(bundles)]
    steps: dict[str, int] = {}
    for place, (begins, depth, text) in enumerate(bundles):
        while place >= ends[-1]:
            del stack[-1], ends[-1]
        if begins:
            loop = Loop(over_grid=len(stack) == 1 and "iteration index, stage" in text)
            stack[-1].loops.append(loop)
            stack.append(loop)
            ends.append(_end(bundles, place))
        stack[-1].bundles += 1
        for target, step in re.findall(r"%(\w+) = sadd\.s32 (\d+), ", text):
            steps[target] = int(step)
        tested = stack[min(depth, len(stack) - 1)]
        if tested is not kernel and (test := _EXIT.search(text)):
            rounds = -(-int(test[2]) // steps.get(test[1], 1))
            tested.rounds = rounds - PIPELINE_ROUNDS * tested.over_grid
    return kernel


def _bundles(lines: Iterable[str]) -> list[tuple[bool, int, str]]:
    """Lists, for every bundle, whether a loop begins with it, its depth in loops, and its text."""
    bundles: list[tuple[bool, int, str]] = []
    for line in lines:
        if found := _BUNDLE.match(line):
            begins, depth, text = found[1] == "LB", len(found[2]), found[3]
            if text.startswith("}") and bundles:
                depth = bundles[-1][1]  # the slots after a branch carry no mark of their loop
            bundles.append((begins, depth, text))
    return bundles


def _end(bundles: Sequence[tuple[bool, int, str]], start: int) -> int:
    """Returns the index after the last bundle of the loop that begins at `start`.

    Bundles within it that are marked as outside belong to it: instructions that follow a loop may
    be scheduled in its last round.
    """
    own, end = bundles[start][1], start + 1
    for place in range(start + 1, len(bundles)):
        begins, depth, _ = bundles[place]
        if begins and depth <= own:
            break
        if depth >= own:
            end = place + 1
    return end
