"""RandAugment on the device against PIL, and its distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pit_jax.augment import randaugment_device
from pit_jax.augment.keys import image_keys
from pit_jax.augment.policy import ENHANCING, GEOMETRIC, KNOWN, OPERATIONS, argument, parse
from pit_jax.data.randaugment_host import apply_operation

RECIPE = parse("rand-m9-mstd0.5-inc1")
CASES = [(level, sign) for level in (0.0, 2.7, 8.6, 10.0) for sign in (1, -1)]
APPLY = jax.jit(functools.partial(randaugment_device.apply_operations, among=KNOWN))
EXACT = (
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Brightness",
    "GaussianBlur",
)


@pytest.fixture(scope="module")
def differences(photographs) -> dict[str, np.ndarray]:
    """For each operation, (images, H, W, 3) grey levels between PIL and the device, which gets all
    operations of a case in one batch.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in KNOWN}
    for level, sign in CASES:
        values = [argument(name, level, sign, increasing=True, numpy=np) for name in KNOWN]
        operation = np.repeat(np.arange(len(KNOWN), dtype=np.int32), len(photographs))
        value = np.repeat(np.array(values, np.float32), len(photographs))
        batch = np.tile(photographs, (len(KNOWN), 1, 1, 1))
        result = np.asarray(APPLY(batch, operation, value))
        for image, place, number, pixels in zip(batch, operation, value, result, strict=True):
            name = KNOWN[place]
            reference = apply_operation(Image.fromarray(image), name, float(number))
            found[name].append(np.abs(np.asarray(reference, np.int32) - pixels))
    return {name: np.stack(stack) for name, stack in found.items()}


