"""Division of the input pipeline between host and device."""

import dataclasses

import jax
import numpy as np

from pit_jax.augment.policy import Policy, parse
from pit_jax.data.jpeg import check_canvas
from pit_jax.tasks.classification.config import ClassificationConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Division of resizing, flip and RandAugment, in this order, between host and device.

    Flip and RandAugment run in the same place, as the flip comes first.

    Attributes:
      canvas: height and width of the arrays that hold a crop each, for the device to resize; None
        if the host resizes.
      host_policy, device_policy: RandAugment in that place; None if it does not run there.
      host_flip, device_flip: probability of a flip in that place.
    """

    canvas: tuple[int, int] | None = None
    host_policy: Policy | None = None
    host_flip: float = 0.0
    device_policy: Policy | None = None
    device_flip: float = 0.0


def placement(config: ClassificationConfig) -> Placement:
    """Decides whether host or device resizes, flips and runs RandAugment on this machine.

    Raises:
      ValueError: RandAugment on the host would follow resizing on the device, or the canvas is too
        small.
    """
    flip = config.augment.flip_probability
    if not config.data.randaugment:
        return Placement(canvas=_canvas(config, on_host=False), device_flip=flip)
    policy = parse(config.data.randaugment)
    place = config.data.augment_on
    if place == "auto":
        # A GPU's host has few cores per GPU. A TPU's host has many, and a TPU is slow at gathers.
        place = "device" if jax.default_backend() == "gpu" else "host"
    if place == "device":
        return Placement(
            canvas=_canvas(config, on_host=False), device_policy=policy, device_flip=flip
        )
    return Placement(canvas=_canvas(config, on_host=True), host_policy=policy, host_flip=flip)


def _canvas(config: ClassificationConfig, *, on_host: bool) -> tuple[int, int] | None:
    """The canvas; None if the host resizes, as it must if RandAugment runs there (`on_host`)."""
    data = config.data
    if data.resize_on == "auto":
        fits = np.all(np.less_equal(config.model.image_size, data.canvas_size))
        # On a CPU the two matrix products cost several times as much as PIL's resizing.
        if on_host or not fits or jax.default_backend() != "gpu":
            return None
    elif data.resize_on == "host":
        return None
    if on_host:
        raise ValueError(
            "config.data.resize_on='device' needs RandAugment on the device too, as it comes "
            "after the resizing, found it on the host: set config.data.augment_on='device' or "
            "config.data.resize_on='host'"
        )
    check_canvas(data.canvas_size, config.model.image_size)
    return data.canvas_size
