"""What a compiled step tells: sizes, counts, and where a TPU's compiler estimates them, times."""

import dataclasses
from typing import Any

from pit_jax.compile_report.collectives import Collective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one device, bytes.

    Attributes:
      available: for a program; None where that is not known.
      arguments, outputs, aliased: what goes in, what comes out, and what of that takes the place of
        arguments.
      temporaries, code: the rest.
      peak: the most at any time; of a program that does not fit, the compiler's figure.
    """

    available: int | None
    arguments: int | None = None
    outputs: int | None = None
    aliased: int | None = None
    temporaries: int | None = None
    code: int | None = None
    peak: int | None = None

    @property
    def free(self) -> int | None:
        """What is left; negative where the program does not fit."""
        if self.available is None or self.peak is None:
            return None
        return self.available - self.peak


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """A Pallas kernel's static schedule on one core.

    Attributes:
      name: as given to `pallas_call`.
      calls: in a step.
      grid: iterations of a call.
      bundles: of an iteration.
      cycles: of all calls; None where the compiler left no schedule.
      unknown_loops: inner loops counted once, their length not being in the schedule.
    """

    name: str
    calls: int
    grid: int | None
    bundles: int | None
    cycles: int | None
    unknown_loops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """All of a step that one line of this package is the source of.

    Attributes:
      location: file, line and function; the name JAX gives where no line is ours.
      backward: whether of the gradient.
      calls: instructions in a step.
      cycles: of all of them.
      share: of the step's cycles.
    """

    location: str
    backward: bool
    calls: int
    cycles: int
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """About how long a step takes, by the compiler's cost model: nothing was run.

    Attributes:
      clock: Hz.
      xla_cycles: of all that XLA compiled, of these `attention_cycles` in ops/attention*.py.
      kernel_cycles: of Pallas kernels, by their static schedules.
      compute_seconds: of both.
      collective_seconds: by the links' bandwidth, none of it hidden behind computation.
      step_seconds: of all.
      images_per_second: of one chip.
      images_per_second_alone: the same without exchanges.
      mfu: model FLOPs a second over the chip's peak.
      unestimated: instructions without an estimate, by kind; they count as nothing.
      unknown_loops: loops counted once, their length not being in the program.
    """

    clock: float
    xla_cycles: int
    attention_cycles: int
    kernel_cycles: int
    compute_seconds: float
    collective_seconds: float
    step_seconds: float
    images_per_second: float
    images_per_second_alone: float
    mfu: float | None
    unestimated: dict[str, int]
    unknown_loops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything about one program; counts and bytes are of one device and one step.

    Attributes:
      model, program, topology: which.
      devices: how many, of which `device_kind`; `fsdp` of them share parameters.
      batch_size: images of all devices.
      image_size: height and width.
      memory: what it takes.
      fits: whether that is there.
      flops: as the compiler counts, without Pallas kernels.
      bytes_accessed: as the compiler counts; of memory, unless kept in a core.
      model_flops: of one image, analytic.
      peak_flops: of one device and second; None where unknown.
      estimate: None where the compiler makes none: off TPUs, or for a program that does not fit.
      kernels, collectives, operations: of the program, the most expensive first.
      trace_seconds, compile_seconds: of this compilation.
      load: processes that wanted a core meanwhile, and cores.
      versions: of what decides the figures.
    """

    model: str
    program: str
    topology: str
    devices: int
    device_kind: str
    fsdp: int
    batch_size: int
    image_size: tuple[int, int]
    memory: Memory
    fits: bool
    flops: float | None
    bytes_accessed: float | None
    model_flops: int
    peak_flops: float | None
    estimate: Estimate | None
    kernels: list[Kernel]
    collectives: list[Collective]
    operations: list[Operation]
    trace_seconds: float
    compile_seconds: float
    load: tuple[float, int]
    versions: dict[str, str]

    @property
    def images(self) -> float:
        """Of a step, on one device."""
        return self.batch_size / self.devices

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)
