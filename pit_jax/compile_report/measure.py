"""The report of a compiled step."""

import collections
import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.compile_report import kernel_schedules, libtpu
from pit_jax.compile_report.chips import Chip, Slice
from pit_jax.compile_report.collectives import Collective, collectives
from pit_jax.compile_report.hlo import Instruction, Module
from pit_jax.compile_report.program import Compiled, needed_bytes
from pit_jax.compile_report.report import Estimate, Kernel, Memory, Operation, Report
from pit_jax.training.utilisation import peak_flops
from pit_jax.version import __version__

MOST_EXPENSIVE = 10
# Opcodes that move or name values, or wait for an earlier instruction.
_FREE = {
    "after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier", "parameter",
    "partition-id", "replica-id", "tuple",
}  # fmt: skip
# Calls that only name memory: slices fetched one by one form one array.
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")


def read_program(compiled: Compiled) -> Module:
    """Reads the program's text; it is empty if the program does not fit."""
    return Module(compiled.executable.as_text() if compiled.executable is not None else "")


def make_report(
    compiled: Compiled, module: Module, topology: str, on: Slice | None = None
) -> Report:
    """Makes the report of a program.

    Args:
      compiled: the program; it must be this process's last compilation.
      module: its text, from `read_program`.
      topology: name of the devices.
      on: the TPU slice that it is compiled for; None for the devices of this machine.
    """
    experiment, executable = compiled.experiment, compiled.executable
    devices = list(experiment.mesh.devices.flat)
    analysis = _analysis(executable)
    places = [device.coords for device in devices] if on else None
    kernels = read_kernels(module, read_schedules(module) if on else {})
    report = Report(
        model=experiment.config.model.name,
        program=compiled.program,
        topology=topology,
        devices=len(devices),
        device_kind=devices[0].device_kind,
        fsdp=experiment.config.fsdp,
        batch_size=compiled.batch_size,
        image_size=experiment.config.model.image_size,
        memory=_memory(compiled, on),
        fits=executable is not None,
        flops=analysis.get("flops"),
        bytes_accessed=analysis.get("bytes accessed"),
        model_flops=_model_flops(compiled),
        peak_flops=experiment.config.peak_flops or peak_flops(devices[0]),
        estimate=None,
        kernels=kernels,
        collectives=collectives(module, len(devices), places, on),
        operations=read_operations(module, kernels),
        trace_seconds=compiled.trace_seconds,
        compile_seconds=compiled.compile_seconds,
        load=compiled.load,
        versions=versions(on is not None),
    )
    if on is None or executable is None:
        return report
    found = estimate(
        module,
        report.kernels,
        report.collectives,
        on.chip,
        images=report.images,
        model_flops=report.model_flops,
        peak=report.peak_flops,
    )
    return dataclasses.replace(report, estimate=found)


def versions(tpu: bool) -> dict[str, str]:
    """Returns the versions of the packages that decide the figures of a report."""
    names = ("jax", "jaxlib", "flax", "optax")
    installed = {name: importlib.metadata.version(name) for name in names}
    return {"pit_jax": __version__, **installed, **({"libtpu": libtpu.version()} if tpu else {})}


def _analysis(executable: Any) -> Mapping[str, float]:
    return (executable.cost_analysis() or {}) if executable is not None else {}


def _model_flops(compiled: Compiled) -> int:
    """Operations that an example needs, a teacher's forward pass included; 0 where unknown."""
    return compiled.experiment.task.flops(training=compiled.program == "train") or 0


def _memory(compiled: Compiled, on: Slice | None) -> Memory:
    available = int(on.chip.memory) if on else _local_memory(compiled)
    if compiled.executable is None:
        return Memory(available=available, peak=needed_bytes(compiled.too_large or ""))
    found = compiled.executable.memory_analysis()
    if found is None:
        return Memory(available=available)
    sizes = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    # Only the TPU compiler includes temporaries in its peak; elsewhere they are one allocation.
    everything = sum(sizes.values()) - 2 * sizes["aliased"]
    peak = found.peak_memory_in_bytes if on else everything
    return Memory(available=available, peak=peak, **sizes)


def _local_memory(compiled: Compiled) -> int | None:
    """Returns the memory that this process may use of a local device; None for a CPU."""
    statistics = compiled.experiment.mesh.devices.flat[0].memory_stats()
    return statistics.get("bytes_limit") if statistics else None


def read_schedules(module: Module) -> dict[str, kernel_schedules.Schedule]:
    """Reads schedules by instruction. The compiler schedules only one of several equal kernels."""
    calls = [step.instruction for step in module.steps if step.instruction.is_kernel]
    found = kernel_schedules.read_folder(libtpu.load(), [call.name for call in calls])
    bodies = {call.kernel_body: found[call.name] for call in calls if call.name in found}
    equal = {call.name: bodies[call.kernel_body] for call in calls if call.kernel_body in bodies}
    return equal | found


