"""The settings of the papers, as functions that the files of configs/ call.

Sources, and what the papers leave open, are in the docstrings of those files.
"""

import difflib
from collections.abc import Iterable
from typing import Literal

from ml_collections import ConfigDict

from pit_jax.models import zoo
from pit_jax.tasks.experiments import default_config

# A model is trained as PiT's authors train theirs, with their exceptions for PiT-B, or as DeiT's
# authors train theirs.
Setting = Literal["pit", "pit_b", "deit"]


def choose(file: str, variant: str, known: Iterable[str]) -> tuple[str, bool]:
    """The known name in a variant, and whether ",smoke" is added to it.

    Args:
      file: the config, for the message.
      variant: what follows the colon in `--config=FILE:VARIANT`.
      known: the names that there are.

    Raises:
      ValueError: none of the names; the message has the closest.
    """
    name = variant.removesuffix(",smoke")
    names = list(known)
    if name in names:
        return name, name != variant
    close = difflib.get_close_matches(variant, [*names, *(f"{one},smoke" for one in names)], n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"configs/{file} needs one of {' '.join(f':{one}' for one in names)}, optionally followed "
        f"by ,smoke; found {variant!r}{meant}"
    )


def vanilla(model: str) -> ConfigDict:
    """PiT, Table 2, "Vanilla"; the other three settings start from it."""
    config = default_config()
    config.batch_size = 1024
    config.duration = "100 epochs"
    config.model.name = model

    config.optimizer.name = "adamp"
    config.optimizer.options = {"wd_ratio": 0.01, "nesterov": True}
    config.optimizer.base_learning_rate = 5e-4  # 1e-3 at 1,024 images
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "deit"
    config.optimizer.warmup = "5 epochs"
    config.optimizer.warmup_learning_rate = 1e-6
    config.optimizer.min_learning_rate = 1e-5

    config.augment.label_smoothing = 0.0
    return config


def cutmix(model: str) -> ConfigDict:
    """PiT, Table 2, "+CutMix"."""
    config = vanilla(model)
    config.augment.cutmix_alpha = 1.0
    config.augment.mix_probability = 1.0
    return config


def deit(model: str, setting: Setting) -> ConfigDict:
    """PiT, Table 2, "+DeiT"."""
    config = vanilla(model)
    config.duration = "300 epochs"
    config.ema_decay = 0.99996
    config.model.drop_path_rate = 0.1
    add_deit_augmentation(config)
    config.augment.erasing_probability = 0.25
    config.augment.label_smoothing = 0.1
    if setting == "deit":
        config.data.repeats = 3
        config.optimizer.name = "adamw"
        config.optimizer.options = {}
    elif setting == "pit_b":
        config.data.repeats = 3
        config.optimizer.warmup = "10 epochs"
    return config


def distill(model: str, setting: Setting) -> ConfigDict:
    """PiT, Table 2, "+Distill": `deit` and a teacher."""
    config = deit(model, setting)
    config.distillation.kind = "hard"
    config.distillation.alpha = 0.5
    config.distillation.teacher = "regnety_160"
    config.distillation.teacher_weights = "hf:timm/regnety_160.deit_in1k"
    return config


def add_deit_augmentation(config: ConfigDict) -> None:
    """DeiT's RandAugment, and Mixup and CutMix in turn."""
    config.data.randaugment = "rand-m9-mstd0.5-inc1"
    config.augment.mixup_alpha = 0.8
    config.augment.cutmix_alpha = 1.0


def smoke(config: ConfigDict) -> ConfigDict:
    """The same ingredients on the smallest networks, 32x32 pixels, for 30 steps of pictures made of
    random numbers: nothing can be learned from them.
    """
    config.model.options = zoo.smallest(config.model.name)
    config.model.image_size = (32, 32)
    config.model.dtype = "float32"
    config.data.name = "synthetic"
    config.batch_size = 128
    config.eval_batch_size = 320
    config.duration = config.eval_every = "3 epochs"
    config.optimizer.warmup = "1 epoch"
    config.augment.mix_group = 32
    config.log_every = "5 steps"
    if config.distillation.kind != "none":
        config.distillation.teacher_weights = "untrained"
        config.distillation.teacher_options = zoo.smallest(config.distillation.teacher)
    return config
