"""Reports what a training or inference step costs on TPUs, by compiling it without any.

    python -m pit_jax.compile_report --config=deit:pit_s --topology=v5e:16x16

docs/performance.md explains the report.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from pit_jax.cli import console, experiment
from pit_jax.compile_report.report import Report


def run() -> None:
    """Entry point: parses the command line, compiles, prints and saves the report."""
    flags.DEFINE_string("topology", "local", "A slice such as v5e:16x16, or local.")
    flags.DEFINE_enum("program", "train", ["train", "inference"], "The step to compile.")
    flags.DEFINE_integer("batch_size", None, "Images over all devices; default: the config's.")
    flags.DEFINE_bool(
        "schedules",
        True,
        "Read the schedules of kernels; compiling without them is several times as fast.",
    )
    flags.DEFINE_string("output", None, "File to save the report in, as JSON.")
    flags.DEFINE_string("compare", None, "A saved report to print beside this one.")
    experiment.run(_main, "python -m pit_jax.compile_report", __doc__)


def _main() -> None:
    console.set_up_logging()
    options = flags.FLAGS
    other = console.or_fail(_saved, options.compare) if options.compare else None
    if options.output and not Path(options.output).absolute().parent.is_dir():
        console.fail(f"--output={options.output}: no such folder to save in")
    report = console.or_fail(_report, options)
    from pit_jax.compile_report import text

    print(text.to_text(report))
    if other is not None:
        print(f"\n{text.compare(report, other)}")
    if options.output:
        console.or_fail(_save, options.output, report)


def _report(options: Any) -> dict[str, Any]:
    from pit_jax.compile_report import chips, libtpu, measure, program

    devices: Sequence[Any]
    if options.topology == "local":
        import jax

        # A program from the cache says nothing about compiling.
        jax.config.update("jax_enable_compilation_cache", False)
        on, devices = None, jax.devices()
    else:
        on = chips.parse_slice(options.topology)
        libtpu.load(schedules=options.schedules)
        devices = libtpu.devices(on)
    prepared = program.experiment_on(
        options.config, devices, batch_size=options.batch_size, program=options.program
    )
    compiled = program.compile_program(prepared, options.program)
    module = measure.read_program(compiled)
    report = measure.make_report(compiled, module, options.topology, on)
    return {"config": _name(options), "date": time.strftime("%Y-%m-%d"), **report.to_json()}


def _name(options: Any) -> str:
    return str(config_flags.get_config_filename(options["config"]))


def _saved(path: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read --compare={path}: {error}") from error
    fields = {field.name for field in dataclasses.fields(Report)}
    if not isinstance(report, dict) or not fields <= report.keys():
        raise ValueError(f"--compare={path} is not a report that --output of this version saved")
    return report


def _save(path: str, report: dict[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write --output={path}: {error.strerror}") from error


if __name__ == "__main__":
    run()
