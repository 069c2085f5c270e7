"""`python -m pit_jax.cli.show` and `pit-show`: draws a training batch with its labels.

    python -m pit_jax.cli.show --config=configs/digits.py --out=grid.png

The batch is drawn as the model sees it, before and after mixing.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from pit_jax.cli import console
from pit_jax.cli.train import parse_flags
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD

COLUMNS = 8
# Images drawn of a batch: more would be too small to look at.
SHOWN = 32


def run() -> None:
    """Entry point: parses the command line, draws, prints the picture's path."""
    config_flags.DEFINE_config_file("config", help_string="The experiment, e.g. configs/digits.py.")
    flags.DEFINE_string("out", None, "The picture to write, e.g. grid.png.")
    flags.mark_flags_as_required(["config", "out"])
    # --help lists only the flags of the started program, whose module this may not be.
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(_main, flags_parser=parse_flags)


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        console.fail(f"unexpected argument {arguments[1]!r}: options are written --name=value")
    console.set_up_logging()
    console.or_fail(show, flags.FLAGS.config, flags.FLAGS.out)
    print(flags.FLAGS.out, flush=True)


def show(config: Any, out: str | Path) -> None:
    """Writes the first batch of an experiment as a picture; every other row is after mixing.

    Args:
      config: from a config file.
      out: the picture's file; its ending chooses the format (.png, .pdf, ...).

    Raises:
      ValueError: the experiment cannot run, or the file cannot be written.
    """
    from pit_jax.tasks.classification.task import Classification
    from pit_jax.tasks.experiments import prepare
    from pit_jax.training.batches import TrainBatches
    from pit_jax.training.step import step_keys

    with tempfile.TemporaryDirectory() as workdir:
        experiment = prepare(config, workdir)
        if not isinstance(experiment.task, Classification):
            raise ValueError(f"batches of config.task={experiment.config.task!r} are not drawn")
        batch = next(TrainBatches(experiment, 0))
    key, _ = step_keys(experiment.config.seed, 0)
    rows = []
    for task in (experiment.task.without_mixing(), experiment.task):
        inputs = task.prepare(key, batch)
        rows.append(
            tuple(np.asarray(inputs[name], np.float32)[:SHOWN] for name in ("images", "targets"))
        )
    _draw(rows, out)


def _draw(rows: list[Any], out: str | Path) -> None:
    """Draws (images, targets) before and after mixing, which `rows` holds in this order."""
    from matplotlib.figure import Figure

    count = len(rows[0][0])
    lines = -(-count // COLUMNS)
    figure = Figure(figsize=(1.6 * COLUMNS, 1.9 * 2 * lines), layout="constrained")
    figure.suptitle("before mixing, and in the row below each after mixing: class and its share")
    axes = figure.subplots(2 * lines, COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for stage, (images, targets) in enumerate(rows):
        pixels = np.clip(images * IMAGENET_STD + IMAGENET_MEAN, 0, 1)
        for index in range(count):
            line, column = divmod(index, COLUMNS)
            axis = axes[2 * line + stage, column]
            axis.imshow(pixels[index], interpolation="nearest")
            axis.set_title(label(targets[index]), fontsize=7)
    try:
        figure.savefig(out, dpi=100)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write --out={out}: {error}; choose a file name.png") from error


def label(target: np.ndarray) -> str:
    """Names the two largest classes whose share exceeds the smoothing: "3 (0.94), 7 (0.02)"."""
    floor = target.min()
    order = np.argsort(-target, kind="stable")[:2]
    return ", ".join(f"{k} ({target[k]:.2f})" for k in order if target[k] > floor + 1e-4)


if __name__ == "__main__":
    run()
