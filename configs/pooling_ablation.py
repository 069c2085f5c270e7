"""Figures 2 and 3 of the PiT paper: ResNet and ViT with and without pooling, at equal cost.

    python train.py --config=configs/pooling_ablation.py:vit_s,pooling --workdir=DIR
    python train.py --config=configs/pooling_ablation.py:vit_s,no_pooling --workdir=DIR2

The argument is PAIR,pooling or PAIR,no_pooling, optionally followed by ,smoke. Figure 2 has the
pairs resnet_w32, resnet_w48, resnet_w64 and resnet_w96: ResNet-50 of that base width, and the same
blocks on one grid of 14x14. Figure 3 has vit_ti, vit_xs, vit_s and vit_b: the PiT of that size, and
a ViT. The networks of a pair differ by less than 3 % in multiply-accumulates.

The figures are curves without numbers: training loss and validation accuracy over FLOPs, validation
over training accuracy. With pooling, all are better at the same cost. **Nobody has measured any of
it with this code yet.** The curves are `train/loss`, `train/top1` and `test/top1` of metrics.jsonl.

The setting is that of configs/vanilla.py, whose choices, hardware and command for a pod hold here;
time grows with the cost that the start of a run logs. Further choices where the paper is silent:

* Sizes and widths: "several network sizes by changing the base channel size" is all it says of
  Figure 2, and nothing of Figure 3. Here they are the sizes of PiT, and ResNets of 1 to 9 GMACs.
* ResNet without pooling: "the stem layer reduces the feature to 14 x 14" and "feature dimensions
  like ViT" are read as one convolution of 16x16 and stride 16, and one width in all 16 blocks.
* ViT without pooling: patches of ViT's 16, heads as wide as the PiT's, 12 to 14 blocks.
"""

from ml_collections import ConfigDict

from pit_jax.models.zoo import POOLING_PAIRS
from pit_jax.tasks.classification import recipes

VARIANTS = {
    f"{pair},{kind}": network
    for pair, networks in POOLING_PAIRS.items()
    for kind, network in zip(("pooling", "no_pooling"), networks, strict=True)
}


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is "PAIR,pooling" or "PAIR,no_pooling", optionally ",smoke"."""
    pair, is_smoke = recipes.choose("pooling_ablation.py", variant, VARIANTS)
    model, fields = VARIANTS[pair]
    config = recipes.vanilla(model)
    config.model.options = dict(fields)
    return recipes.smoke(config) if is_smoke else config
