"""PiT's four training settings on handwritten digits: does pooling help, does each setting learn?

    python benchmarks/recipes_on_digits.py --runs=runs/recipes_on_digits [--seeds 0 1 2] \\
        [--document=docs/results.md]

Three small networks (a PiT, the same without pooling, a ViT, all within 4 % of the same
multiply-accumulates) are trained by the four settings of configs/ (vanilla, cutmix, deit, distill)
with three seeds each, and before them the teacher of the fourth, a small ResNet. Their top-1 on the
360 test scans becomes a table, printed and left in the directory as table.md and, with every run's
number, as results.json; and between its marks in a document, if one is named.

The settings are the config files', with what 1,437 scans of 8x8 pixels ask for changed: 16x16
pixels, 64 images a step, a tenth of the epochs (10, and 30 where the paper has 300) of which 2 are
warm-up, a peak learning rate of 2e-3, crops of at least 60 % of the area, no mirroring, float32.
All three networks get the same: DeiT's own AdamW and repeated augmentation are not used for the
ViT.

A run that is finished is not repeated and an interrupted one continues, so that the same command
can be given again. Half an hour on two cores that have nothing else to do, most of it for compiling
37 programs.
"""

import argparse
import dataclasses
import json
import runpy
import statistics
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
IMAGE_SIZE = (16, 16)
TEST_IMAGES = 360
RECIPES = ("vanilla", "cutmix", "deit", "distill")
WEIGHTS_FILE = "model.safetensors"
TABLE_FILE = "table.md"
BEGIN, END = "<!-- recipes_on_digits -->", "<!-- end -->"


@dataclasses.dataclass(frozen=True)
class Network:
    """A row of the table: a model of the zoo, its distilled variant, and the fields replaced."""

    label: str
    model: str
    distilled: str
    options: dict[str, Any]


# Patches overlap by half in the first two, as PiT's do: grids of 7x7, 4x4 and 2x2 positions, or
# 7x7 throughout. The third has ViT's patches that do not overlap, 4x4 of them.
NETWORKS = {
    "pit": Network(
        "PiT",
        "pit_ti",
        "pit_ti_distilled",
        {
            "patch_size": 4,
            "stride": 2,
            "widths": (24, 48, 96),
            "depths": (1, 1, 1),
            "heads": (1, 2, 4),
        },
    ),
    "no_pooling": Network(
        "the same without pooling",
        "pit_ti",
        "pit_ti_distilled",
        {"patch_size": 4, "stride": 2, "widths": (25,), "depths": (3,), "heads": (1,)},
    ),
    "vit": Network(
        "ViT",
        "deit_ti",
        "deit_ti_distilled",
        {"patch_size": 4, "width": 50, "depth": 3, "heads": 2},
    ),
}
TEACHER = "resnet50"
TEACHER_OPTIONS = {"base_width": 16, "depths": (1, 1, 1)}
TEACHER_DIRECTORY = "teacher"


def main() -> None:
    """Trains what is missing; prints and writes the table."""
    parser = argparse.ArgumentParser(description="PiT's four settings on handwritten digits.")
    parser.add_argument("--runs", type=Path, required=True, help="directory of the run directories")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--document", type=Path, help="Markdown file with marks for the table")
    options = parser.parse_args()
    from pit_jax.cli import console

    console.set_up_logging()
    console.set_up_compilation_cache()
    teacher_top1 = train(teacher_experiment(), options.runs / TEACHER_DIRECTORY)
    top1: dict[str, dict[str, dict[int, float]]] = {
        network: {recipe: {} for recipe in RECIPES} for network in NETWORKS
    }
    for seed in options.seeds:
        for recipe in RECIPES:
            for network in NETWORKS:
                config = experiment(recipe, network, seed, options.runs / TEACHER_DIRECTORY)
                directory = options.runs / f"{recipe}_{network}_{seed}"
                top1[network][recipe][seed] = train(config, directory)
                print(f"{directory.name}: {top1[network][recipe][seed]:.4f}", flush=True)
                write(options.runs, top1, teacher_top1)
    text = (options.runs / TABLE_FILE).read_text()
    print(text)
    if options.document:
        options.document.write_text(put_between_marks(options.document.read_text(), text))


