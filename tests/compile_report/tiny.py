"""A PiT of a few thousand parameters, trained with all of DeiT's augmentation, on data that need
not be there."""

from ml_collections import ConfigDict

from pit_jax.tasks.experiments import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 32
    config.eval_batch_size = 64
    config.ema_decay = 0.9
    config.augment.mix_group = 16
    config.augment.mixup_alpha = 0.8
    config.augment.cutmix_alpha = 1.0
    config.model.name = "pit_ti"
    config.model.image_size = (32, 32)
    config.model.drop_path_rate = 0.1
    config.model.num_classes = 10
    config.model.options = {
        "patch_size": 4,
        "stride": 2,
        "widths": (64, 128),
        "depths": (1, 1),
        "heads": (2, 4),
    }
    return config
