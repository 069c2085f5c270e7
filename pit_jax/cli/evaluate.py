"""Measures the metrics of weights on a data set.

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
from pit_jax.options import fields


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, evaluates the weights, prints the table."""
    first, _ = console.or_fail(_parser(add_help=False).parse_known_args, arguments)
    if first.weights is None:
        # Exits: prints the help, or that --weights is missing.
        console.or_fail(_parser().parse_args, arguments)
    console.set_up_logging()
    console.set_up_compilation_cache()
    task, file = console.or_fail(_open, first)
    defaults = console.or_fail(task.evaluation_options, file)
    options = console.or_fail(_parser(defaults).parse_args, arguments)
    found = console.or_fail(_evaluate, task, file, defaults, options)
    for name, text in _table(task, found):
        print(f"{name:>10}  {text}")
    if options.json:
        print(json.dumps(_as_json(found)))


def _open(options: argparse.Namespace) -> tuple[Any, Any]:
    """Reads the weights; returns the task they were trained for, and the file's content."""
    from pit_jax.tasks import registry
    from pit_jax.weights.read import read

    file = read(options.weights)
    return registry.find((file.card or {}).get("task", "classification")), file


def _evaluate(task: Any, file: Any, defaults: Any, options: argparse.Namespace) -> Any:
    given = {name: getattr(options, name) for name in fields(defaults)}
    chosen = {name: value for name, value in given.items() if value}
    return task.evaluate(
        file,
        dataclasses.replace(defaults, **chosen),
        model=options.model,
        batch_size=options.batch_size,
        image_size=_image_size(options.image_size),
    )


def _rate(found: Any) -> float:
    rate: float = found.metrics["count"] / found.seconds
    return rate


def _table(task: Any, found: Any) -> list[tuple[str, str]]:
    options = "".join(f", {name} {value}" for name, value in found.options.items())
    rows = [
        ("model", f"{found.model} ({found.parameters:,} parameters)"),
        ("data", f"{found.data}{options}"),
        ("test/count", f"{found.metrics['count']:,}"),
    ]
    for metric in task.metrics:
        if metric.name in found.metrics:
            # Two digits more than in training (one for a loss), to compare with published figures.
            digits = metric.format.replace(".2%", ".4%").replace(".4f", ".5f")
            rows.append((f"test/{metric.name}", f"{found.metrics[metric.name]:{digits}}"))
    return [*rows, ("rate", f"{_rate(found):,.0f} examples/s, compilation included")]


def _as_json(found: Any) -> dict[str, Any]:
    metrics = {f"test/{name}": value for name, value in found.metrics.items()}
    about = {"model": found.model, "parameters": found.parameters, "data": found.data}
    times = {"seconds": found.seconds, "rate": _rate(found)}
    return {**about, **found.options, **metrics, **times}


def _image_size(given: Sequence[str] | None) -> tuple[int, int] | None:
    """Height and width from one argument, or from two as if a comma joined them."""
    try:
        return console.image_size(",".join(given)) if given else None
    except ValueError as error:
        raise ValueError(f"--image_size: {error}") from None


def _parser(task_options: Any = None, *, add_help: bool = True) -> argparse.ArgumentParser:
    """The command line, with flags for the evaluation options of a task if they are given."""
    parser = console.Parser("pit-evaluate", __doc__, add_help=add_help)
    add = parser.add_argument
    add("--weights", required=add_help, help="a run directory, a weights file or hf:owner/name")
    add("--model", help="a name of pit_jax.list_models() (default: the one that fits the weights)")
    add("--batch_size", type=int, default=256, help="examples per step over all devices")
    add("--image_size", nargs="+", help="SIZE or HEIGHT,WIDTH (default: the model's own)")
    add("--json", action="store_true", help="print the metrics as JSON as well")
    if add_help and task_options is None:
        from pit_jax.tasks.classification.config import Protocol

        task_options = Protocol()
    for name, field in fields(task_options).items() if task_options else ():
        add(f"--{name}", help=field.declaration.help, choices=field.declaration.choices or None)
    return parser
