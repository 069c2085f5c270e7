"""An experiment of the toy task on the toy network, in the words of any config file."""

from ml_collections import ConfigDict

from pit_jax.tasks.experiments import default_config


def get_config() -> ConfigDict:
    config = default_config("regression")
    config.batch_size = config.eval_batch_size = 8
    config.duration = "2 epochs"
    config.checkpoint_every = "2 steps"
    config.log_every = "1 step"
    config.tensorboard = False
    config.optimizer.base_learning_rate = 1.0
    config.optimizer.warmup = "2 steps"
    return config
