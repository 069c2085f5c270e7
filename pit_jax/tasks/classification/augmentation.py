"""Augmentation of a training batch on the device: from uint8 pixels to inputs of model and loss.

The order is timm's: flip, RandAugment (unless the host does it), normalise, erase, mix. The result
depends only on the key and on the images' places in the global batch. Devices that hold whole
mixing groups exchange nothing.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pit_jax.augment.erasing import random_erasing
from pit_jax.augment.flip import draw_flips, flip
from pit_jax.augment.keys import image_keys
from pit_jax.augment.normalise import normalise
from pit_jax.augment.policy import Policy
from pit_jax.augment.randaugment_device import rand_augment
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from pit_jax.tasks.classification.config import AugmentConfig
from pit_jax.tasks.classification.mixing import draw_mixing, mix_images, mix_targets, smooth_targets


def training_batch(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    options: AugmentConfig,
    *,
    num_classes: int,
    flip_probability: float,
    policy: Policy | None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Augments a global batch. An operation of probability or alpha 0 is not in the program.

    Args:
      key: key of this step.
      images: uint8 (B, H, W, 3).
      labels: class numbers (B,), from 0 to K - 1, where K is `num_classes`.
      options: probabilities and strengths; `mix_group` is even and divides B.
      num_classes: number of classes K.
      flip_probability: probability of a flip on the device, in place of that of the options; 0 if
        the host flips.
      policy: RandAugment on the device; None if the host does it, or if there is none.
      dtype: dtype of the returned images.

    Returns:
      Images (B, H, W, 3) of `dtype`, and soft targets, float32 (B, K).
    """
    count, height, width, _ = images.shape
    flip_key, policy_key, erasing_key, mixing_key = jax.random.split(key, 4)
    if flip_probability > 0:
        images = flip(images, draw_flips(image_keys(flip_key, count), flip_probability))
    if policy is not None:
        images = rand_augment(images, image_keys(policy_key, count), policy)
    pixels = normalise(images, IMAGENET_MEAN, IMAGENET_STD)
    if options.erasing_probability > 0:
        keys = image_keys(erasing_key, count)
        pixels = random_erasing(pixels, keys, options.erasing_probability)
    if not options.mixes:
        targets = smooth_targets(labels, num_classes, options.label_smoothing)
        return pixels.astype(dtype), targets
    mixing = draw_mixing(
        mixing_key,
        count // options.mix_group,
        (height, width),
        mixup_alpha=options.mixup_alpha,
        cutmix_alpha=options.cutmix_alpha,
        probability=options.mix_probability,
        switch_probability=options.switch_probability,
    )
    targets = mix_targets(labels, mixing, num_classes, options.label_smoothing)
    return mix_images(pixels, mixing).astype(dtype), targets
