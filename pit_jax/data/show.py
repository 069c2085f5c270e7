"""Draws a training batch as the model sees it, with its labels, before and after mixing.

python -m pit_jax.data.show --config=configs/digits.py --out=grid.png
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD

COLUMNS = 8
# Of the batch, so that the pictures stay large enough to be looked at.
SHOWN = 32


def show(config: Any, out: str | Path) -> None:
    """Writes the first batch of an experiment as a picture; every other row is after mixing.

    Args:
      config: from a config file.
      out: where the picture goes, as .png, .pdf, ...

    Raises:
      ValueError: an experiment that cannot run, or a file that cannot be written.
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
    """`rows` holds (images, targets) before and after mixing."""
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
    """The classes with more than an even share of what smoothing spreads: "3 (0.94), 7 (0.02)"."""
    floor = target.min()
    order = np.argsort(-target, kind="stable")[:2]
    return ", ".join(f"{k} ({target[k]:.2f})" for k in order if target[k] > floor + 1e-4)


def main(arguments: Sequence[str]) -> None:
    """The program, below absl's flags."""
    from absl import flags

    from pit_jax.cli import console

    if len(arguments) > 1:
        console.fail(f"unexpected argument {arguments[1]!r}: options are written --name=value")
    console.set_up_logging()
    console.or_fail(show, flags.FLAGS.config, flags.FLAGS.out)
    print(flags.FLAGS.out, flush=True)


def run() -> None:
    """Entry point: parses the command line, draws."""
    from absl import app, flags
    from ml_collections import config_flags

    from pit_jax.cli.train import parse_flags

    config_flags.DEFINE_config_file("config", help_string="The experiment, e.g. configs/digits.py.")
    flags.DEFINE_string("out", None, "The picture, e.g. grid.png.")
    flags.mark_flags_as_required(["config", "out"])
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
