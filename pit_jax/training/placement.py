"""Which part of the augmentation runs on the host and which on the device."""

import dataclasses

import jax

from pit_jax.augment.policy import Policy, parse
from pit_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Flip and RandAugment, which stay together: the flip comes first.

    Attributes:
      host_policy, device_policy: RandAugment; None where it does not run.
      host_flip, device_flip: probability of a flip.
    """

    host_policy: Policy | None = None
    host_flip: float = 0.0
    device_policy: Policy | None = None
    device_flip: float = 0.0


def placement(config: TrainConfig) -> Placement:
    """Where an experiment's flips and RandAugment run on this machine."""
    flip = config.augment.flip_probability
    if not config.data.randaugment:
        return Placement(device_flip=flip)
    policy = parse(config.data.randaugment)
    place = config.data.augment_on
    if place == "auto":
        # A GPU's host has few cores for it, a TPU's has many (and a TPU's gathers are slow).
        place = "device" if jax.default_backend() == "gpu" else "host"
    if place == "device":
        return Placement(device_policy=policy, device_flip=flip)
    return Placement(host_policy=policy, host_flip=flip)
