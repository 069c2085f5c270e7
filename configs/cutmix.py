"""PiT's CutMix setting: the column "+CutMix" of Table 2, configs/vanilla.py with CutMix.

    python train.py --config=configs/cutmix.py:pit_s --workdir=DIR

The argument is MODEL[,smoke]. The paper reports, as top-1 on ImageNet after 100 epochs: pit_ti
72.6, pit_xs 76.8, pit_s 79.0, pit_b 79.9, and for ViT trained in the same way vit_ti 68.5, vit_s
76.5, vit_b 75.3. **Nobody has measured any of it with this code yet.**

Hardware, expected time (an estimate), the command for a pod, and everything not listed below are
those of configs/vanilla.py. Choices where the paper is silent about CutMix and mixed labels:

* Alpha 1, for every image: the values of CutMix's own paper for ImageNet, and of DeiT's script.
* Mixup is off: "CutMix can be used without any other technique". DeiT's script of that time could
  not mix by CutMix alone, so the authors must have changed it, or used another.
* Groups of 64 images share a draw, as 16 processes of that script would have it.
* Labels are mixed by area, and not smoothed.
"""

from ml_collections import ConfigDict

from pit_jax.tasks.classification import recipes

MODELS = ("pit_ti", "pit_xs", "pit_s", "pit_b", "vit_ti", "vit_s", "vit_b")


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is "MODEL", optionally followed by ",smoke"."""
    model, is_smoke = recipes.choose("cutmix.py", variant, MODELS)
    config = recipes.cutmix(model)
    return recipes.smoke(config) if is_smoke else config
