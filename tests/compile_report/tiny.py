"""The tiny experiment in widths that suit TPUs, with all of DeiT's augmentation."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

TINY = Path(__file__).parents[1] / "tiny.py"


def get_config() -> ConfigDict:
    config = runpy.run_path(str(TINY))["get_config"]()
    config.eval_batch_size = 64
    config.augment.update(flip_probability=0.5, mix_group=16, mixup_alpha=0.8, cutmix_alpha=1.0)
    config.model.update(image_size=(32, 32), num_classes=10, dtype="bfloat16")
    config.model.options.update(patch_size=4, widths=(64, 128), heads=(2, 4))
    return config
