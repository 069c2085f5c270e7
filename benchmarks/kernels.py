"""Lowerings of every operation alone, forward and backward, at every stage's shape.

    python benchmarks/kernels.py --models pit_s vit_s --json kernels.json

times the lowerings on this machine's GPU, TPU or CPU, on random operands on the device. "chosen" is
what a model uses when nothing is said. Backward is the whole of a value and its gradients by all
operands. Lowerings take turns, repeat by repeat; one that the platform or the shape rules out is a
row with its reason. It needs jax and flax alone.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from measuring import Program, machine, one_line, table, time_together

from pit_jax.models import zoo
from pit_jax.models.config import TransformerConfig
from pit_jax.ops import attention, gelu, layer_norm, linear, lowerings, patches, pooling

MODELS = ("pit_ti", "pit_xs", "pit_s", "pit_b", "vit_s")
OPERATIONS = ("attention", "pooling", "patches", "gelu", "layer_norm", "linear")
CHOSEN = "chosen"
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
      operation: of `OPERATIONS`.
      place: model and stage.
      shapes: of the operands.
      call: the operation.
      known: names of its lowerings.
    """

    operation: str
    place: str
    shapes: tuple[Shape, ...]
    call: Callable[..., jax.Array]
    known: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Seconds for a whole batch; only `error` if a lowering does not run."""

    operation: str
    place: str
    shape: Shape
    lowering: str
    forward_seconds: float | None = None
    backward_seconds: float | None = None
    error: str | None = None


def cases(config: TransformerConfig, model: str, batch: int) -> Iterator[Case]:
    """The patch embedding, the operations of every stage's blocks, and the pooling after it."""
    patch, channels, width = config.patch_size, config.in_channels, config.widths[0]
    yield Case(
        "patches",
        model,
        ((batch, *config.image_size, channels), (patch, patch, channels, width), (width,)),
        functools.partial(patches.embed_patches, stride=config.strides[0]),
        tuple(patches.LOWERINGS),
    )
    for index, (stage, grid) in enumerate(zip(config.stages, config.grids, strict=True)):
        place, width = f"{model}, stage {index + 1}", stage.width
        operand = (batch, stage.tokens, stage.heads, width // stage.heads)
        yield Case(
            "attention", place, (operand,) * 3, attention.attention, tuple(attention.LOWERINGS)
        )
        wide = int(width * config.mlp_ratio)
        yield Case("gelu", place, ((batch, stage.tokens, wide),), gelu.gelu, tuple(gelu.LOWERINGS))
        rows = (batch, stage.tokens, width)
        yield Case(
            "layer_norm",
            place,
            (rows, (width,), (width,)),
            layer_norm.layer_norm,
            tuple(layer_norm.LOWERINGS),
        )
        yield Case(
            "linear",
            place,
            (rows, (width, wide), (wide,)),
            linear.linear,
            tuple(linear.LOWERINGS),
        )
        for wider in config.widths[index + 1 : index + 2]:
            window = (pooling.WINDOW, pooling.WINDOW, 1, wider)
            operands = ((batch, *grid, width), window, (wider,))
            yield Case("pooling", place, operands, pooling.depthwise_pool, tuple(pooling.LOWERINGS))


def measure(case: Case, options: argparse.Namespace) -> list[Row]:
    """A row for every lowering, and one for the choice between them."""
    rng = np.random.default_rng(0)
    operands = [
        jnp.asarray(rng.standard_normal(shape, np.float32), options.dtype) for shape in case.shapes
    ]
    names = [name for name in (CHOSEN, *case.known) if name not in options.leave_out]
    programs: dict[str, Program] = {}
    errors: dict[str, str] = {}
    for name in names:
        choice = {case.operation: None if name == CHOSEN else name}
        call = lowerings.override(**choice)(case.call)
        # A lowering for another platform, or not for this shape, is a finding.
        try:
            programs[name] = _program(call, operands)
            programs[f"{name}, backward"] = _program(_with_gradients(call), operands)
        except Exception as error:
            programs.pop(name, None)
            errors[name] = one_line(error)
    timings = time_together(programs, repeats=options.repeats, window=options.window)
    rows = []
    for name in names:
        row = Row(case.operation, case.place, case.shapes[0], name)
        if name in errors:
            rows.append(dataclasses.replace(row, error=errors[name]))
            continue
        seconds = (timings[name].median, timings[f"{name}, backward"].median)
        rows.append(
            dataclasses.replace(row, forward_seconds=seconds[0], backward_seconds=seconds[1])
        )
    return rows


def _with_gradients(call: Callable[..., jax.Array]) -> Callable[..., Any]:
    def run(*operands: jax.Array) -> Any:
        value, transpose = jax.vjp(call, *operands)
        return value, transpose(value)

    return run


def _program(call: Callable[..., Any], operands: list[jax.Array]) -> Program:
    compiled = jax.jit(call).lower(*operands).compile()
    results: list[Any] = []

    def once() -> None:
        results[:] = [compiled(*operands)]

    program = Program(once, lambda: jax.block_until_ready(results))
    program.call()
    program.wait()
    return program


def line(row: Row) -> tuple[str, ...]:
    """A row as text, in milliseconds for the batch."""
    names = (row.operation, row.place, "x".join(map(str, row.shape)), row.lowering)
    if row.forward_seconds is None or row.backward_seconds is None:
        return (*names, row.error or "", "")
    return (*names, f"{row.forward_seconds * 1e3:.3f}", f"{row.backward_seconds * 1e3:.3f}")


HEADER = ("operation", "of", "shape", "lowering", "forward ms", "forward and backward ms")


def parse_options() -> argparse.Namespace:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    # XLA's grouped convolution takes minutes for its gradient on CPUs.
    parser.add_argument("--leave_out", nargs="*", default=["grouped"] if on_cpu else [])
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="float32" if on_cpu else "bfloat16"
    )
    parser.add_argument("--batch_size", type=int, default=8 if on_cpu else 256)
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--window", type=float, default=0.1, help="seconds per repeat")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def main() -> None:
    """Measures, prints and saves."""
    options = parse_options()
    report: dict[str, Any] = {"machine": machine(), "dtype": options.dtype, "rows": []}
    for name, value in report["machine"].items():
        print(f"{name:<10} {value}")
    rows: list[Row] = []
    for model in options.models:
        config = zoo.model_config(model, image_size=options.image_size)
        if not isinstance(config, TransformerConfig):
            raise ValueError(f"--models takes vision transformers, found {model}")
        for case in cases(config, model, options.batch_size):
            if case.operation in options.operations:
                rows += measure(case, options)
                print(f"measured {case.operation}, {case.place}", file=sys.stderr, flush=True)
        if options.json:
            report["rows"] = [dataclasses.asdict(row) for row in rows]
            options.json.write_text(json.dumps(report, indent=1))
    print("\n" + table(HEADER, [line(row) for row in rows]))


if __name__ == "__main__":
    main()
