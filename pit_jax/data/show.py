"""Draws a training batch as the model sees it, with its labels, before and after mixing.

python -m pit_jax.data.show --config=configs/digits.py --out=grid.png
"""

import dataclasses
import tempfile
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
    from pit_jax.training.build import TrainBatches
    from pit_jax.training.setup import prepare
    from pit_jax.training.step import augment, step_keys

    with tempfile.TemporaryDirectory() as workdir:
        setup = prepare(config, workdir)
        batch = next(TrainBatches(setup, 0))
    key, _ = step_keys(setup.config.seed, 0)
    unmixed = dataclasses.replace(
        setup.config, augment=dataclasses.replace(setup.config.augment, mix_probability=0.0)
    )
    classes = setup.learner.num_classes
    rows = [
        tuple(np.asarray(array, np.float32)[:SHOWN] for array in augment(of, key, batch, classes))
        for of in (unmixed, setup.config)
    ]
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


def main() -> None:
    """The program, below absl's flags."""
    from absl import flags

    from pit_jax.cli import console

    console.set_up_logging()
    console.or_fail(show, flags.FLAGS.config, flags.FLAGS.out)
    print(flags.FLAGS.out, flush=True)


def run() -> None:
    """Entry point: parses the command line, draws."""
    from absl import flags

    from pit_jax.cli import experiment

    flags.DEFINE_string("out", None, "The picture, e.g. grid.png.")
    experiment.run(main, "python -m pit_jax.data.show", __doc__, required=["out"])


if __name__ == "__main__":
    run()
