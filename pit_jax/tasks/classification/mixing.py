"""Mixup and CutMix within groups of the batch, and their targets.

A group draws one mode and one ratio, and mixes its images with themselves in reverse order. It
stands for the batch of one process in the published recipe: a global batch of 1,024 in groups of 64
makes as many independent draws as DeiT's sixteen processes. One draw for the whole batch would be
noisier. Groups are consecutive images: devices that hold whole groups exchange nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pit_jax.augment.boxes import inside

# Number of uniform draws from which one Beta distributed number is computed.
BETA_DRAWS = 64
TINY = 1e-12


class Mixing(NamedTuple):
    """The mixing of each of G groups.

    Attributes:
      ratio: float32 (G,), share of the image itself in its target; 1 leaves the group unchanged.
      cuts: bool (G,), CutMix rather than Mixup.
      box: int32 (G, 4), the region that CutMix replaces, as in pit_jax.augment.boxes.
    """

    ratio: jax.Array
    cuts: jax.Array
    box: jax.Array


def draw_mixing(
    key: jax.Array,
    groups: int,
    size: tuple[int, int],
    *,
    mixup_alpha: ArrayLike,
    cutmix_alpha: ArrayLike,
    probability: ArrayLike,
    switch_probability: ArrayLike,
) -> Mixing:
    """Draws for each group the mode, the ratio ~ Beta(alpha, alpha), and CutMix's box.

    Args:
      key: key of this step's mixing.
      groups: number of groups G in the global batch.
      size: height and width of the images.
      mixup_alpha: Mixup's alpha; 0 turns it off.
      cutmix_alpha: CutMix's alpha; 0 turns it off. With both at 0 nothing is mixed.
      probability: probability that a group is mixed.
      switch_probability: probability of CutMix rather than Mixup, if both are on.
    """
    mixup, cutmix = jnp.asarray(mixup_alpha), jnp.asarray(cutmix_alpha)
    probability = jnp.where((mixup > 0) | (cutmix > 0), probability, 0.0)
    switch = jnp.where((mixup > 0) & (cutmix > 0), switch_probability, cutmix > 0)

    def draw(group: jax.Array) -> Mixing:
        uniform = jax.random.uniform(jax.random.fold_in(key, group), (4 + BETA_DRAWS,))
        mixes = uniform[0] < probability
        cuts = (uniform[1] < switch) & mixes
        ratio = symmetric_beta(uniform[4:], jnp.where(cuts, cutmix, mixup))
        centre = [
            (part * length).astype(jnp.int32)
            for part, length in zip(uniform[2:4], size, strict=True)
        ]
        box, kept = cutmix_box(ratio, centre, size)
        return Mixing(jnp.where(cuts, kept, jnp.where(mixes, ratio, 1.0)), cuts, box)

    return jax.vmap(draw)(jnp.arange(groups, dtype=jnp.uint32))


def symmetric_beta(uniform: jax.Array, alpha: jax.Array) -> jax.Array:
    """Computes a Beta(alpha, alpha) number, float32 (), from uniform numbers (BETA_DRAWS,).

    Undefined for an `alpha` of 0 or less.
    """
    # `jax.random.beta` has a data-dependent loop, on whose end all devices would have to agree.
    # Above 1/2, Ulrich's polar method (1984) rejects nothing. Below, Joehnk's method accepts more
    # than 3 in 4 of its 32 tries.
    first, second = jnp.maximum(uniform, TINY).reshape(2, BETA_DRAWS // 2)
    exponent = 2 / jnp.maximum(2 * alpha - 1, TINY)
    polar = jnp.sqrt(1 - first[0] ** exponent) * jnp.sin(2 * jnp.pi * second[0])

    logs = jnp.log(first) / alpha, jnp.log(second) / alpha
    accepted = jnp.argmax(jnp.logaddexp(*logs) <= 0)
    joehnk = jax.nn.sigmoid(logs[0] - logs[1])[accepted]
    return jnp.where(alpha > 0.5, 0.5 + 0.5 * polar, joehnk)


def cutmix_box(
    ratio: jax.Array, centre: Sequence[jax.Array], size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Computes the box of shape `size` * sqrt(1 - ratio) around `centre`, clipped to the image.

    Returns:
      The box, int32 (4,), and the share of the image outside the box, float32 ().
    """
    edges = []
    for middle, length in zip(centre, size, strict=True):
        side = (length * jnp.sqrt(1.0 - ratio)).astype(jnp.int32)
        edges += [
            jnp.clip(middle - side // 2, 0, length),
            jnp.clip(middle + (side + 1) // 2, 0, length),
        ]
    top, bottom, left, right = edges
    area = (bottom - top) * (right - left)
    return jnp.stack(edges), 1.0 - area / (size[0] * size[1])


def mix_images(images: jax.Array, mixing: Mixing) -> jax.Array:
    """Mixes images (B, H, W, C) with those of their group in reverse order.

    Raises:
      ValueError: the batch does not divide into that many groups of an even number of images.
    """
    _, height, width, _ = images.shape
    grouped = _grouped(images, mixing)
    partners = grouped[:, ::-1]
    ratio, cuts = (x[:, None, None, None, None] for x in (mixing.ratio, mixing.cuts))
    boxed = inside(mixing.box, (height, width))[:, None, :, :, None]
    blended = grouped * ratio + partners * (1.0 - ratio)
    mixed = jnp.where(cuts, jnp.where(boxed, partners, grouped), blended)
    return mixed.astype(images.dtype).reshape(images.shape)


def smooth_targets(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Turns class numbers (B,) into soft targets, float32 (B, K).

    `smoothing` is the mass spread evenly over all K classes, the true one included.
    """
    spread = smoothing / num_classes
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + spread


def mix_targets(
    labels: jax.Array, mixing: Mixing, num_classes: int, smoothing: float = 0.0
) -> jax.Array:
    """Turns class numbers (B,) into targets, float32 (B, K), smoothed and mixed as the images are.

    Raises:
      ValueError: as `mix_images`.
    """
    targets = smooth_targets(labels, num_classes, smoothing)
    grouped = _grouped(targets, mixing)
    ratio = mixing.ratio[:, None, None]
    mixed = grouped * ratio + grouped[:, ::-1] * (1.0 - ratio)
    return mixed.reshape(targets.shape)


def _grouped(batch: jax.Array, mixing: Mixing) -> jax.Array:
    groups, images = mixing.ratio.shape[0], batch.shape[0]
    if images % (2 * groups):
        raise ValueError(
            f"expected a batch of {groups} groups of an even number of images, found {images} "
            "images: choose an even mix_group that divides the batch size"
        )
    return batch.reshape(groups, images // groups, *batch.shape[1:])
