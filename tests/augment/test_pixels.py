"""Keys, flips and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy import stats

from pit_jax.augment.flip import draw_flips, flip
from pit_jax.augment.keys import image_keys
from pit_jax.augment.normalise import normalise
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


class TestKeys:
    def test_depend_on_the_position_only(self):
        key = jax.random.key(5)
        keys = jax.random.key_data(image_keys(key, 8))
        assert len(np.unique(np.asarray(keys), axis=0)) == 8
        np.testing.assert_array_equal(jax.random.key_data(image_keys(key, 3, first=4)), keys[4:7])


class TestFlip:
    def test_mirrors_the_chosen(self):
        flips = jnp.array([True, False, True, False, False, True])
        found = np.asarray(flip(jnp.array(PIXELS), flips))
        assert found.dtype == np.uint8
        for image, original, flipped in zip(found, PIXELS, flips, strict=True):
            np.testing.assert_array_equal(image, np.fliplr(original) if flipped else original)

    def test_probability(self):
        keys = image_keys(jax.random.key(0), 10_000)
        for probability in (0.5, 0.2):
            count = int(draw_flips(keys, probability).sum())
            assert stats.binomtest(count, 10_000, probability).pvalue > 1e-3


class TestNormalise:
    def test_equals_torch(self, timm):
        del timm  # makes torchvision importable
        from torchvision.transforms import functional

        tensors = torch.tensor(PIXELS).permute(0, 3, 1, 2).float() / 255
        expected = functional.normalize(tensors, IMAGENET_MEAN, IMAGENET_STD)
        found = normalise(jnp.array(PIXELS), IMAGENET_MEAN, IMAGENET_STD)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(
            np.asarray(found), expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6
        )

    def test_rounds_once(self):
        """bfloat16 is the rounded float32 result, not arithmetic in bfloat16."""
        exact = jax.jit(normalise, static_argnums=(1, 2))(
            jnp.array(PIXELS), IMAGENET_MEAN, IMAGENET_STD
        )
        found = jax.jit(normalise, static_argnums=(1, 2, 3))(
            jnp.array(PIXELS), IMAGENET_MEAN, IMAGENET_STD, jnp.bfloat16
        )
        np.testing.assert_array_equal(np.asarray(found), np.asarray(exact.astype(jnp.bfloat16)))
