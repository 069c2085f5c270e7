"""Mixup and CutMix within groups of the batch, and their targets.

A group is what one process of the published recipe saw: it draws one mode and one ratio, and mixes
its images with themselves in reverse order. A global batch of 1,024 in groups of 64 thus makes as
many independent draws as DeiT's sixteen processes; one draw for the whole batch would be noisier.
Groups are consecutive images, so a batch spread over devices mixes without any exchange between
them where each holds whole groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pit_jax.augment.boxes import inside

# Uniform numbers that a Beta distributed one is made from.
BETA_DRAWS = 64
TINY = 1e-12


class Mixing(NamedTuple):
    """How each of G groups is mixed.

    Attributes:
      ratio: (G,) float32, share of an image itself in its target; 1 leaves the group as it is.
      cuts: (G,) bool, CutMix rather than Mixup.
      box: (G, 4) int32, what CutMix replaces, as in pit_jax.augment.boxes.
    """

    ratio: jax.Array
    cuts: jax.Array
    box: jax.Array


def draw_mixing(
    key: jax.Array,
    groups: int,
    size: tuple[int, int],
    *,
    mixup_alpha: ArrayLike = 0.8,
    cutmix_alpha: ArrayLike = 1.0,
    probability: ArrayLike = 1.0,
    switch_probability: ArrayLike = 0.5,
) -> Mixing:
    """One draw per group: the mode, the ratio ~ Beta(alpha, alpha), and CutMix's box.

    Args:
      groups: number of groups in the global batch.
      size: height and width of the images.
      mixup_alpha: 0 turns Mixup off.
      cutmix_alpha: 0 turns CutMix off; with both at 0 nothing is mixed.
      probability: of mixing a group at all.
      switch_probability: of CutMix, where both are on.
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
    """Beta(alpha, alpha), float32 (), from BETA_DRAWS uniform numbers; undefined for an `alpha`
    of 0 or less.

    Without the data-dependent loop of `jax.random.beta`, on whose end all devices would have to
    agree: above 1/2 by Ulrich's polar method (1984), which rejects nothing; else by Joehnk's,
    which accepts more than 3 of 4 of its 32 tries.
    """
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
    """The box of shape `size` * sqrt(1 - ratio) around `centre`, clipped to the image.

    Returns:
      The box, int32 (4,), and the share of the image outside it, float32 ().
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
    """Images (B, H, W, C) mixed with those of their group in reverse order.

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
    """Soft targets, float32 (B, K), of labels (B,): `smoothing` of the mass goes to all K classes
    evenly, the true one included.
    """
    spread = smoothing / num_classes
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + spread


def mix_targets(
    labels: jax.Array, mixing: Mixing, num_classes: int, smoothing: float = 0.0
) -> jax.Array:
    """Smoothed targets, float32 (B, K), mixed as `mix_images` mixes the images.

    Raises:
      ValueError: as for `mix_images`.
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
            "images: choose mix_group even and dividing the batch size"
        )
    return batch.reshape(groups, images // groups, *batch.shape[1:])
