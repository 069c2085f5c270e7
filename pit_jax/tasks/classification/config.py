"""The options of image classification."""

from __future__ import annotations

import dataclasses
from typing import Any

from pit_jax.augment.policy import parse as parse_policy
from pit_jax.training import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(config.ModelConfig):
    """Which network."""

    num_classes: int | None = None
    """Classes of the head; None takes the data set's."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate; block i of N drops with rate * i / N."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(config.DataConfig):
    """Which images, and how they are cut."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area a training crop covers, drawn uniformly."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a training crop, drawn log-uniformly."""
    repeats: int = 1
    """Views of an image in a row; an epoch then shows so many times fewer images. DeiT's is 3."""
    randaugment: str = ""
    """RandAugment policy, such as DeiT's "rand-m9-mstd0.5-inc1"; "" for none."""
    augment_on: str = "auto"
    """Where RandAugment runs: "host" (PIL), "device", or "auto": device on GPUs, else host."""
    resize_on: str = "auto"
    """Where crops are resized: "host" (PIL), "device" (within a grey level of it), or "auto":
    the device on GPUs where RandAugment is not on the host, else the host."""
    canvas_size: tuple[int, int] = (512, 512)
    """Height and width in which crops go to a device that resizes; larger ones PIL resizes."""
    eval_protocol: str = "deit"
    """Evaluation crop: "deit" (256, centre 224), "timm" (248, centre 224) or "resize"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to a training batch on the device, flips before a RandAugment on the host there.
    The defaults are PiT's and DeiT's."""

    flip_probability: float = 0.5
    """Of a horizontal flip, per image."""
    erasing_probability: float = 0.0
    """Of random erasing, per image."""
    mixup_alpha: float = 0.0
    """Beta parameter of Mixup; 0 for none."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix; 0 for none."""
    mix_probability: float = 1.0
    """Of mixing at all, per group."""
    switch_probability: float = 0.5
    """Of CutMix where both are on, per group."""
    mix_group: int = 64
    """Images that share one draw; DeiT's batch per GPU."""
    label_smoothing: float = 0.1
    """Mass spread evenly over all classes."""

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix is on."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Learning from a teacher; the student must be a distilled model."""

    kind: str = "none"
    """"none", "hard" (the teacher's class) or "soft" (its distribution)."""
    alpha: float = 0.5
    """Weight of the teacher's term."""
    temperature: float = 1.0
    """Of both distributions; only "soft" uses it."""
    teacher: str = "regnety_160"
    """A name of `pit_jax.list_models()`."""
    teacher_weights: str | None = None
    """What `create_model(weights=...)` takes; "untrained", for data.name="synthetic" alone."""
    teacher_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the teacher's configuration that differ from its row of the zoo."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(config.TrainConfig):
    """One experiment of image classification."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)

    def problems(self) -> list[str]:
        """What is out of range, or does not go together, a line each."""
        found = super().problems() + config.wrong_choices(self, _CHOICES)
        if self.data.repeats < 1:
            found.append(f"config.data.repeats must be at least 1, found {self.data.repeats}")
        for name in ("flip_probability", "erasing_probability", "mix_probability"):
            value = getattr(self.augment, name)
            if not 0.0 <= value <= 1.0:
                found.append(f"config.augment.{name} must be in [0, 1], found {value}")
        smoothing = self.augment.label_smoothing
        if not 0.0 <= smoothing < 1.0:
            found.append(f"config.augment.label_smoothing must be in [0, 1), found {smoothing}")
        found += [
            f"config.min_metric_at must give fractions in [0, 1], found {{{epoch}: {top1}}}"
            for epoch, top1 in self.min_metric_at.items()
            if not 0.0 <= top1 <= 1.0
        ]
        if self.data.randaugment:
            try:
                parse_policy(self.data.randaugment)
            except ValueError as error:
                found.append(f"config.data.randaugment: {error}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Data on which weights are evaluated, and how.

    Attributes:
      data: a data set of `data.sources.open_source`, its `split` and `data_dir`.
      crop: of `data.images.PROTOCOLS`.
      dtype: of the arithmetic, "float32" or "bfloat16".
    """

    data: str = dataclasses.field(
        default="imagenet2012",
        metadata={"help": "TFDS set, folder:/path or digits; default: what training evaluated on"},
    )
    split: str = dataclasses.field(
        default="validation",
        metadata={"help": "default: the split that training evaluated, or validation"},
    )
    data_dir: str | None = dataclasses.field(
        default=None, metadata={"help": "where TFDS keeps the set"}
    )
    crop: str = dataclasses.field(
        default="deit",
        metadata={"help": "deit (shorter side 256, centre 224), timm (248) or resize"},
    )
    dtype: str = dataclasses.field(
        default="float32",
        metadata={
            "help": "default: as in training, or float32",
            "choices": ("float32", "bfloat16"),
        },
    )


_CHOICES = {
    "data.augment_on": ("auto", "host", "device"),
    "data.resize_on": ("auto", "host", "device"),
    "distillation.kind": ("none", "hard", "soft"),
}
