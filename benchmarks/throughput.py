"""Images per second of our models and of timm's, in training and inference, on this machine.

    python benchmarks/throughput.py --json throughput.json

measures every PiT and ViT on the GPU, or without one on the CPU: ours, timm's eager and timm's
under torch.compile, on the same batch, with the input on the device already. On a GPU machine it
needs no more than

    pip install "jax[cuda13]" flax optax torch timm

and no data. Quicker: `--models pit_s pit_b --modes inference`. On a CPU the programs take turns
window by window, so that other load falls on all alike; on a GPU they run one after the other, each
with the memory to itself.

inference  a batch to its logits. bfloat16 on GPUs (timm's weights in bfloat16 too, which is the
           faster of its ways), float32 on CPUs.
training   forward, backward and AdamW's update. Ours is the trainer's own step without augmentation
           or moving average: it takes uint8 pixels and normalises them, donates its state and
           computes its metrics. timm's takes normalised pixels under autocast, float32 weights.
latency    one image, waited for, in inference.
MFU        floating-point operations that the published architecture needs, over the peak of the
           device in bfloat16; operations that a program spends beyond those do not count.
memory     ours: the compiler's figure for the program; timm's: the allocator's peak.

Images per second are the median of the repeats; the spread is half their range over the median. A
program that does not run is reported with its error; the exit status is 1 if that is one of ours.
"""

import argparse
import ast
import contextlib
import dataclasses
import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Both frameworks share the card: JAX must not take most of it beforehand.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from measuring import Program, Timing, compiled_peak, machine, one_line, table, time_together

from pit_jax.models import parameters, zoo
from pit_jax.training.utilisation import peak_flops

MODELS = ("pit_ti", "pit_xs", "pit_s", "pit_b", "vit_ti", "vit_s", "vit_b")
MODES = ("inference", "training")
OURS, EAGER, COMPILED = "ours", "timm eager", "timm compiled"
LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 1e-3, 0.05, 0.1


