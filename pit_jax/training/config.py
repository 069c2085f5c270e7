"""The options that every task has.

A task's options are a subclass of `TrainConfig`, with further sections. Config files start from
`tasks.experiments.default_config()`, a locked `ConfigDict` of the defaults, and set what their
experiment changes; `--config.x=y` overrides on top. `options.parse` turns the result into these
frozen dataclasses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pit_jax.models import zoo
from pit_jax.optim.optimizers import OPTIMIZERS
from pit_jax.optim.schedules import SCHEDULES
from pit_jax.options import option
from pit_jax.training.durations import split


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = option("pit_s", "A name of `pit_jax.list_models()`.", check=zoo.model_config)
    image_size: tuple[int, int] = option(
        (224, 224),
        "Height and width in pixels, of training and evaluation; one number for a square.",
        at_least=1,
        square=True,
    )
    dtype: str = option(
        "bfloat16",
        "Type of the arithmetic. Parameters are float32.",
        choices=("bfloat16", "float32"),
    )
    options: dict[str, Any] = option(
        {}, 'Any other field of the model\'s configuration, e.g. {"depths": (2, 2, 2)}.'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The examples, and how they are read."""

    name: str = option(
        "imagenet2012",
        'A TFDS classification set, "folder:/path" (classes inside), "digits" or "synthetic".',
    )
    data_dir: str | None = option(
        None, "Where the set is prepared; None for TFDS's own default (digits: the user's cache)."
    )
    train_split: str = option(
        "train",
        'Split to train on: a TFDS slice such as "train[:1%]", or a sub-folder of a folder.',
    )
    eval_split: str = option("validation", "Split to evaluate on.")
    bad_images: str = option(
        "error",
        'At a training image that does not decode: "error" stops, "skip" takes the next example.',
        choices=("error", "skip"),
    )
    max_bad_images: int = option(
        100,
        "Skip at most this many distinct images (all processes together), then stop.",
        at_least=1,
    )
    threads: int = option(0, "Decoding threads; 0 for one per core, at most 64.", at_least=0)
    prefetch: int = option(
        2, "Batches prepared ahead of the training step, each in the host's memory.", at_least=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update of the parameters."""

    name: str = option("adamw", "Rule of the update.", choices=OPTIMIZERS)
    base_learning_rate: float = option(
        5e-4,
        "Per 512 images: the peak learning rate is base_learning_rate * batch_size / 512.",
        at_least=0,
    )
    schedule: str = option(
        "smooth",
        'Warm-up and cosine: "smooth" moves at every step, "deit" once an epoch, one epoch late.',
        choices=SCHEDULES,
    )
    warmup: str = option("5 epochs", "Duration of the linear warm-up.", check=split)
    warmup_learning_rate: float = option(
        1e-6, "Learning rate at the start of the warm-up, absolute.", at_least=0
    )
    min_learning_rate: float = option(
        1e-5, "Learning rate at the end of the cosine decay, absolute.", at_least=0
    )
    weight_decay: float = option(
        0.05,
        "Weight decay of kernels; biases, norms, class tokens and positions never decay.",
        at_least=0,
    )
    clip_norm: float | None = option(
        None, "Largest global gradient norm; None does not clip.", within="(0, inf)"
    )
    layer_decay: float | None = option(
        None,
        "Factor on the learning rate from each layer to the one before it, for fine-tuning.",
        within="(0, 1]",
    )
    frozen: tuple[str, ...] = option(
        (), 'Parts that do not train, by the start of their path: ("embedding", "stage0").'
    )
    options: dict[str, Any] = option(
        {}, 'Further options of the rule, e.g. {"b2": 0.95}, or AdamP\'s {"wd_ratio": 0.01}.'
    )


def _check_profile(steps: tuple[int, int]) -> None:
    first, last = steps
    if (first, last) != (0, 0) and not 1 <= first <= last:
        raise ValueError(
            f"must be the first and the last step, counted from 1, or (0, 0), found {first, last}"
        )


def _check_gates(gates: dict[int, float]) -> None:
    for epoch, value in gates.items():
        if epoch < 1:
            raise ValueError(f"must give values for epochs from 1, found {{{epoch}: {value}}}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One experiment."""

    task: str = option("classification", "What is learnt: a name of `tasks.registry`.")
    seed: int = option(
        0,
        "Seed of the initial parameters, the order of the data, and all augmentation.",
        within="[0, 2147483648)",
    )
    batch_size: int = option(1024, "Images per step over all devices of all processes.", at_least=1)
    eval_batch_size: int = option(
        1024, "Images per evaluation step over all devices of all processes.", at_least=1
    )
    duration: str = option(
        "300 epochs",
        "Length of the run, in epochs, steps or examples; an epoch is floor(examples / batch_size) "
        "steps.",
        check=split,
    )
    accumulate: int = option(
        1,
        "Parts of a batch, processed one after another: less memory, the same gradient.",
        at_least=1,
    )
    remat: str = option(
        "none",
        '"dots" recomputes all but matrix products in the backward pass, which saves memory.',
        choices=("none", "dots"),
    )
    ema_decay: float | None = option(
        None,
        "Decay per step of the moving average of the parameters; None keeps none.",
        within="(0, 1)",
    )
    evaluate_ema: bool = option(
        False, "Evaluate and export the moving average instead of the parameters."
    )
    on_nonfinite: str = option(
        "stop",
        'At a loss or gradient that is not finite: "stop" the run, or "skip" the update.',
        choices=("stop", "skip"),
    )
    max_skips: int = option(
        10, "Stop the run after this many skipped updates in a row.", at_least=1
    )
    init_from: str | None = option(
        None, "Weights to start from: what `create_model(weights=...)` takes."
    )
    init_head: str = option(
        "load",
        '"new" takes a fresh head where the classes of `init_from` are other ones.',
        choices=("load", "new"),
    )
    log_every: str = option("100 steps", "Interval of lines of training metrics.", check=split)
    eval_every: str = option(
        "1 epoch", "Interval of evaluations; one more comes at the end.", check=split
    )
    checkpoint_every: str = option(
        "1 epoch", "Interval of checkpoints; one more comes at the end.", check=split
    )
    min_metric_at: dict[int, float] = option(
        {},
        "{epoch: value}: a worse main metric after that many epochs stops the run.",
        check=_check_gates,
    )
    keep_checkpoints: int = option(
        2, "Newest checkpoints to keep, beside the best by the main metric.", at_least=1
    )
    fsdp: int = option(
        1,
        "Devices over which large parameters and the optimizer state are sharded; 1 replicates.",
        at_least=1,
    )
    peak_flops: float | None = option(
        None,
        "Peak FLOP/s of one device, for the MFU; None takes the table of `training.utilisation`.",
        within="(0, inf)",
    )
    tensorboard: bool = option(
        True, "Write event files beside metrics.jsonl; imports TensorFlow, in the background."
    )
    profile_steps: tuple[int, int] = option(
        (0, 0),
        "First and last step of a profile, written to the run directory; (0, 0) for none.",
        check=_check_profile,
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def problems(self) -> list[str]:
        """Options that do not fit together, a line each."""
        found = []
        if self.evaluate_ema and self.ema_decay is None:
            found.append("config.evaluate_ema needs config.ema_decay")
        if self.batch_size % self.accumulate:
            found.append(
                f"config.batch_size={self.batch_size} is no multiple of "
                f"config.accumulate={self.accumulate}"
            )
        return found