def _kernel_name(instruction: Instruction) -> str:
    name, _, number = instruction.name.rpartition(".")
    return name if number.isdigit() else instruction.name


def read_kernels(module: Module, found: Mapping[str, kernel_schedules.Schedule]) -> list[Kernel]:
    """Lists the kernels of a program.

    Args:
      module: the program.
      found: schedules by the names of the instructions that call kernels.
    """
    grouped: dict[tuple[str, int | None, int | None], list[Any]] = collections.defaultdict(list)
    for step in module.steps:
        if step.instruction.is_kernel:
            schedule = found.get(step.instruction.name)
            key = (schedule.grid, schedule.bundles) if schedule else (None, None)
            grouped[(_kernel_name(step.instruction), *key)].append((step.times, schedule))
    kernels = []
    for (name, grid, bundles), calls in grouped.items():
        first = calls[0][1]
        cycles = sum(times * schedule.executed for times, schedule in calls) if first else None
        kernels.append(
            Kernel(
                name=name,
                calls=sum(times for times, _ in calls),
                grid=grid,
                bundles=bundles,
                cycles=cycles,
                unknown_loops=first.unknown_loops if first else 0,
            )
        )
    return sorted(kernels, key=lambda kernel: -(kernel.cycles or 0))


def read_operations(module: Module, kernels: list[Kernel]) -> list[Operation]:
    """Lists the source lines that cost most."""
    cycles: collections.Counter[tuple[str, bool]] = collections.Counter()
    calls: collections.Counter[tuple[str, bool]] = collections.Counter()
    for step in module.steps:
        estimated = step.instruction.cycles
        if estimated:
            key = (_source(module, step.instruction), step.instruction.is_backward)
            cycles[key] += estimated * step.times
            calls[key] += step.times
    for kernel in kernels:
        cycles[(f"kernel {kernel.name}", "backward" in kernel.name)] += kernel.cycles or 0
        calls[(f"kernel {kernel.name}", "backward" in kernel.name)] += kernel.calls
    total = cycles.total()
    return [
        Operation(
            location=location,
            backward=backward,
            calls=calls[(location, backward)],
            cycles=count,
            share=count / total,
        )
        for (location, backward), count in cycles.most_common(MOST_EXPENSIVE)
        if count
    ]


def _source(module: Module, instruction: Instruction) -> str:
    return (
        module.location(instruction)
        or instruction.op_name
        or f"(made by XLA: {instruction.opcode})"
    )


def estimate(
    module: Module,
    kernels: Sequence[Kernel],
    exchanges: Sequence[Collective],
    chip: Chip,
    *,
    images: float,
    model_flops: int,
    peak: float | None,
) -> Estimate:
    """Estimates the time of a step.

    Args:
      module: the program.
      kernels: its kernels.
      exchanges: its exchanges.
      chip: the kind of chip that it is compiled for.
      images: images per chip.
      model_flops: model FLOPs of an image.
      peak: FLOPs per second of a chip; None if unknown.
    """
    cycles = attention = 0
    unestimated: collections.Counter[str] = collections.Counter()
    for step in module.steps:
        instruction = step.instruction
        if instruction.cycles is not None:
            cycles += step.times * instruction.cycles
            if "/attention" in module.location(instruction).partition(":")[0]:
                attention += step.times * instruction.cycles
        elif _counts(instruction):
            unestimated[instruction.opcode] += step.times
    for kernel in kernels:
        if kernel.cycles is None:
            unestimated[f"kernel {kernel.name}"] += kernel.calls
    kernel_cycles = sum(kernel.cycles or 0 for kernel in kernels)
    compute = (cycles + kernel_cycles) / chip.clock
    exchange = sum(one.seconds or 0.0 for one in exchanges)
    rate = images / (compute + exchange)
    return Estimate(
        clock=chip.clock,
        xla_cycles=cycles,
        attention_cycles=attention,
        kernel_cycles=kernel_cycles,
        compute_seconds=compute,
        collective_seconds=exchange,
        step_seconds=compute + exchange,
        images_per_second=rate,
        images_per_second_alone=images / compute,
        mfu=rate * model_flops / peak if peak else None,
        unestimated=dict(unestimated),
        unknown_loops=len(module.unknown_loops) + sum(kernel.unknown_loops for kernel in kernels),
    )


def _counts(instruction: Instruction) -> bool:
    """Returns whether an instruction without an estimate is more than bookkeeping or scalars."""
    if instruction.opcode in _FREE or instruction.is_wait:
        return False
    if instruction.is_kernel or instruction.opcode.startswith(("all-", "collective-", "reduce-sc")):
        return False
    if any(f'custom_call_target="{name}"' in instruction.attributes for name in _FREE_CALLS):
        return False
    return any(math.prod(array.shape) > 1024 for array in instruction.arrays)
