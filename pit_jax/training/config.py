"""The options that every task has: type, default and meaning in one place.

A task's options are a subclass of `TrainConfig`, with further sections. Config files start from
`tasks.experiments.default_config()`, a locked `ConfigDict` of the defaults, and set what their
experiment changes; `--config.x=y` overrides on top. `parse` turns the result into the frozen
dataclasses the trainer works with.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pit_jax.errors import suggestion

if TYPE_CHECKING:  # the training step needs the dataclasses alone
    from ml_collections import config_dict

Config = typing.TypeVar("Config", bound="TrainConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network."""

    name: str = "pit_s"
    """A name of `pit_jax.list_models()`."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels, of training and evaluation."""
    dtype: str = "bfloat16"
    """What the arithmetic runs in: "bfloat16" or "float32". Parameters are float32."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Any other field of the model's configuration, e.g. {"depths": (2, 2, 2)}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which examples, and how they are read."""

    name: str = "imagenet2012"
    """A TFDS classification set, "folder:/path" (classes inside), "digits" or "synthetic"."""
    data_dir: str | None = None
    """Where the set is prepared; None for TFDS's own default (digits: the user's cache)."""
    train_split: str = "train"
    """Split that is trained on: TFDS slices such as "train[:1%]", or a folder's sub-folder."""
    eval_split: str = "validation"
    """Split that is evaluated on."""
    bad_images: str = "error"
    """Training images that do not decode: "error" stops, "skip" takes the next example instead."""
    max_bad_images: int = 100
    """So many different ones are skipped by all processes together before the run stops."""
    threads: int = 0
    """Threads that decode; 0 for one per core, at most 64."""
    prefetch: int = 2
    """Batches that are made while others are used, each in the host's memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters move."""

    name: str = "adamw"
    """"adamw", "adamp" or "sgd"."""
    base_learning_rate: float = 5e-4
    """Per 512 images: the peak learning rate is base_learning_rate * batch_size / 512."""
    schedule: str = "smooth"
    """Warm-up and cosine: "smooth" moves at every step, "deit" once an epoch, one epoch late."""
    warmup: str = "5 epochs"
    """Duration of the linear warm-up."""
    warmup_learning_rate: float = 1e-6
    """Where the warm-up starts, absolute."""
    min_learning_rate: float = 1e-5
    """Where the cosine decay ends, absolute."""
    weight_decay: float = 0.05
    """Of kernels; never of biases, norms, class tokens and positions."""
    clip_norm: float | None = None
    """Largest global gradient norm."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one before it, for fine-tuning."""
    frozen: tuple[str, ...] = ()
    """Parts that stay as they are, by the start of their path: ("embedding", "stage0")."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further options of the optimizer, e.g. {"b2": 0.95}, or AdamP's {"wd_ratio": 0.01}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One experiment."""

    task: str = "classification"
    """What is learnt: a name of `tasks.registry`."""
    seed: int = 0
    """Of the initial parameters, the order of the data, and all augmentation."""
    batch_size: int = 1024
    """Images per step over all devices of all processes."""
    eval_batch_size: int = 1024
    """Images per evaluation step over all devices of all processes."""
    duration: str = "300 epochs"
    """Of the run, in epochs, steps or examples; an epoch is floor(examples / batch_size) steps."""
    accumulate: int = 1
    """Parts a batch is worked through in, one after the other, for memory's sake."""
    remat: str = "none"
    """"dots" recomputes all but matrix products in the backward pass, for memory's sake."""
    ema_decay: float | None = None
    """Decay per step of the moving average of the parameters; None keeps none."""
    evaluate_ema: bool = False
    """Evaluate and export the moving average instead of the parameters."""
    on_nonfinite: str = "stop"
    """At a loss or gradient that is not finite: "stop", or "skip" the update."""
    max_skips: int = 10
    """Skipped updates in a row that stop the run all the same."""
    init_from: str | None = None
    """Weights to start from: what `create_model(weights=...)` takes."""
    init_head: str = "load"
    """"new" takes a fresh head where the classes of `init_from` are other ones."""
    log_every: str = "100 steps"
    """Between lines of training metrics."""
    eval_every: str = "1 epoch"
    """Between evaluations; one more comes at the end."""
    checkpoint_every: str = "1 epoch"
    """Between checkpoints; one more comes at the end."""
    min_metric_at: dict[int, float] = dataclasses.field(default_factory=dict)
    """{epoch: value}: a worse main metric after that many epochs stops the run."""
    keep_checkpoints: int = 2
    """How many of the newest stay on disk, beside the best by the main metric."""
    fsdp: int = 1
    """Devices over which large parameters and the optimizer state are sharded; 1 replicates."""
    peak_flops: float | None = None
    """Of one device, per second, for the MFU; None for the table of `training.utilisation`."""
    tensorboard: bool = True
    """Write event files beside metrics.jsonl; that imports TensorFlow, in the background."""
    profile_steps: tuple[int, int] = (0, 0)
    """First and last step of a profile, written to the run directory; (0, 0) for none."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def problems(self) -> list[str]:
        """What is out of range, or does not go together, a line each."""
        found = [
            f"config.{path} must be at least 1, found {_value(self, path)}"
            for path in _AT_LEAST_ONE
            if _value(self, path) < 1
        ]
        found += wrong_choices(self, _CHOICES)
        if self.data.threads < 0:
            found.append(f"config.data.threads must be at least 0, found {self.data.threads}")
        if not 0 <= self.seed < 2**31:
            found.append(f"config.seed must be in [0, 2**31), found {self.seed}")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            found.append(f"config.ema_decay must be in (0, 1), found {self.ema_decay}")
        first, last = self.profile_steps
        if (first, last) != (0, 0) and not 1 <= first <= last:
            found.append(
                "config.profile_steps must be the first and the last step, counted from 1, or "
                f"(0, 0), found {first, last}"
            )
        found += [
            f"config.min_metric_at must give values for epochs from 1, found {{{epoch}: {value}}}"
            for epoch, value in self.min_metric_at.items()
            if epoch < 1
        ]
        if self.evaluate_ema and self.ema_decay is None:
            found.append("config.evaluate_ema needs config.ema_decay")
        if self.batch_size % max(self.accumulate, 1):
            found.append(
                f"config.batch_size={self.batch_size} is no multiple of "
                f"config.accumulate={self.accumulate}"
            )
        return found


def to_config_dict(config: TrainConfig) -> config_dict.ConfigDict:
    """A configuration as a locked ConfigDict: known keys only, each with its type."""
    return _to_config_dict(config)


def _to_config_dict(node: Any) -> config_dict.ConfigDict:
    from ml_collections import config_dict

    config = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            value = _to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_optional_type(hints[field.name]))
        elif isinstance(value, dict):
            value = config_dict.ConfigDict(value)
        config[field.name] = value
    return config.lock()


def _optional_type(hint: Any) -> type:
    """T of `T | None`."""
    return next(member for member in typing.get_args(hint) if member is not types.NoneType)


def parse(config: config_dict.ConfigDict, cls: type[Config]) -> Config:
    """Checks a ConfigDict, key by key and type by type.

    Args:
      config: from a config file, with overrides.
      cls: dataclass of its options.

    Raises:
      ValueError: every unknown key (with the closest right one), missing key and wrong type at
        once, or a value out of range.
    """
    problems: list[str] = []
    values = _parse_node(cls, config.to_dict(), "config", problems)
    if not problems:
        problems = values.problems()
    if problems:
        raise ValueError("; ".join(problems))
    return values


def _parse_node(cls: type, values: dict[str, Any], path: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key in values:
        if key not in hints:
            problems.append(f"{path}.{key} is not an option{suggestion(key, hints)}")
    for key, hint in hints.items():
        if key not in values:
            continue
        name, value = f"{path}.{key}", values[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            arguments[key] = _parse_node(typing.cast(type, hint), value, name, problems)
        elif _matches(value, hint):
            arguments[key] = float(value) if hint is float else value
        else:
            expected = hint.__name__ if isinstance(hint, type) else str(hint)
            problems.append(f"{name} must be {expected}, found {value!r}")
    return None if problems else cls(**arguments)


def _matches(value: Any, hint: Any) -> bool:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(_matches(value, member) for member in members)
    if origin is tuple and members[1:] == (Ellipsis,):
        return isinstance(value, tuple) and all(_matches(item, members[0]) for item in value)
    if origin is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(members)
            and all(_matches(item, member) for item, member in zip(value, members, strict=True))
        )
    if origin is dict:
        return isinstance(value, dict) and all(
            _matches(key, members[0]) and _matches(item, members[1]) for key, item in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint is Any or (
        isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    )


# Options with a smallest value, and options with a list of values.
_AT_LEAST_ONE = (
    "batch_size",
    "eval_batch_size",
    "accumulate",
    "max_skips",
    "keep_checkpoints",
    "fsdp",
    "data.max_bad_images",
    "data.prefetch",
)
_CHOICES = {
    "remat": ("none", "dots"),
    "on_nonfinite": ("stop", "skip"),
    "init_head": ("load", "new"),
    "model.dtype": ("bfloat16", "float32"),
    "data.bad_images": ("error", "skip"),
}


def _value(config: TrainConfig, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


def wrong_choices(config: TrainConfig, choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A line for every option that is none of its choices."""
    return [
        f"config.{path} must be {' or '.join(map(repr, known))}, found {_value(config, path)!r}"
        for path, known in choices.items()
        if _value(config, path) not in known
    ]
