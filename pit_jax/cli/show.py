"""Draws a training batch with its labels, as the model sees it, before and after mixing.

    pit-show --config=digits --out=grid.png

`python -m pit_jax.cli.show` is the same program.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from pit_jax.cli import console, experiment
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD

COLUMNS = 8
# Images drawn of a batch: more would be too small to look at.
SHOWN = 32


def run() -> None:
    """Entry point: parses the command line, draws, prints the picture's path."""
    flags.DEFINE_string("out", None, "The picture to write, e.g. grid.png.")
    experiment.run(_main, "pit-show", __doc__, required=["out"])


def _main() -> None:
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
        prepared = prepare(config, workdir)
        if not isinstance(prepared.task, Classification):
            raise ValueError(f"batches of config.task={prepared.config.task!r} are not drawn")
        batch = next(TrainBatches(prepared, 0))
    key, _ = step_keys(prepared.config.seed, 0)
    rows = []
    for task in (prepared.task.without_mixing(), prepared.task):
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
