"""PSViT (Chen et al. 2021): Tables 1 to 5, trained from scratch with DeiT's recipe.

    python train.py --config=configs/psvit.py:psvit_1d_tiny --workdir=DIR

The argument is MODEL[,smoke]. The paper reports, as top-1 on ImageNet after 300 epochs:

* Table 2: psvit_1d_tiny 77.4, psvit_1d_small 80.7, psvit_1d_base 82.6, psvit_2d_tiny 78.8,
  psvit_2d_small 81.6, psvit_2d_base 82.9.
* Table 4: psvit_1d_tiny8 72.71, psvit_1d_small16 78.32; its Tiny/16 is psvit_1d_tiny (77.40), its
  Small/8 psvit_1d_small (80.70).
* Table 1: psvit_1d_dimension1 75.0, psvit_1d_dimension2 76.3; its DeiT-Tiny (72.2) is
  configs/deit.py:deit_ti.
* Table 3: sharing alone is psvit_1d_sharing2 (73.8); pooling alone is psvit_1d_dimension2 (76.3),
  and in 2D psvit_2d_pooling 76.7; both, searched, are psvit_1d_tiny and psvit_2d_tiny.
* Table 5: psvit_1d_sharing2 73.8, psvit_1d_sharing3 73.1.

**Nobody has measured any of it with this code yet**, and there is no public code or weights of
PSViT. The searched cells are a picture in the paper: those of the 1D models are inferred from
printed parameter counts, those of the 2D models and all their widths are ours (docs/psvit.md). Do
not expect the 2D figures of models that only cost the same.

Any other architecture of the search space is a genome, here of a psvit_1d_tiny:

    python train.py --config=configs/psvit.py:psvit_1d_tiny --workdir=DIR \\
      --config.model.options='{"cells": "220|210|111"}'

Hardware: any number of devices that divides 1,024. Nobody has timed it.

The setting is "the same training setting" as DeiT's: that of configs/deit.py for DeiT's own models,
with AdamW, 1e-3 at 1,024 images, weight decay 0.05, 5 epochs of warm-up, RandAugment, random
erasing, Mixup and CutMix in turn, label smoothing and stochastic depth 0.1, three views of every
image. Choices where the paper is silent:

* Stochastic depth grows from 0 to 0.1 over the layers that run; identities do not count.
* Gradients are not clipped. The same author's later GLiT clips at a norm of 1:
  `--config.optimizer.clip_norm=1.0`.

`:MODEL,smoke` has all ingredients on a network of some thousand parameters, for 30 steps on random
pictures: a minute on a CPU, and nothing is learned.
"""

from ml_collections import ConfigDict

from pit_jax.models.psvit.family import PUBLISHED
from pit_jax.tasks.classification import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is "MODEL", optionally followed by ",smoke"."""
    model, is_smoke = recipes.choose("psvit.py", variant, PUBLISHED)
    config = recipes.deit(model, "deit")
    return recipes.smoke(config) if is_smoke else config
