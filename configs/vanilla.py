"""PiT's vanilla setting: the column "Vanilla" of Table 2, and all of Figures 2 and 3.

    python train.py --config=configs/vanilla.py:pit_s --workdir=DIR

The argument is MODEL[,smoke]. The paper reports, as top-1 on ImageNet after 100 epochs: pit_ti
71.3, pit_xs 72.4, pit_s 73.3, pit_b 76.1, and for ViT trained in the same way vit_ti 68.7, vit_s
68.7, vit_b 69.3. resnet50 and resnet50_nopool are the largest points of Figure 2, which gives no
numbers; all of its pairs are in configs/pooling_ablation.py. **Nobody has measured any of it with
this code yet.**

Hardware: any number of devices that divides 1,024. Expected time, an estimate from rooflines that
nobody has timed: pit_s 1.5 hours on 8 TPU v5e chips, 5 hours on one H200 with 16 cores, limited by
decoding on the cores; pit_b 4.5 and 8 hours; the smaller ones down to half of pit_s on the TPU.

On one host, with any number of devices, the command above is all. On a pod the same command runs on
every host at once, and DIR is a shared folder (docs/pods.md covers every kind of cluster):

    gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='cd pit_jax && \\
      .venv/bin/python train.py --config=configs/vanilla.py:pit_s --workdir=DIR'

Given by the paper: AdamP, 100 epochs, cosine decay; learning rate, weight decay and warm-up "equal
to DeiT": 5e-4 * batch / 512, 0.05, 5 epochs from 1e-6, decay to 1e-5. Choices where it is silent:

* Batch 1,024: DeiT's.
* AdamP with wd_ratio 0.01 and Nesterov momentum: what timm's optimizer factory sets, which DeiT's
  script calls. The authors' own package has 0.1 and no Nesterov momentum; delta is 0.1 in both.
* Schedule "deit": that of the script, which changes once an epoch and lags by one, so that the
  first two epochs hardly learn. `--config.optimizer.schedule=smooth` does not lag.
* Weight decay for kernels, not for biases, norms, class tokens and positions: what timm 0.3.4 does.
* Augmentation: random crops and mirroring alone; neither label smoothing nor stochastic depth nor
  dropout. The paper says "without complicated training techniques".
* No gradient clipping, no repeated augmentation, also for pit_b, whose exception the paper makes
  for the DeiT settings; for those its author also reports 10 epochs of warm-up. No moving average,
  which DeiT's script keeps but evaluates only beside the weights.
* Evaluation as DeiT's: shorter side to 256 by bicubic interpolation, centre 224.

`:MODEL,smoke` has all ingredients on networks of some thousand parameters, for 30 steps on random
pictures: a minute on a CPU, and nothing is learned.
"""

from ml_collections import ConfigDict

from pit_jax.tasks.classification import recipes

MODELS = (
    "pit_ti",
    "pit_xs",
    "pit_s",
    "pit_b",
    "vit_ti",
    "vit_s",
    "vit_b",
    "resnet50",
    "resnet50_nopool",
)


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is "MODEL", optionally followed by ",smoke"."""
    model, is_smoke = recipes.choose("vanilla.py", variant, MODELS)
    config = recipes.vanilla(model)
    return recipes.smoke(config) if is_smoke else config
