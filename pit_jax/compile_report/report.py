"""The figures of a compiled step: sizes, counts, and times if a TPU compiler estimates them."""

import dataclasses
from typing import Any

from pit_jax.compile_report.collectives import Collective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one device, in bytes.

    Attributes:
      available: memory for a program; None if unknown.
      arguments: size of the program's inputs.
      outputs: size of its results.
      aliased: size of the results that reuse the memory of inputs.
      temporaries, code: size of the rest.
      peak: largest use at any time; for a program that does not fit, the compiler's figure.
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
        """Memory left at the peak; negative if the program does not fit."""
        if self.available is None or self.peak is None:
            return None
        return self.available - self.peak


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """A Pallas kernel's static schedule on one core.

    Attributes:
      name: as given to `pallas_call`.
      calls: number of calls in a step.
      grid: iterations of a call.
      bundles: instruction bundles of an iteration.
      cycles: cycles of all calls; None if the compiler left no schedule.
      unknown_loops: inner loops that count once, since the schedule lacks their length.
    """

    name: str
    calls: int
    grid: int | None
    bundles: int | None
    cycles: int | None
    unknown_loops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """All instructions of a step that come from one line of this package.

    Attributes:
      location: file, line and function; JAX's name if no line is ours.
      backward: whether they belong to the gradient.
      calls: number of instructions in a step.
      cycles: cycles of all of them.
      share: their share of the step's cycles.
    """

    location: str
    backward: bool
    calls: int
    cycles: int
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated time of a step, by the compiler's cost model: nothing was run.

    Attributes:
      clock: of a core, in Hz.
      xla_cycles: cycles of everything that XLA compiled.
      attention_cycles: the part of these from ops/attention*.py.
      kernel_cycles: cycles of Pallas kernels, by their static schedules.
      compute_seconds: time of XLA's cycles and the kernels'.
      collective_seconds: time of exchanges by the links' bandwidth, none of it hidden behind
        computation.
      step_seconds: time of both.
      images_per_second: rate of one chip.
      images_per_second_alone: the same without exchanges.
      mfu: model FLOPs per second over the chip's peak; None if the peak is unknown.
      unestimated: numbers of instructions without an estimate, by kind; they count as nothing.
      unknown_loops: loops that count once, since the program lacks their length.
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
    """Everything about one program; counts and bytes are those of one device and one step.

    Attributes:
      model, program, topology: names of these.
      devices: number of devices.
      device_kind: JAX's name of the kind of device.
      fsdp: number of devices that share one copy of the parameters.
      batch_size: images over all devices.
      image_size: height and width.
      memory: memory that the program needs.
      fits: whether the device has that much.
      flops: as the compiler counts, without Pallas kernels.
      bytes_accessed: as the compiler counts; main memory only, not a core's own.
      model_flops: analytic FLOPs of one image.
      peak_flops: FLOPs per second of one device; None if unknown.
      estimate: None off TPUs and for a program that does not fit, which the compiler does not
        estimate.
      kernels, collectives, operations: of the program, the most expensive first.
      trace_seconds, compile_seconds: time of this compilation.
      load: processes that wanted a core at that time, and cores.
      versions: of the packages that decide the figures.
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
        """Images of a step on one device."""
        return self.batch_size / self.devices

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain values."""
        return dataclasses.asdict(self)
