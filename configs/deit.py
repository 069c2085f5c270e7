"""PiT's DeiT setting: the column "+DeiT" of Table 2.

    python train.py --config=configs/deit.py:pit_s --workdir=DIR

The argument is MODEL[,smoke]. The paper reports, as top-1 on ImageNet after 300 epochs: pit_ti
73.0, pit_xs 78.1, pit_s 80.9, pit_b 82.0; and quotes from DeiT's authors deit_ti 72.2, deit_s 79.8,
deit_b 81.8. **Nobody has measured any of it with this code yet.**

Hardware: any number of devices that divides 1,024. Expected time, an estimate from rooflines that
nobody has timed: pit_s 4 hours on 8 TPU v5e chips, 15 on one H200 with 16 cores, provided that the
cores keep up with RandAugment; pit_b 13 and 23 hours.

On a pod the same command runs on every host at once, and DIR is a shared folder (docs/pods.md):

    gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='cd pit_jax && \\
      .venv/bin/python train.py --config=configs/deit.py:pit_s --workdir=DIR'

Optimizer, schedule and evaluation are those of configs/vanilla.py. From DeiT come RandAugment,
random erasing, Mixup and CutMix in turn, label smoothing, stochastic depth, 1,024 images a step and
a moving average of decay 0.99996 that no reported number uses. pit_b alone has repeated
augmentation, as the paper says ("negative effect in a small model"), and 10 epochs of warm-up, as
its first author adds. Choices where the paper is silent:

* Stochastic depth 0.1 for all sizes: the script's default; nothing else is published.
* Repeated augmentation is three views in a row, with as many steps an epoch as without: DeiT's.
* Groups of 64 images share a draw of Mixup or CutMix, as 16 processes of DeiT's script have it.
* Colour jitter is not applied: the script's 0.4 has no effect beside RandAugment.
* The published number may be that of the last epoch or the largest; the last one is reported here,
  and the best checkpoint kept.
* DeiT's own models have DeiT's own setting, as their numbers are quoted: AdamW, repeated
  augmentation and 5 epochs of warm-up in all sizes. To train them as PiT is, add
  `--config.data.repeats=1 --config.optimizer.name=adamp` and
  `--config.optimizer.options='{"wd_ratio": 0.01, "nesterov": True}'`.

`:MODEL,smoke` has all ingredients on networks of some thousand parameters, for 30 steps on random
pictures: a minute on a CPU, and nothing is learned.
"""

from ml_collections import ConfigDict

from pit_jax.tasks.classification import recipes

SETTINGS: dict[str, recipes.Setting] = {
    "pit_ti": "pit",
    "pit_xs": "pit",
    "pit_s": "pit",
    "pit_b": "pit_b",
    "deit_ti": "deit",
    "deit_s": "deit",
    "deit_b": "deit",
}


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is "MODEL", optionally followed by ",smoke"."""
    model, is_smoke = recipes.choose("deit.py", variant, SETTINGS)
    config = recipes.deit(model, SETTINGS[model])
    return recipes.smoke(config) if is_smoke else config
