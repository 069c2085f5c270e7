"""A small PiT on the handwritten digits of scikit-learn: the whole system in minutes.

    python train.py --config=configs/digits.py --workdir=DIR

No table of the paper: 1,437 real 8x8 scans to train on, 360 to test, enlarged to 24x24. The network
is a PiT with class token and two poolings (grids 11, 6, 3). Two CPU cores are enough.

`--config=configs/digits.py:smoke` runs every part in a fraction of the time and reaches no accuracy
worth reporting.
"""

from ml_collections import ConfigDict

from pit_jax.tasks.experiments import default_config


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `variant` is "" or "smoke"."""
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/digits.py has the variant 'smoke', not {variant!r}")
    config = default_config()
    config.batch_size = 64
    config.eval_batch_size = 120
    config.duration = "30 epochs"
    config.augment.flip_probability = 0.0  # a mirrored digit is no digit
    config.log_every = "2 epochs"
    config.checkpoint_every = "10 epochs"

    config.model.name = "pit_ti"
    config.model.image_size = (24, 24)
    config.model.dtype = "float32"
    config.model.options = {
        "patch_size": 4,
        "stride": 2,
        "widths": (32, 64, 128),
        "depths": (1, 2, 1),
        "heads": (2, 4, 8),
    }

    config.data.name = "digits"
    config.data.eval_split = "test"
    config.data.eval_protocol = "resize"
    config.data.crop_scale = (0.6, 1.0)

    config.optimizer.base_learning_rate = 1.6e-2  # 2e-3 at 64 images
    config.optimizer.warmup = "5 epochs"
    if variant == "smoke":
        config.duration = "2 epochs"
        config.optimizer.warmup = "1 epoch"
        config.log_every = "11 steps"
    return config
