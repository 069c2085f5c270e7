"""The smallest real experiment: a hundred digits, a PiT of a few thousand parameters."""

from ml_collections import ConfigDict

from pit_jax.tasks.experiments import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 32
    config.eval_batch_size = 16
    config.duration = "3 epochs"
    config.log_every = "2 steps"
    config.ema_decay = 0.9
    config.augment.flip_probability = 0.0
    config.model.name = "pit_ti"
    config.model.image_size = (8, 8)
    config.model.dtype = "float32"
    config.model.drop_path_rate = 0.1
    config.model.options = {
        "patch_size": 2,
        "stride": 2,
        "widths": (8, 16),
        "depths": (1, 1),
        "heads": (1, 2),
    }
    config.data.name = "digits"
    config.data.train_split = "train[:100]"
    config.data.eval_split = "test[:37]"
    config.data.eval_protocol = "resize"
    config.optimizer.base_learning_rate = 0.1
    config.optimizer.warmup = "1 epoch"
    return config