class TestAgainstPIL:
    @pytest.mark.parametrize("name", KNOWN)
    def test_within_two_levels(self, differences, name):
        """The bound holds for every image and case, not on average."""
        close = (differences[name] <= 2).mean((1, 2, 3))
        assert close.min() >= 0.999

    @pytest.mark.parametrize("name", [name for name in KNOWN if name not in GEOMETRIC])
    def test_within_one_level_everywhere(self, differences, name):
        assert differences[name].max() <= (0 if name in EXACT else 1)

    @pytest.mark.parametrize("name", GEOMETRIC)
    def test_geometry_is_mostly_exact(self, differences, name):
        """Only pixels on the edge of the uncovered part differ by more than one level."""
        assert (differences[name] == 0).mean() >= 0.999
        assert (differences[name] > 1).mean() <= 1e-4

    @pytest.mark.parametrize("name", ENHANCING)
    def test_degenerate_images_equal_pil_s(self, photographs, name):
        """Factor 0 leaves grey, the mean grey, black, the smoothed image."""
        operation = jnp.full(4, OPERATIONS.index(name))
        result = np.asarray(APPLY(photographs, operation, jnp.zeros(4)))
        for image, pixels in zip(photographs, result, strict=True):
            expected = apply_operation(Image.fromarray(image), name, 0.0)
            np.testing.assert_array_equal(pixels, np.asarray(expected))

    def test_nothing(self, photographs):
        count = len(photographs)
        operation = jnp.full(count, randaugment_device.NOTHING)
        result = APPLY(photographs, operation, jnp.ones(count))
        np.testing.assert_array_equal(np.asarray(result), photographs)

    def test_magnitudes_above_ten(self, photographs):
        """Posterize gives black below zero bits, and the image itself from eight on."""
        operation = jnp.full(4, OPERATIONS.index("Posterize"))
        value = jnp.array([-3.0, 8.0, 0.0, 11.0])
        result = np.asarray(APPLY(photographs, operation, value))
        assert result[0].max() == result[2].max() == 0
        np.testing.assert_array_equal(result[1::2], photographs[1::2])

    @pytest.mark.parametrize("size", [(2, 9), (9, 1)])
    def test_images_too_small_to_smooth(self, size):
        image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
        operation = jnp.array([OPERATIONS.index("Sharpness")])
        result = APPLY(image, operation, jnp.array([1.8]))
        reference = apply_operation(Image.fromarray(image[0]), "Sharpness", 1.8)
        np.testing.assert_array_equal(np.asarray(result[0]), np.asarray(reference))


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Operations and values of the recipe for many images."""
    draw = jax.jit(lambda keys: randaugment_device.draw_operations(keys, RECIPE))
    operations, values = draw(image_keys(jax.random.key(0), 40_000))
    return np.asarray(operations), np.asarray(values)


def of(drawn, name: str) -> np.ndarray:
    operations, values = drawn
    return values[operations == OPERATIONS.index(name)]


class TestDistribution:
    def test_operations_are_uniform_and_half_are_applied(self, drawn):
        operations, _ = drawn
        assert operations.shape == (40_000, 2)
        counts = np.bincount(operations[operations >= 0], minlength=len(OPERATIONS))
        assert stats.chisquare(counts).pvalue > 1e-3
        lengths = np.bincount((operations >= 0).sum(1), minlength=3)
        assert stats.chisquare(lengths, 40_000 * np.array([0.25, 0.5, 0.25])).pvalue > 1e-3
        both = operations[(operations >= 0).all(1)]
        assert (
            stats.binomtest(int((both[:, 0] == both[:, 1]).sum()), len(both), 1 / 15).pvalue > 1e-3
        )

    def test_magnitudes_are_a_clipped_normal(self, drawn):
        angles = np.abs(of(drawn, "Rotate")) / 3
        inside = angles[angles < 9.9999]
        clipped = stats.binomtest(len(angles) - len(inside), len(angles), stats.norm.sf(2))
        assert clipped.pvalue > 1e-3
        truncated = stats.truncnorm(-18, 2, loc=9, scale=0.5)
        assert stats.kstest(inside, truncated.cdf).pvalue > 1e-3

    @pytest.mark.parametrize("name", [*GEOMETRIC, *ENHANCING])
    def test_signs_are_even(self, drawn, name):
        values = of(drawn, name)
        positive = int((values > (1.0 if name in ENHANCING else 0.0)).sum())
        assert stats.binomtest(positive, len(values), 0.5).pvalue > 1e-3

    @pytest.mark.parametrize("name", KNOWN)
    def test_arguments_equal_the_host_s(self, name):
        """Compared at every whole and half magnitude, both signs, plain and increasing."""
        levels = np.arange(0, 10.5, 0.5)
        for increasing in (False, True):
            for sign in (1, -1):
                value = argument(
                    name, jnp.array(levels, jnp.float32), sign, increasing=increasing, numpy=jnp
                )
                expected = [
                    argument(name, level, sign, increasing=increasing, numpy=np) for level in levels
                ]
                np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-6)

    def test_values_are_those_of_the_operation(self, drawn):
        assert set(of(drawn, "Posterize")) == {0, 1, 2}
        assert set(of(drawn, "Invert")) == {0}
        slopes = np.abs(of(drawn, "ShearX")) / 0.03
        assert 6 < slopes.min() < 8
        assert slopes.max() == pytest.approx(10)
        factors = of(drawn, "Color")
        assert factors.min() == pytest.approx(0.1)
        assert factors.max() == pytest.approx(1.9)

    def test_other_policies(self):
        policy = parse("rand-m8-mstdinf-p1-n1")
        draw = jax.jit(lambda keys: randaugment_device.draw_operations(keys, policy))
        operations, values = map(np.asarray, draw(image_keys(jax.random.key(0), 30_000)))
        assert operations.shape == (30_000, 1)
        assert operations.min() == 0
        levels = np.abs(of((operations, values), "TranslateX")) / 0.045
        assert stats.kstest(levels, stats.uniform(0, 8).cdf).pvalue > 1e-3

    @pytest.mark.parametrize("text", ["rand-m9-p1-t3a", "rand-m9-p1-t3aw", "rand-m9-p1-tweights"])
    def test_other_sets(self, text):
        """The first by the weights, the second by the weights of the rest, equally strong."""
        policy = parse(text)
        draw = jax.jit(lambda keys: randaugment_device.draw_operations(keys, policy))
        operations, values = map(np.asarray, draw(image_keys(jax.random.key(0), 20_000)))
        places = [KNOWN.index(name) for name in policy.operations]
        pairs = np.zeros((len(KNOWN), len(KNOWN)))
        np.add.at(pairs, tuple(operations.T), 1)
        weights = np.array(policy.weights or [1.0] * len(places))
        first = weights / weights.sum()
        second = np.tile(first, (len(places), 1))
        if policy.weights is not None:
            second = (1 - np.eye(len(places))) * weights
            second /= second.sum(1, keepdims=True)
        expected = 20_000 * first[:, None] * second
        found = pairs[np.ix_(places, places)]
        assert found.sum() == 20_000
        assert found[expected == 0].sum() == 0
        often = expected >= 5
        rest = [found[~often].sum()], [expected[~often].sum()]
        observed, chances = (
            np.concatenate([x[often], y]) for x, y in zip((found, expected), rest, strict=True)
        )
        if not chances[-1]:
            observed, chances = observed[:-1], chances[:-1]
        assert stats.chisquare(observed, chances).pvalue > 1e-3
        solarized = values[operations == KNOWN.index("Solarize")]
        assert set(solarized) == {256 - int(0.9 * 256)}


class TestRandAugment:
    @pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1-p1", "rand-m9-mstd0.5-p1-t3aw"])
    def test_applies_what_it_draws(self, photographs, text):
        """Layer after layer, as PIL would."""
        policy = parse(text)
        count = 24
        batch = np.tile(photographs[:3], (count // 3, 1, 1, 1))
        keys = image_keys(jax.random.key(4), count)

        @jax.jit
        def run(images, keys):
            drawn = randaugment_device.draw_operations(keys, policy)
            return *drawn, randaugment_device.rand_augment(images, keys, policy)

        operations, values, result = map(np.asarray, run(batch, keys))
        far = 0
        for i in range(count):
            image = Image.fromarray(batch[i])
            for operation, value in zip(operations[i], values[i], strict=True):
                image = apply_operation(image, KNOWN[operation], float(value))
            differences = np.abs(np.asarray(image, np.int32) - result[i])
            # The second operation can turn one level into many: at a threshold, or by stretching.
            far += (differences > 2).mean() > 0.01
        assert far <= 1
