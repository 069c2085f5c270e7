"""The options of image classification."""

from __future__ import annotations

import dataclasses
from typing import Any

from pit_jax.augment.policy import parse as parse_policy
from pit_jax.data.images import check_protocol
from pit_jax.models import zoo
from pit_jax.options import option
from pit_jax.training import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(config.ModelConfig):
    """The network."""

    num_classes: int | None = option(
        None, "Classes of the head; None takes the data set's.", at_least=1
    )
    drop_path_rate: float = option(
        0.0,
        "Stochastic depth: the probability of dropping a residual branch rises linearly over the "
        "blocks, from 0 at the first to this rate at the last (in PiT, as published, to one step "
        "below it).",
        within="[0, 1)",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(config.DataConfig):
    """The images, and how they are cut."""

    crop_scale: tuple[float, float] = option(
        (0.08, 1.0),
        "Share of the image's area that a training crop covers, drawn uniformly.",
        within="(0, 1]",
    )
    crop_ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3),
        "Width over height of a training crop, drawn log-uniformly.",
        within="(0, inf)",
    )
    repeats: int = option(
        1,
        "Repeated augmentation: views of an image in a row; an epoch then shows that many times "
        "fewer images. DeiT's is 3.",
        at_least=1,
    )
    randaugment: str = option(
        "",
        'RandAugment policy, such as DeiT\'s "rand-m9-mstd0.5-inc1"; "" for none.',
        check=parse_policy,
    )
    augment_on: str = option(
        "auto",
        'Where RandAugment runs: "host" (PIL), "device", or "auto": the device on GPUs, else the '
        "host.",
        choices=("auto", "host", "device"),
    )
    resize_on: str = option(
        "auto",
        'Where crops are resized: "host" (PIL), "device" (within a grey level of it), or "auto": '
        "the device on GPUs if RandAugment is not on the host, else the host.",
        choices=("auto", "host", "device"),
    )
    canvas_size: tuple[int, int] = option(
        (512, 512),
        "Height and width of the canvas in which crops go to a device that resizes; PIL shrinks "
        "larger crops first. One number for a square.",
        at_least=1,
        square=True,
    )
    eval_protocol: str = option(
        "deit",
        'Evaluation crop: "deit" (256, centre 224), "timm" (248, centre 224) or "resize".',
        check=check_protocol,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training batches on the device.

    Where RandAugment runs on the host, flips do too.
    """

    flip_probability: float = option(
        0.5, "Probability of a horizontal flip, per image.", within="[0, 1]"
    )
    erasing_probability: float = option(
        0.0, "Probability of random erasing, per image.", within="[0, 1]"
    )
    mixup_alpha: float = option(
        0.0, "Parameter of Mixup's Beta distribution; 0 for no Mixup.", at_least=0
    )
    cutmix_alpha: float = option(
        0.0, "Parameter of CutMix's Beta distribution; 0 for no CutMix.", at_least=0
    )
    mix_probability: float = option(
        1.0, "Probability that a group of images is mixed.", within="[0, 1]"
    )
    switch_probability: float = option(
        0.5, "Probability of CutMix, per group, if Mixup is on as well.", within="[0, 1]"
    )
    mix_group: int = option(64, "Images that share one draw; DeiT's batch per GPU.", at_least=1)
    label_smoothing: float = option(
        0.1, "Probability mass spread evenly over all classes.", within="[0, 1)"
    )

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix is on."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Learning from a teacher; the student must be a distilled model."""

    kind: str = option(
        "none",
        '"hard" learns the teacher\'s class, "soft" its distribution.',
        choices=("none", "hard", "soft"),
    )
    alpha: float = option(0.5, "Weight of the teacher's term.", within="[0, 1]")
    temperature: float = option(
        1.0, 'Temperature of both distributions; only "soft" uses it.', within="(0, inf)"
    )
    teacher: str = option(
        "regnety_160", "A name of `pit_jax.list_models()`.", check=zoo.model_config
    )
    teacher_weights: str | None = option(
        None,
        'What `create_model(weights=...)` takes; "untrained", for data.name="synthetic" alone.',
    )
    teacher_options: dict[str, Any] = option(
        {}, "Fields of the teacher's configuration that differ from its row of the zoo."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(config.TrainConfig):
    """One experiment of image classification."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)

    def problems(self) -> list[str]:
        """Options that do not fit together, a line each."""
        return super().problems() + [
            f"config.min_metric_at must give fractions in [0, 1], found {{{epoch}: {top1:g}}}"
            for epoch, top1 in self.min_metric_at.items()
            if not 0.0 <= top1 <= 1.0
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Data on which weights are evaluated, and how.

    Attributes:
      data: a data set of `data.sources.open_source`, its `split` and `data_dir`.
      crop: of `data.images.PROTOCOLS`.
      dtype: of the arithmetic, "float32" or "bfloat16".
    """

    data: str = option(
        "imagenet2012", "TFDS set, folder:/path or digits; default: the one training evaluated on"
    )
    split: str = option("validation", "default: the split that training evaluated, or validation")
    data_dir: str | None = option(None, "where TFDS keeps the set")
    crop: str = option("deit", "deit (shorter side 256, centre 224), timm (248) or resize")
    dtype: str = option(
        "float32", "default: as in training, or float32", choices=("float32", "bfloat16")
    )