def experiment(recipe: str, network: str, seed: int, teacher: Path) -> ConfigDict:
    """A setting as configs/RECIPE.py has it for PiT-S, on the digits, with one of the networks.

    Args:
      recipe: of `RECIPES`.
      network: of `NETWORKS`.
      seed: of the run.
      teacher: run directory of the teacher, which only "distill" takes.
    """
    distills = recipe == "distill"
    model = "pit_s_distilled" if distills else "pit_s"
    config = runpy.run_path(str(CONFIGS / f"{recipe}.py"))["get_config"](model)
    chosen = NETWORKS[network]
    config.model.name = chosen.distilled if distills else chosen.model
    config.model.options = chosen.options
    if distills:
        config.distillation.teacher = TEACHER
        config.distillation.teacher_options = TEACHER_OPTIONS
        config.distillation.teacher_weights = str(teacher / WEIGHTS_FILE)
    config.duration = f"{int(config.duration.split()[0]) // 10} epochs"
    return _on_digits(config, seed)


def teacher_experiment() -> ConfigDict:
    """The teacher: a ResNet of three bottlenecks by the vanilla setting, 30 epochs."""
    config = runpy.run_path(str(CONFIGS / "vanilla.py"))["get_config"]("resnet50")
    config.model.options = TEACHER_OPTIONS
    config.duration = "30 epochs"
    return _on_digits(config, seed=0)


def _on_digits(config: ConfigDict, seed: int) -> ConfigDict:
    """Data, sizes and durations that 1,437 scans ask for."""
    config.seed = seed
    config.batch_size = config.augment.mix_group = 64
    config.eval_batch_size = TEST_IMAGES
    config.optimizer.base_learning_rate = 1.6e-2  # 2e-3 at 64 images
    config.optimizer.warmup = "2 epochs"
    config.eval_every = config.checkpoint_every = config.duration
    config.log_every = "5 epochs"
    config.tensorboard = False
    config.model.image_size = IMAGE_SIZE
    config.model.dtype = "float32"
    config.augment.flip_probability = 0.0  # a mirrored digit is no digit
    config.data.name = "digits"
    config.data.eval_split = "test"
    config.data.eval_protocol = "resize"
    config.data.crop_scale = (0.6, 1.0)
    return config


def train(config: ConfigDict, directory: Path) -> float:
    """Trains to the end, or reads the result of a run that got there; its top-1, a fraction.

    Raises:
      KeyboardInterrupt: the run was told to end; the same command continues it.
    """
    from pit_jax.tasks import experiments
    from pit_jax.training import loop

    result = experiments.train(config, directory)
    if isinstance(result, loop.Interrupted):
        raise KeyboardInterrupt(str(result))
    return result.metrics["test/top1"]


def write(
    directory: Path, top1: dict[str, dict[str, dict[int, float]]], teacher_top1: float
) -> None:
    """Leaves the table of the runs so far, and every run's number."""
    text = table(top1) + f"\nTeacher, a ResNet: {100 * teacher_top1:.1f}.\n"
    (directory / TABLE_FILE).write_text(text)
    results = {"top1": top1, "teacher_top1": teacher_top1, "macs": macs()}
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def table(top1: dict[str, dict[str, dict[int, float]]]) -> str:
    """Mean, standard deviation over the seeds, smallest and largest, in percent, as Markdown."""
    lines = [
        f"| network | MMACs | {' | '.join(RECIPES)} |",
        "|---|---" + "|---" * len(RECIPES) + "|",
    ]
    for name, cost in macs().items():
        cells = [cell(list(top1[name][recipe].values())) for recipe in RECIPES]
        lines.append(f"| {NETWORKS[name].label} | {cost / 1e6:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def put_between_marks(document: str, text: str) -> str:
    """The document with the text in place of what was between its marks.

    Raises:
      ValueError: a document without them.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"expected a document with the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def cell(values: list[float]) -> str:
    """ "98.1 ± 0.3 (97.8 to 98.3)" of fractions; without a spread where there is only one."""
    percent = [100 * value for value in values]
    if len(percent) < 2:
        return "".join(f"{value:.1f} (one seed)" for value in percent)
    spread = f"({min(percent):.1f} to {max(percent):.1f})"
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f} {spread}"


def macs() -> dict[str, int]:
    """Multiply-accumulates of every network, for one image."""
    from pit_jax.models import zoo

    return {
        name: zoo.cost(
            zoo.model_config(
                network.model, image_size=IMAGE_SIZE, num_classes=10, **network.options
            )
        ).macs
        for name, network in NETWORKS.items()
    }


if __name__ == "__main__":
    main()
