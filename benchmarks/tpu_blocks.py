"""Gain of each lowering in one transformer block on TPUs, by the compiler's estimate.

    python benchmarks/tpu_blocks.py [--model pit_s] [--batch 128] [--chip v5e] [--json FILE]

Compiles a block of every stage, forward and backward in bfloat16: as it is; its branches in parts
instead of kernels; these with one operation after the other in the form one would write down; the
last row has all of them so. Per image: cycles outside of kernels and bundles of kernels, which take
about a cycle each, and the bytes that XLA counts. No TPU is needed, but libtpu is; half a minute to
a minute of two cores per row.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tpu_gates import PLAIN

from pit_jax.compile_report import chips, libtpu, measure
from pit_jax.compile_report.hlo import Module
from pit_jax.compile_report.text import table
from pit_jax.models import zoo
from pit_jax.models.capture import Recorder
from pit_jax.models.config import TransformerConfig, TransformerStage
from pit_jax.models.initializers import torch_default_init
from pit_jax.models.layers import Block
from pit_jax.models.stochastic import DropRates
from pit_jax.ops import lowerings

# The first of a slice that every family has.
SLICES = {"v4": "v4:1x1x1", "v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1"}
OPERATIONS = tuple(name for name in PLAIN if name != "pooling")


class Row(NamedTuple):
    """Figures of an image.

    Attributes:
      tokens, width: of the stage.
      plain: what is in its plain form.
      cycles: outside of kernels.
      bundles: of kernels.
      megabytes: by XLA's count, with the operands and results of kernels.
    """

    tokens: int
    width: int
    plain: str
    cycles: float
    bundles: float
    megabytes: float


def measure_block(
    stage: TransformerStage, plain: Sequence[str], on: chips.Slice, batch: int
) -> Row:
    """Compiles one block with some operations in their plain form."""
    tokens, width, heads, _ = stage
    # A mesh says which chip it is, and with it how much VMEM there is.
    mesh = jax.sharding.Mesh(np.asarray(libtpu.devices(on)[:1]), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    block = Block(
        width,
        heads,
        4.0,
        DropRates(path=0.1),
        init=torch_default_init,
        dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )
    definition, state = nnx.split(block)

    def step(state: Any, x: jax.Array, gradient: jax.Array) -> Any:
        def forward(state: Any, x: jax.Array) -> jax.Array:
            return nnx.merge(definition, state)(x, jax.random.key(0), Recorder((), ()), "block")

        value, transpose = jax.vjp(forward, state, x)
        return value, transpose(gradient)

    rows = jax.ShapeDtypeStruct((batch, tokens, width), jnp.bfloat16, sharding=place)
    values = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state
    )
    libtpu.forget()
    with lowerings.override(**{name: PLAIN[name] for name in plain}):
        compiled = jax.jit(step).lower(values, rows, rows).compile()
    module = Module(compiled.as_text())
    found = measure.estimate(
        module,
        measure.read_kernels(module, measure.read_schedules(module)),
        [],
        on.chip,
        images=batch,
        model_flops=0,
        peak=None,
    )
    return Row(
        tokens,
        width,
        " ".join(plain) if len(plain) < len(OPERATIONS) else "all of them",
        found.xla_cycles / batch,
        found.kernel_cycles / batch,
        (compiled.cost_analysis() or {}).get("bytes accessed", 0.0) / batch / 1e6,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pit_s", help="a PiT or ViT")
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--chip", default="v5e", choices=list(SLICES))
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    config = zoo.model_config(options.model)
    if not isinstance(config, TransformerConfig):
        raise ValueError(f"--model takes a vision transformer, found {options.model}")
    libtpu.load()
    on = chips.parse_slice(SLICES[options.chip])
    rows = []
    for stage in config.stages:
        for plain in ((), *((name,) for name in OPERATIONS), OPERATIONS):
            rows.append(measure_block(stage, plain, on, options.batch))
            print(rows[-1], file=sys.stderr, flush=True)
    header = ("tokens", "width", "plain", "k cycles", "k bundles", "together", "MB")
    lines = [header] + [
        (
            f"{row.tokens}",
            f"{row.width}",
            row.plain or "none",
            f"{row.cycles / 1e3:.2f}",
            f"{row.bundles / 1e3:.2f}",
            f"{(row.cycles + row.bundles) / 1e3:.2f}",
            f"{row.megabytes:.2f}",
        )
        for row in rows
    ]
    versions = " ".join(f"{name} {value}" for name, value in measure.versions(True).items())
    print(f"{options.chip}, {options.batch} images, bfloat16; of an image. {versions}")
    print("\n".join(table(lines, left=3)))
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
