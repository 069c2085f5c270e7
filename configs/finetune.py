"""Fine-tuning of trained weights, with DeiT's values: at another size, or on another data set.

    python train.py --config=configs/finetune.py:pit_s,384 --workdir=DIR \\
        --config.init_from=hf:timm/pit_s_224.in1k
    python train.py --config=configs/finetune.py:pit_s,224,transfer --workdir=DIR \\
        --config.init_from=hf:timm/pit_s_224.in1k --config.data.name=cifar10 \\
        --config.data.eval_split=test

The argument is MODEL,SIZE[,transfer][,smoke]: a model of `pit_jax.list_models()`, and 224 or 384.
`--config.init_from` is required: a weights file, a torch file, a run directory or a model of the
hub. Positions for another image size are resized, and the log says so.

MODEL,SIZE is what DeiT's script does for its 384 models on ImageNet: AdamW, 30 epochs of 512 images
at 5e-6, which is also the minimum, so that the learning rate is constant after the warm-up; weight
decay 1e-8; no stochastic depth; augmentation as in training, RandAugment included.

MODEL,SIZE,transfer is what DeiT's authors give for CIFAR-10 and Stanford Cars (their issue 45): SGD
at 0.01, weight decay 1e-4, 1,000 epochs of 768 images, neither random erasing nor stochastic depth,
all else as in training, and a new head. They do not say whether 0.01 is before or after their
scaling with the batch; here it is after.

A distilled model is better fine-tuned with its teacher (`--config.distillation.kind=hard`, and see
docs/training.md); without one only its class token learns.

Hardware: any number of devices that divides the batch; at 384, pit_b needs `--config.accumulate` or
`--config.remat=dots` on small ones. Expected accuracy: unknown; nobody has measured it with this
code, and the PiT paper publishes no 384 model.

`:MODEL,SIZE,smoke` trains a tiny PiT by the same recipe for four steps on the digits, in seconds
and to no accuracy worth reporting; from scratch unless weights are given.
"""

from ml_collections import ConfigDict

from pit_jax.models import zoo
from pit_jax.options import required
from pit_jax.tasks.classification import recipes
from pit_jax.tasks.experiments import default_config

SIZES = (224, 384)
OPTIONS = ("transfer", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is "MODEL,SIZE", then ",transfer" and ",smoke" if wanted."""
    model, size, *chosen = variant.split(",") if "," in variant else ("", "")
    known = size in map(str, SIZES) and set(chosen) <= set(OPTIONS)
    if not model or not known or len(chosen) != len(set(chosen)):
        raise ValueError(
            "configs/finetune.py needs :MODEL,SIZE[,transfer][,smoke] with SIZE 224 or 384, such "
            f"as configs/finetune.py:pit_s,384; found {variant!r}"
        )
    config = default_config()
    config.model.name = model
    config.model.image_size = (int(size), int(size))
    config.model.drop_path_rate = 0.0
    config.init_from = required("WEIGHTS")
    recipes.add_deit_augmentation(config)
    config.augment.mix_group = 32  # DeiT's batch per GPU at 384
    config.optimizer.schedule = "deit"
    config.optimizer.warmup = "5 epochs"
    if "transfer" in chosen:
        _transfer(config)
    else:
        _imagenet(config)
    if "smoke" in chosen:
        _smoke(config)
    return config


def _imagenet(config: ConfigDict) -> None:
    config.batch_size = 512
    config.duration = "30 epochs"
    config.augment.erasing_probability = 0.25
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 5e-6
    config.optimizer.min_learning_rate = 5e-6
    config.optimizer.weight_decay = 1e-8


def _transfer(config: ConfigDict) -> None:
    config.init_head = "new"
    config.batch_size = 768
    config.eval_batch_size = 768
    config.duration = "1000 epochs"
    config.eval_every = "10 epochs"
    config.checkpoint_every = "10 epochs"
    config.augment.erasing_probability = 0.0
    config.optimizer.name = "sgd"
    config.optimizer.base_learning_rate = 0.01 * 512 / 768  # 0.01 at 768 images
    config.optimizer.weight_decay = 1e-4


def _smoke(config: ConfigDict) -> None:
    """A network of some thousand parameters at a twelfth of the size, for a few steps."""
    config.init_from = None
    config.init_head = "new"
    config.batch_size = 32
    config.eval_batch_size = 256
    config.duration = "4 steps"
    config.log_every = "2 steps"
    config.eval_every = "4 steps"
    config.checkpoint_every = "4 steps"
    side = config.model.image_size[0] // 12
    config.model.name = "pit_ti"
    config.model.image_size = (side, side)
    config.model.dtype = "float32"
    config.model.options = {**zoo.smallest("pit_ti"), "patch_size": 4, "stride": 2}
    config.data.name = "digits"
    config.data.eval_split = "test"
    config.data.eval_protocol = "resize"
    config.optimizer.schedule = "smooth"
    config.optimizer.warmup = "1 step"
