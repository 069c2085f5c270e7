"""Cost of a step on TPUs by the compiler's estimate, plain JAX and ours side by side.

Exits non-zero if a gate is missed. No TPU is needed, but libtpu is.

    python benchmarks/tpu_gates.py [--models pit_s] [--batch 128] [--topology v5e:2x2] [--json FILE]
    python benchmarks/tpu_gates.py --models pit_ti pit_xs pit_s pit_b deit_s --ours-only
    python benchmarks/tpu_gates.py --step recipe
    python benchmarks/tpu_gates.py --scaling

Plain JAX is the same program with the lowerings one would write down: a grouped convolution to
pool, attention that stores its map, `jax.nn.gelu`, layer norms and biases as JAX differentiates
them. The gates are of PiT-S on v5e with 128 images a chip, and of the bare step: AdamW, without
moving average, mixing, erasing, flips and stochastic depth. `--step recipe` holds the whole recipe
against them, configs/deit.py:pit_s. What attention costs is measured in kernels of its own, because
in those of the step it is one part of several; everything else is what is left. The gates are of
one chip's work; exchanges between chips are shown beside it, and judged by `--scaling`: images per
second and chip on 256 chips relative to 8, and relative to no exchanges. All models train alike, so
that the network is the only difference.

Estimates only, of which docs/performance.md says how far to trust them. With its schedules written
a training step compiles in three to five minutes on two cores, an inference step in one or two.
"""

import argparse
import dataclasses
import json
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.compile_report import chips, libtpu, measure, program
from pit_jax.compile_report.hlo import Module
from pit_jax.compile_report.report import Report
from pit_jax.compile_report.text import table
from pit_jax.models import zoo
from pit_jax.models.config import TransformerConfig
from pit_jax.ops import attention_tpu, lowerings

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "deit.py"
PLAIN = {
    "attention": "plain",
    "branch": "parts",
    "gelu": "xla",
    "layer_norm": "xla",
    "linear": "xla",
    "pooling": "grouped",
}
# Options that make the recipe's step a bare one.
BARE = {
    "optimizer.name": "adamw",
    "optimizer.options": {},
    "ema_decay": None,
    "augment.mix_probability": 0.0,
    "augment.erasing_probability": 0.0,
    "augment.flip_probability": 0.0,
    "model.drop_path_rate": 0.0,
}
STEPS: dict[str, dict[str, Any]] = {"bare": BARE, "recipe": {}}
GATED = "pit_s"
RIVAL = "deit_s"
SCALING_SLICES = ("v5e:2x4", "v5e:16x16")
SCALING_GATES = {128: 0.97, 16: 0.90}


@dataclasses.dataclass(frozen=True)
class Case:
    """One compiled program."""

    report: Report
    grouped_convolutions: list[str]
    attention_maps: list[str]

    @property
    def rate(self) -> float:
        """Images per second of one chip, exchanges left out; 0 where it does not fit."""
        estimate = self.report.estimate
        return estimate.images_per_second_alone if estimate else 0.0


@dataclasses.dataclass(frozen=True)
class Gate:
    """A figure and the bound it has to keep."""

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def row(self) -> list[str]:
        relation = ">=" if self.at_least else "<="
        verdict = "ok" if self.holds else "MISSED"
        return [self.name, f"{self.value:,.4g}", relation, f"{self.bound:,.4g}", verdict]


def compile_case(
    model: str, kind: str, topology: str, batch: int, step: str, *, plain: bool = False
) -> Case:
    """Compiles one program and reads it; `step` is of `STEPS`."""
    config = runpy.run_path(str(CONFIG))["get_config"](GATED)
    config.update_from_flattened_dict(STEPS[step])
    config.model.name = model
    on = chips.parse_slice(topology)
    devices = libtpu.devices(on)
    experiment = program.experiment_on(
        config, devices, batch_size=batch * len(devices), program=kind
    )
    with lowerings.override(**(PLAIN if plain else {})):
        compiled = program.compile_program(experiment, kind)
    module = measure.read_program(compiled)
    report = measure.make_report(compiled, module, topology, on)
    case = Case(report, module.grouped_convolutions, attention_maps(module, model))
    print(
        f"{model} {kind} ({step}) {'plain' if plain else 'ours'} on {topology}, {batch} images a "
        f"chip: {case.rate:,.0f} images/s/chip, traced in {report.trace_seconds:.0f} s, compiled "
        f"in {report.compile_seconds:.0f} s, load {report.load[0]} on {report.load[1]} cores",
        file=sys.stderr,
        flush=True,
    )
    return case


