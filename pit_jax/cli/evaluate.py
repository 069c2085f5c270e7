"""Measures the accuracy of weights on a data set.

    pit-evaluate --weights=runs/digits
    pit-evaluate --weights=hf:timm/pit_s_224.in1k --data=imagenet2012 --crop=timm

From a checkout, `python evaluate.py` is the same program.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from pit_jax.cli import console

ROWS = (
    ("model", "{model} ({parameters:,} parameters)"),
    ("data", "{data}, crop '{crop}'"),
    ("images", "{count:,}"),
    ("top-1", "{top1:.4%}"),
    ("top-5", "{top5:.4%}"),
    ("loss", "{loss:.5f}"),
    ("rate", "{rate:,.0f} images/s, compilation included"),
)


def run(arguments: Sequence[str] | None = None) -> None:
    """Entry point: parses the command line, evaluates, prints the table."""
    options = console.or_fail(_parser().parse_args, arguments)
    console.set_up_logging()
    console.set_up_compilation_cache()
    metrics = console.or_fail(_evaluate, options)
    metrics["rate"] = metrics["count"] / metrics["seconds"]
    for name, row in ROWS:
        print(f"{name:>7}  {row.format(**metrics)}")
    if options.json:
        print(json.dumps(metrics))


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from pit_jax.training import evaluation

    fields = [field.name for field in dataclasses.fields(evaluation.Protocol)]
    chosen = {name: getattr(options, name) for name in fields if getattr(options, name)}
    protocol = dataclasses.replace(evaluation.recorded_protocol(options.weights), **chosen)
    return evaluation.evaluate_weights(
        options.weights,
        model=options.model,
        protocol=protocol,
        batch_size=options.batch_size,
        image_size=_image_size(options.image_size),
    )


def _image_size(given: Sequence[str] | None) -> tuple[int, int] | None:
    """Height and width; two arguments are read like one with a comma."""
    try:
        return console.image_size(",".join(given)) if given else None
    except ValueError as error:
        raise ValueError(f"--image_size: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser("pit-evaluate", __doc__)
    add = parser.add_argument
    add("--weights", required=True, help="a run directory, a weights file or hf:owner/name")
    add("--model", help="a name of pit_jax.list_models(); told from the weights where it can be")
    add("--data", help="a TFDS set, folder:/path or digits; default: what training evaluated on")
    add("--split", help="default: the split that training evaluated, or validation")
    add("--data_dir", help="where TFDS keeps the set")
    add("--crop", help="deit (shorter side 256, centre 224), timm (248) or resize")
    add("--dtype", choices=("float32", "bfloat16"), help="default: as in training, or float32")
    add("--batch_size", type=int, default=256, help="images per step over all devices")
    add("--image_size", nargs="+", help="SIZE or HEIGHT,WIDTH (default: the model's own)")
    add("--json", action="store_true", help="print the metrics as JSON as well")
    return parser
