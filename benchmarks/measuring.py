"""Shared by the benchmarks: timing programs side by side, describing the machine, tables."""

import dataclasses
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "timm")


@dataclasses.dataclass
class Program:
    """Something compiled, ready to be called again and again.

    Attributes:
      call: starts one more round, which may still be running when it returns.
      wait: returns when all rounds started are done.
      peak_bytes: most memory of the device in use by it, after it has run; None where unknown.
      ready_seconds: what building, compiling and the first call took.
    """

    call: Callable[[], Any]
    wait: Callable[[], Any]
    peak_bytes: Callable[[], int | None] = lambda: None
    ready_seconds: float = 0.0


@dataclasses.dataclass
class Timing:
    """Seconds of one round, from every repeat."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the range of the repeats, relative to their median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median


def once(program: Program) -> float:
    """Seconds of one round, until its results are there."""
    return _window(program, 1)


def _window(program: Program, rounds: int) -> float:
    began = time.perf_counter()
    for _ in range(rounds):
        program.call()
    program.wait()
    return (time.perf_counter() - began) / rounds


def time_together(
    programs: Mapping[str, Program], *, repeats: int, window: float
) -> dict[str, Timing]:
    """Times programs in turns, so that other load of the machine falls on all of them.

    Args:
      repeats: windows of each.
      window: seconds that one should last; a round that takes longer is a window of its own.
    """
    rounds = {}
    for name, program in programs.items():
        once(program)
        rounds[name] = max(1, round(window / once(program)))
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            once(program)  # What ran before may keep its threads spinning for a while.
            found[name].append(_window(program, rounds[name]))
    return {name: Timing(seconds) for name, seconds in found.items()}


def compiled_peak(compiled: Any) -> int | None:
    """Bytes that a compiled JAX program has in use at its peak: what it is given and gives back,
    and its own; None where the compiler does not tell.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def machine() -> dict[str, Any]:
    """Processor, devices, load and versions behind the figures."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = str(error).strip()
    said = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {said}"[:160]