def attention_maps(module: Module, model: str) -> list[str]:
    """Arrays in main memory with two axes of the first stage's tokens, padded or not; of a ViT's, a
    batch of images has two such axes as well.
    """
    config = zoo.model_config(model)
    height, width = config.grids[0]
    padded = range(height * width, -(-(height * width + 2) // 128) * 128 + 1)
    tokens = set(padded) - set(config.image_size)
    return sorted(
        f"{array.dtype}{list(array.shape)}"
        for array in module.stored
        if sum(size in tokens for size in array.shape) > 1
    )


def product_cycles(config: TransformerConfig, kind: str) -> float:
    """Cycles of an image that the products of all blocks take at least on the matrix units of a v4,
    v5e or v5p, four of 128 x 128: the contracted axis, and the columns of one operand, in multiples
    of 128, rows of the other one as they are. Tokens count as they are too, as if images lay side
    by side without a gap, but not in attention maps, which are of one image.

    Args:
      config: of the model.
      kind: "train", which adds every product's two gradients and computes the maps again, or
        "inference".
    """

    def padded(size: int) -> int:
        return -(-size // 128) * 128

    total = 0
    for tokens, width, heads, depth in config.stages:
        head_width, columns = width // heads, padded(tokens)
        layers = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        products = sum(tokens * padded(taken) * given for taken, given in layers)
        maps = tokens * padded(head_width) * columns, head_width * columns * columns
        products += heads * sum(maps)
        if kind == "train":
            for taken, given in layers:
                products += tokens * (
                    taken * padded(given) + min(taken, given) * padded(max(taken, given))
                )
            products += heads * (2 * maps[0] + 3 * maps[1])
        total += depth * products
    return total / (4 * 128 * 128)


def attention_bundles(model: str, topology: str, batch: int) -> float:
    """Bundles of attention's own kernels in all layers, forward and backward, per image."""
    config = zoo.model_config(model)
    on = chips.parse_slice(topology)
    place = jax.sharding.SingleDeviceSharding(libtpu.devices(on)[0])
    bundles = 0.0
    for tokens, width, heads, depth in config.stages:
        shape = (batch, tokens, heads, width // heads)
        operand = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)

        def step(query: jax.Array, key: jax.Array, value: jax.Array, gradient: jax.Array) -> Any:
            out, transpose = jax.vjp(attention_tpu.attention, query, key, value)
            return out, transpose(gradient)

        libtpu.forget()
        module = Module(jax.jit(step).lower(*[operand] * 4).compile().as_text())
        schedules = measure.read_schedules(module).values()
        bundles += depth * sum(schedule.executed for schedule in schedules) / batch
    return bundles


def gates(train: Case, inference: Case, attention: float) -> list[Gate]:
    """The bounds for PiT-S on v5e with 128 images a chip.

    Args:
      train: the step.
      inference: the same for inference.
      attention: `attention_bundles`.
    """
    report, estimate = train.report, train.report.estimate
    gathered = sum(one.bytes for one in report.collectives if one.kind != "all-reduce")
    cycles = estimate.xla_cycles + estimate.kernel_cycles if estimate else float("inf")
    others = cycles / report.images - attention
    return [
        Gate("grouped convolutions", len(train.grouped_convolutions), 0),
        Gate("attention maps in HBM", len(train.attention_maps), 0),
        Gate("gathered by other chips, MB/image", gathered / report.images / 1e6, 0.01),
        Gate("XLA bytes, MB/image", (report.bytes_accessed or 0) / report.images / 1e6, 280),
        Gate("cycles but attention's, k/image", others / 1e3, 382),
        Gate("attention bundles, k/image", attention / 1e3, 76),
        Gate("training, images/s/chip", train.rate, 3300, at_least=True),
        Gate("inference, images/s/chip", inference.rate, 10_000, at_least=True),
    ]


def side_by_side(*cases: Case) -> list[str]:
    """The figures of plain JAX and ours, an image, and their ratio; or of ours alone."""
    rows = [["", "plain", "ours", "ours / plain"] if len(cases) > 1 else ["", "ours"]]
    columns = [_figures(case) for case in cases]
    for name in dict.fromkeys(name for column in columns for name in column):
        figures = [column.get(name, 0.0) for column in columns]
        row = [name, *(f"{figure:,.1f}" for figure in figures)]
        if len(figures) > 1:
            row.append(f"{figures[1] / figures[0]:.3f}" if all(figures) else "")
        rows.append(row)
    return table(rows)


def _figures(case: Case) -> dict[str, float]:
    report, estimate = case.report, case.report.estimate
    figures = {"images/s/chip": case.rate}
    if estimate:
        model_flops = case.rate * report.model_flops
        figures |= {
            "  with exchanges": estimate.images_per_second,
            "MFU, %": 100 * model_flops / (report.peak_flops or float("inf")),
            "XLA cycles, k/image": estimate.xla_cycles / report.images / 1e3,
            "  of these attention": estimate.attention_cycles / report.images / 1e3,
            "kernel bundles, k/image": estimate.kernel_cycles / report.images / 1e3,
            "XLA bytes, MB/image": (report.bytes_accessed or 0) / report.images / 1e6,
        }
    return figures | {
        "peak memory, GB": (report.memory.peak or 0) / 1e9,
        "grouped convolutions": len(case.grouped_convolutions),
        "attention maps in HBM": len(case.attention_maps),
        "compiled in, s": report.compile_seconds,
    }


def compare_models(options: argparse.Namespace) -> tuple[dict[str, Any], list[Gate]]:
    """Plain JAX and ours for every model, in training and in inference, and the gates."""
    cases: dict[tuple[str, str, bool], Case] = {}
    for model in options.models:
        for kind in program.PROGRAMS:
            for plain in (False,) if options.ours_only else (True, False):
                cases[(model, kind, plain)] = compile_case(
                    model, kind, options.topology, options.batch, options.step, plain=plain
                )
            print(f"\n{model} {kind}, {options.batch} images a chip, {options.topology}")
            columns = [case for key, case in cases.items() if key[:2] == (model, kind)]
            print("\n".join(side_by_side(*columns)))
    if RIVAL in options.models:
        print(f"\nfaster than {RIVAL}, with our lowerings; perfect: of matrix units of 128 x 128")
        rates = {key[:2]: case.rate for key, case in cases.items() if not key[2]}
        print("\n".join(table(advantages(rates))))
    found = {
        f"{model} {kind} {'plain' if plain else 'ours'}": case.report.to_json()
        for (model, kind, plain), case in cases.items()
    }
    judged = options.topology.startswith("v5e") and options.batch == 128 and GATED in options.models
    if not judged:
        return found, []
    attention = attention_bundles(GATED, options.topology, options.batch)
    return found, gates(
        cases[(GATED, "train", False)], cases[(GATED, "inference", False)], attention
    )


def advantages(rates: Mapping[tuple[str, str], float]) -> list[list[str]]:
    """Speed of every model over the rival's, and what it would be if the blocks' products took all
    of the time and no more than they must.

    Args:
      rates: images per second of models and programs, the rival's among them.
    """
    kinds = program.PROGRAMS
    rows = [["model", *kinds, *(f"{kind}, perfect" for kind in kinds)]]
    rival = zoo.model_config(RIVAL)
    for model in dict.fromkeys(model for model, _ in rates):
        config = zoo.model_config(model)
        ratios = [rates[model, kind] / rates[RIVAL, kind] for kind in kinds]
        ratios += [product_cycles(rival, kind) / product_cycles(config, kind) for kind in kinds]
        rows.append([model, *(f"{ratio:.2f}x" for ratio in ratios)])
    return rows


def compare_slices(options: argparse.Namespace) -> tuple[dict[str, Any], list[Gate]]:
    """Weak scaling of training with our lowerings."""
    found, judged = {}, []
    rows = [["images a chip", "chips", "images/s/chip", "exchanges, % of the step"]]
    for batch, bound in SCALING_GATES.items():
        rates, shares = [], []
        for topology in SCALING_SLICES:
            report = compile_case(GATED, "train", topology, batch, options.step).report
            found[f"{topology} {batch}"] = report.to_json()
            if report.estimate is None:
                raise SystemExit(f"{GATED} does not fit on {topology} with {batch} images a chip")
            rates.append(report.estimate.images_per_second)
            shares.append(report.estimate.collective_seconds / report.estimate.step_seconds)
            row = [f"{batch}", f"{report.devices}", f"{rates[-1]:,.0f}", f"{100 * shares[-1]:.2f}"]
            rows.append(row)
        name = f"{batch} images a chip,"
        judged += [
            Gate(f"{name} 256 chips over 8", rates[1] / rates[0], bound, at_least=True),
            Gate(f"{name} 256 chips over no exchanges", 1 - shares[1], bound, at_least=True),
        ]
    print("\n" + "\n".join(table(rows)))
    return found, judged


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles, prints and judges; returns 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description="Estimates and gates of training on TPUs.")
    parser.add_argument("--models", nargs="+", default=[GATED], choices=zoo.list_models())
    parser.add_argument("--batch", type=int, default=128, help="images a chip")
    parser.add_argument("--topology", default="v5e:2x2", help="such as v6e:2x2")
    parser.add_argument("--step", choices=list(STEPS), default="bare", help="of training")
    parser.add_argument("--ours-only", action="store_true", help="without plain JAX beside it")
    parser.add_argument("--scaling", action="store_true", help="weak scaling instead of models")
    parser.add_argument("--json", type=Path, help="where to write all reports")
    options = parser.parse_args(arguments)
    libtpu.load()
    reports, judged = (compare_slices if options.scaling else compare_models)(options)
    if judged:
        print(
            "\n"
            + "\n".join(
                table([["gate", "found", "", "bound", ""], *(gate.row() for gate in judged)])
            )
        )
    if options.json:
        verdicts = [dataclasses.asdict(gate) | {"holds": gate.holds} for gate in judged]
        options.json.write_text(
            json.dumps({"reports": reports, "gates": verdicts}, indent=2) + "\n"
        )
    return int(not all(gate.holds for gate in judged))


if __name__ == "__main__":
    sys.exit(main())