@dataclasses.dataclass(frozen=True)
class Setting:
    """One model in one mode."""

    config: zoo.ModelConfig
    mode: str
    dtype: str
    batch: int
    compile_mode: str

    def images(self) -> np.ndarray:
        """Normalised images (B, H, W, 3), float32."""
        shape = (self.batch, *self.config.image_size, self.config.in_channels)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def labels(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, self.config.num_classes, self.batch)


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one program; only `error` if it did not run."""

    model: str
    mode: str
    program: str
    batch: int
    dtype: str
    images_per_second: float | None = None
    spread: float | None = None
    mfu: float | None = None
    peak_bytes: int | None = None
    latency_seconds: float | None = None
    ready_seconds: float | None = None
    error: str | None = None


def ours(setting: Setting) -> Program:
    """Our model or training step, compiled."""
    return (_our_training if setting.mode == "training" else _our_inference)(setting)


def _our_inference(setting: Setting) -> Program:
    graphdef, params = parameters.split(zoo.build(setting.config, dtype=jnp.dtype(setting.dtype)))
    images = jnp.asarray(setting.images(), setting.dtype)
    forward = jax.jit(lambda params, images: parameters.merge(graphdef, params)(images))
    compiled = forward.lower(params, images).compile()
    logits: list[jax.Array] = []

    def call() -> None:
        logits[:] = [compiled(params, images)]

    return Program(call, lambda: jax.block_until_ready(logits), lambda: compiled_peak(compiled))


def _our_training(setting: Setting) -> Program:
    from pit_jax.optim.optimizers import make_optimizer
    from pit_jax.tasks.classification.config import (
        AugmentConfig,
        ClassificationConfig,
        ModelConfig,
    )
    from pit_jax.tasks.classification.task import Classification
    from pit_jax.training.state import initial_state
    from pit_jax.training.step import make_train_step

    _, values = parameters.split(zoo.build(setting.config))
    optimizer = make_optimizer("adamw", LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    config = ClassificationConfig(
        model=ModelConfig(dtype=setting.dtype, image_size=setting.config.image_size),
        augment=AugmentConfig(flip_probability=0.0, label_smoothing=LABEL_SMOOTHING),
    )
    initialise = functools.partial(initial_state, optimizer=optimizer, seed=0, ema=False)
    state = jax.jit(initialise)(values)
    pixels = np.random.default_rng(0).integers(0, 256, setting.images().shape, np.uint8)
    batch = {"image": jnp.asarray(pixels), "label": jnp.asarray(setting.labels(), jnp.int32)}
    task = Classification(config, setting.config)
    train_step = make_train_step(task, optimizer, lambda step: LEARNING_RATE)
    step = jax.jit(train_step, donate_argnums=0)
    compiled = step.lower(state, {}, batch).compile()

    def call() -> None:
        nonlocal state
        state, _ = compiled(state, {}, batch)

    return Program(call, lambda: jax.block_until_ready(state), lambda: compiled_peak(compiled))


def timm_program(setting: Setting, *, compiled: bool) -> Program:
    """timm's model of the same architecture, eager or under torch.compile."""
    import torch

    from pit_jax.weights.verify import reference_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, setting.dtype)
    model = reference_model(setting.config).to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(setting.images().transpose(0, 3, 1, 2)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(setting.labels()).to(device)
    if setting.mode == "inference":
        model, images = model.eval().to(dtype), images.to(dtype)
    if compiled:
        model = torch.compile(model, mode=setting.compile_mode, dynamic=False)

    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()

    if setting.mode == "training":
        model.train()
        optimizer = torch.optim.AdamW(
            model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
    if device.type == "cpu":
        return Program(train if setting.mode == "training" else infer, lambda: None)
    torch.cuda.reset_peak_memory_stats()
    return Program(
        train if setting.mode == "training" else infer,
        torch.cuda.synchronize,
        torch.cuda.max_memory_allocated,
    )


BUILDERS: dict[str, Callable[[Setting], Program]] = {
    OURS: ours,
    EAGER: functools.partial(timm_program, compiled=False),
    COMPILED: functools.partial(timm_program, compiled=True),
}


@contextlib.contextmanager
def _prepared(setting: Setting, names: list[str]) -> Iterator[tuple[dict[str, Program], dict]]:
    """Programs that have run once, and the errors of those that cannot; freed in the end."""
    programs: dict[str, Program] = {}
    errors: dict[str, str] = {}
    for name in names:
        began = time.perf_counter()
        try:
            program = BUILDERS[name](setting)
            program.call()
            program.wait()
        # Out of memory, no C++ compiler, an operation that a backend lacks: all are findings.
        except Exception as error:
            errors[name] = one_line(error)
        else:
            program.ready_seconds = time.perf_counter() - began
            programs[name] = program
    try:
        yield programs, errors
    finally:
        programs.clear()
        _free()


def _free() -> None:
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


def measure(setting: Setting, model: str, options: argparse.Namespace) -> list[Row]:
    """A row for every program."""
    together = jax.default_backend() == "cpu"
    groups = [options.programs] if together else [[name] for name in options.programs]
    rows = []
    for group in groups:
        latencies: dict[str, Timing] = {}
        if setting.mode == "inference" and options.latency:
            single = dataclasses.replace(setting, batch=1)
            with _prepared(single, group) as (programs, _):
                latencies = time_together(programs, repeats=options.latency_calls, window=0.0)
        with _prepared(setting, group) as (programs, errors):
            timings = time_together(programs, repeats=options.repeats, window=options.window)
            for name in group:
                row = Row(model, setting.mode, name, setting.batch, setting.dtype)
                if name in errors:
                    rows.append(dataclasses.replace(row, error=errors[name]))
                    continue
                latency = latencies[name].median if name in latencies else None
                row = dataclasses.replace(row, latency_seconds=latency)
                rows.append(_filled(row, setting, programs[name], timings[name], options.peak))
    return rows


def _filled(
    row: Row,
    setting: Setting,
    program: Program,
    timing: Timing,
    peak: float | None,
) -> Row:
    rate = setting.batch / timing.median
    flops = zoo.model_flops(setting.config, training=setting.mode == "training")
    return dataclasses.replace(
        row,
        images_per_second=rate,
        spread=timing.spread,
        mfu=rate * flops / peak if peak else None,
        peak_bytes=program.peak_bytes(),
        ready_seconds=program.ready_seconds,
    )


HEADER = (
    "model", "mode", "program", "images/s", "spread", "ours is", "MFU", "memory MB", "batch 1 ms",
    "ready s",
)  # fmt: skip


def lines(rows: list[Row]) -> list[tuple[str, ...]]:
    """The rows as text; "ours is" gives our images per second over those of the row."""
    best = {
        (row.model, row.mode): row.images_per_second or 0.0 for row in rows if row.program == OURS
    }
    return [_line(row, best.get((row.model, row.mode), 0.0)) for row in rows]


def _line(row: Row, our_rate: float) -> tuple[str, ...]:
    names = (row.model, row.mode, row.program)
    if row.images_per_second is None:
        return (*names, row.error or "", *[""] * (len(HEADER) - len(names) - 1))

    def text(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else format(value * factor, form)

    return (
        *names,
        text(row.images_per_second, ",.1f"),
        text(row.spread, ".0%"),
        f"{our_rate / row.images_per_second:.2f}x",
        text(row.mfu, ".1%"),
        text(row.peak_bytes, ",.0f", 1e-6),
        text(row.latency_seconds, ".2f", 1e3),
        text(row.ready_seconds, ".1f"),
    )


def parse_options() -> argparse.Namespace:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--programs", nargs="+", choices=list(BUILDERS), default=list(BUILDERS))
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="float32" if on_cpu else "bfloat16"
    )
    parser.add_argument("--batch_size", type=int, default=8 if on_cpu else 256)
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE",
        help="fields of the configurations replaced, e.g. depths=(1,1,1)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--window", type=float, default=0.5, help="seconds per repeat")
    parser.add_argument("--latency", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--latency_calls", type=int, default=20 if on_cpu else 100)
    parser.add_argument("--compile_mode", default="default", help="of torch.compile")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: all cores")
    parser.add_argument("--peak", type=float, help="FLOP/s of the device; default: by its name")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if options.peak is None and options.dtype == "bfloat16":
        options.peak = peak_flops(jax.devices()[0])
    return options


def replaced_fields(pairs: list[str]) -> dict[str, Any]:
    """Fields of a configuration from FIELD=VALUE.

    Raises:
      ValueError: no "=", or a value that is no Python literal.
    """
    fields = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            fields[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"--set needs FIELD=VALUE with a literal, found {pair!r}") from error
    return fields


def settings(options: argparse.Namespace) -> list[tuple[str, Setting]]:
    """Settings to measure, by the model's name."""
    found = []
    for model in options.models:
        fields = replaced_fields(options.set)
        config = zoo.model_config(model, image_size=options.image_size, **fields)
        if getattr(config, "distilled", False):
            raise ValueError(f"--models takes networks without a distillation head, found {model}")
        for mode in options.modes:
            setting = Setting(config, mode, options.dtype, options.batch_size, options.compile_mode)
            found.append((model, setting))
    return found


def set_up_torch(options: argparse.Namespace) -> str:
    """torch's threads and matmul precision; a description of its device.

    It runs before any program is timed, so that importing torch falls into none.
    """
    import torch

    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    # JAX's default for float32 products on GPUs is TF32 as well.
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name}, {torch.get_num_threads()} threads"


def main() -> int:
    """Measures, prints and saves; returns 1 if a program of ours did not run."""
    options = parse_options()
    plan = settings(options)
    report: dict[str, Any] = {"machine": machine(), "rows": []}
    if set(options.programs) != {OURS}:
        report["machine"]["torch"] = set_up_torch(options)
    for name, value in report["machine"].items():
        print(f"{name:<10} {value}")
    rows: list[Row] = []
    for model, setting in plan:
        rows += measure(setting, model, options)
        print(f"measured {model}, {setting.mode}", file=sys.stderr, flush=True)
        if options.json:
            report["rows"] = [dataclasses.asdict(row) for row in rows]
            options.json.write_text(json.dumps(report, indent=1))
    print("\n" + table(HEADER, lines(rows)))
    return int(any(row.error for row in rows if row.program == OURS))


if __name__ == "__main__":
    sys.exit(main())
