"""The walk of a training batch on the device: from uint8 pixels to what model and loss take.

Flip, RandAugment (where it is not done on the host), normalise, erase, mix: timm's order. The
result is a function of the key and of the images' places in the global batch alone. Sharded over
devices, a batch needs no exchange between them as long as each holds whole mixing groups.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pit_jax.augment.erasing import random_erasing
from pit_jax.augment.flip import draw_flips, flip
from pit_jax.augment.keys import image_keys
from pit_jax.augment.normalise import normalise
from pit_jax.augment.policy import Policy
from pit_jax.augment.randaugment_device import rand_augment
from pit_jax.tasks.classification.mixing import draw_mixing, mix_images, mix_targets, smooth_targets


def training_batch(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    flip_probability: float = 0.5,
    policy: Policy | None = None,
    erasing_probability: float = 0.25,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    mix_probability: float = 1.0,
    switch_probability: float = 0.5,
    mix_group: int = 64,
    label_smoothing: float = 0.1,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Augmented images (B, H, W, 3) of `dtype`, and soft targets, float32 (B, K).

    Defaults are DeiT's, except that RandAugment is off. What has probability or alpha 0 costs
    nothing.

    Args:
      key: of this step.
      images: uint8 (B, H, W, 3), the global batch.
      labels: (B,) from 0 to K - 1, where K is `num_classes`.
      mean, std: of the channels, on the scale from 0 to 1.
      policy: RandAugment on the device; None where the host does it, or nobody.
      mix_group: images that share one draw of Mixup or CutMix; even, and dividing B.
      label_smoothing: mass spread evenly over all classes.

    Raises:
      ValueError: mixing, and `mix_group` odd or not dividing the batch.
    """
    count = images.shape[0]
    mixes = mix_probability > 0 and (mixup_alpha > 0 or cutmix_alpha > 0)
    flip_key, policy_key, erasing_key, mixing_key = jax.random.split(key, 4)
    if flip_probability > 0:
        images = flip(images, draw_flips(image_keys(flip_key, count), flip_probability))
    if policy is not None:
        images = rand_augment(images, image_keys(policy_key, count), policy)
    pixels = normalise(images, mean, std)
    if erasing_probability > 0:
        pixels = random_erasing(pixels, image_keys(erasing_key, count), erasing_probability)
    if not mixes:
        return pixels.astype(dtype), smooth_targets(labels, num_classes, label_smoothing)
    _check_group(mix_group, count)
    mixing = draw_mixing(
        mixing_key,
        count // mix_group,
        (images.shape[1], images.shape[2]),
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        probability=mix_probability,
        switch_probability=switch_probability,
    )
    targets = mix_targets(labels, mixing, num_classes, label_smoothing)
    return mix_images(pixels, mixing).astype(dtype), targets


def _check_group(mix_group: int, count: int) -> None:
    if mix_group % 2 or count % mix_group:
        raise ValueError(
            f"expected mix_group even and dividing the batch of {count} images, found "
            f"{mix_group}: with smaller batches choose a smaller group"
        )
