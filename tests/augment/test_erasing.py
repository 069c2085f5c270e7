"""Random erasing: equal to timm's for the same drawn numbers, and its distribution."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from pit_jax.augment import erasing
from pit_jax.augment.keys import image_keys

SIZE = (40, 56)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SIZE, 3)).astype(np.float32)


@pytest.fixture
def drawn(monkeypatch):
    """Records the numbers that timm draws from `random`, by function."""
    numbers = {"random": [], "uniform": [], "randint": []}

    def recording(name):
        original = getattr(random, name)

        def record(*arguments):
            value = original(*arguments)
            numbers[name].append(value)
            return value

        return record

    for name in numbers:
        monkeypatch.setattr(random, name, recording(name))
    return numbers


class TestAgainstTimm:
    def test_equal_for_the_same_draws(self, timm, drawn):
        """Shapes follow from timm's areas and ratios; positions and noise are timm's draws."""
        random.seed(0)
        torch.manual_seed(0)
        transform = timm.data.random_erasing.RandomErasing(
            probability=0.7, mode="pixel", max_count=1, device="cpu"
        )
        before = images(60)
        erased = 0
        for image in before:
            for numbers in drawn.values():
                numbers.clear()
            after = transform(torch.tensor(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
            box = [0, 0, 0, 0]
            if drawn["randint"]:
                areas, logs = np.float32(drawn["uniform"]).reshape(-1, 2).T
                shape = erasing.first_fitting(jnp.array(areas), jnp.exp(logs), SIZE)
                (top, left), (height, width) = drawn["randint"], map(int, shape)
                box = [top, top + height, left, left + width]
                erased += 1
            found = erasing.erase(image[None], jnp.array([box]), jnp.array(after)[None])
            np.testing.assert_array_equal(np.asarray(found[0]), after)
            changed = np.argwhere((after != image).all(-1))
            if len(changed):
                top, bottom, left, right = box
                assert changed.min(0).tolist() == [top, left]
                assert changed.max(0).tolist() == [bottom - 1, right - 1]
        assert 30 < erased < 55

    def test_first_that_fits(self):
        """The first try is exactly as high as the image, the second too wide, the third fits."""
        areas = jnp.array([0.25, 0.3, 0.2, 0.1])
        aspects = jnp.array([1600 / 560, 0.2, 1.0, 1.0])
        shape = erasing.first_fitting(areas, aspects, SIZE)
        assert tuple(map(int, shape)) == (21, 21)
        assert tuple(map(int, erasing.first_fitting(areas[:2], aspects[:2], SIZE))) == (0, 0)


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    draw = jax.jit(lambda keys: erasing.draw_boxes(keys, (224, 224), 0.25))
    return np.asarray(draw(image_keys(jax.random.key(1), 40_000)))


class TestDistribution:
    def test_probability(self, boxes):
        erased = np.count_nonzero(boxes[:, 1])
        assert stats.binomtest(int(erased), len(boxes), 0.25).pvalue > 1e-3

    def test_shapes(self, boxes):
        """Compares with timm's rule drawn with NumPy: areas and ratios of the first that fits."""
        rng = np.random.default_rng(0)
        reference = []
        while len(reference) < 10_000:
            area = rng.uniform(0.02, 1 / 3) * 224**2
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < 224 and width < 224:
                reference.append((height, width))
        top, bottom, left, right = boxes[boxes[:, 1] > 0].T
        height, width = bottom - top, right - left
        expected_height, expected_width = np.transpose(reference)
        for found, expected in [
            (height * width, expected_height * expected_width),
            (height / width, expected_height / expected_width),
        ]:
            assert stats.ks_2samp(found, expected).pvalue > 1e-3

    def test_positions_are_uniform_and_inside(self, boxes):
        top, bottom, left, right = boxes[boxes[:, 1] > 0].T
        assert top.min() == left.min() == 0
        assert bottom.max() == right.max() == 224
        for start, end in ((top, bottom), (left, right)):
            places = (start + np.random.default_rng(0).random(len(start))) / (225 - end + start)
            assert stats.kstest(places, "uniform").pvalue > 1e-3


class TestRandomErasing:
    """All tests share one compiled function of images, keys and probability."""

    erasing = staticmethod(jax.jit(erasing.random_erasing))

    def test_erases_with_standard_normal_noise(self):
        before = jnp.full((8, *SIZE, 3), 9.0)
        after = np.asarray(self.erasing(before, image_keys(jax.random.key(0), 8), 1.0))
        noise = after[after != 9.0]
        assert noise.size > 2_000
        assert stats.kstest(noise, "norm").pvalue > 1e-3

    def test_every_image_has_its_own_key(self):
        """Its position in the array changes nothing; its neighbours are erased differently."""
        key = jax.random.key(3)
        before = jnp.array(np.repeat(images(1), 8, axis=0))
        first = np.asarray(self.erasing(before, image_keys(key, 8), 1.0))
        later = np.asarray(self.erasing(before, image_keys(key, 8, first=5), 1.0))
        np.testing.assert_array_equal(first[5:], later[:3])
        assert len(np.unique(first.reshape(8, -1), axis=0)) == 8

    def test_never(self):
        before = jnp.array(images(8))
        found = self.erasing(before, image_keys(jax.random.key(0), 8), 0.0)
        np.testing.assert_array_equal(np.asarray(found), images(8))
