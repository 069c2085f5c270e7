"""Augmentation of a whole batch: its order, its switches, and independence of the sharding."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.augment import erasing
from pit_jax.augment.flip import draw_flips, flip
from pit_jax.augment.keys import image_keys
from pit_jax.augment.normalise import normalise
from pit_jax.augment.policy import Policy, parse
from pit_jax.augment.randaugment_device import rand_augment
from pit_jax.tasks.classification import mixing
from pit_jax.tasks.classification.augmentation import training_batch
from pit_jax.tasks.classification.config import AugmentConfig, ClassificationConfig
from pit_jax.tasks.classification.task import Classification

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, CLASSES = 32, 10
KEY = jax.random.key(0)
POLICY = parse("rand-m9-mstd0.5-inc1")
MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_probability": 0.5}
DEIT = AugmentConfig(
    flip_probability=0.5, erasing_probability=0.25, mix_group=4, label_smoothing=0.1, **MIXING
)
OFF = AugmentConfig(flip_probability=0.0, label_smoothing=0.0)


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 16, 24, 3), dtype=np.uint8)
    return images, rng.integers(CLASSES, size=BATCH).astype(np.int32)


def augment(options: AugmentConfig, policy: Policy | None = POLICY, **dtype):
    def run(key, images, labels):
        return training_batch(
            key,
            images,
            labels,
            options,
            num_classes=CLASSES,
            flip_probability=options.flip_probability,
            policy=policy,
            **dtype,
        )

    return run


@pytest.fixture(scope="module")
def augmented(batch) -> tuple[np.ndarray, np.ndarray]:
    """A batch with everything on, on one device."""
    images, targets = jax.jit(augment(DEIT))(KEY, *batch)
    return np.asarray(images), np.asarray(targets)


class TestOrder:
    def test_is_timm_s(self, batch, augmented):
        """The order is flip, RandAugment, normalise, erase, mix; each has its own key."""

        @jax.jit
        def by_hand(key, images, labels):
            keys = jax.random.split(key, 4)
            images = flip(images, draw_flips(image_keys(keys[0], BATCH), 0.5))
            images = rand_augment(images, image_keys(keys[1], BATCH), POLICY)
            pixels = normalise(images, MEAN, STD)
            pixels = erasing.random_erasing(pixels, image_keys(keys[2], BATCH), 0.25)
            mixed = mixing.draw_mixing(keys[3], BATCH // 4, (16, 24), probability=1.0, **MIXING)
            targets = mixing.mix_targets(labels, mixed, CLASSES, 0.1)
            return mixing.mix_images(pixels, mixed), targets

        for value, expected in zip(augmented, by_hand(KEY, *batch), strict=True):
            np.testing.assert_allclose(value, np.asarray(expected), atol=1e-6)

    def test_all_off(self, batch):
        images, labels = batch
        found = jax.jit(augment(OFF, policy=None, dtype=jnp.bfloat16))(KEY, *batch)
        assert found[0].dtype == jnp.bfloat16
        expected = normalise(jnp.array(images), MEAN, STD, jnp.bfloat16)
        np.testing.assert_allclose(
            np.asarray(found[0], np.float32), np.asarray(expected, np.float32), rtol=1e-2
        )
        np.testing.assert_array_equal(np.asarray(found[1]), np.eye(CLASSES)[labels])

    @pytest.mark.parametrize("group", [3, 24, 64])
    def test_refuses_a_group(self, group):
        config = ClassificationConfig(
            batch_size=BATCH, augment=dataclasses.replace(DEIT, mix_group=group)
        )
        with pytest.raises(
            ValueError, match=rf"mix_group={group} must be even and divide config.batch_size=32"
        ):
            Classification(config, network=None).check()

    def test_any_group_where_nothing_is_mixed(self, batch):
        options = dataclasses.replace(OFF, mix_group=24)
        Classification(ClassificationConfig(batch_size=BATCH, augment=options), None).check()
        images, _ = augment(options, policy=None)(KEY, *batch)
        assert images.shape == (BATCH, 16, 24, 3)


class TestSharding:
    def test_changes_nothing_and_needs_no_exchange(self, batch, augmented):
        """Eight devices with a group each agree with one device that has all groups."""
        mesh = Mesh(np.array(jax.devices()), ("data",))
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        replicated = NamedSharding(mesh, PartitionSpec())
        sharded = jax.jit(
            augment(DEIT), in_shardings=(replicated, sharding, sharding), out_shardings=sharding
        )
        program = sharded.lower(KEY, *batch).compile().as_text()
        exchanges = r"all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
        assert not re.findall(exchanges, program)
        for value, expected in zip(sharded(KEY, *batch), augmented, strict=True):
            assert len(value.sharding.device_set) == 8
            np.testing.assert_allclose(np.asarray(value), expected, atol=1e-6)
