"""RandAugment on the host against timm: grammar, pixels, distribution."""

import collections
import math
import random

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data import auto_augment

from pit_jax.augment import policy as policies
from pit_jax.data import randaugment_host

RECIPE = "rand-m9-mstd0.5-inc1"
# Our name -> timm's, plain and with increasing severity.
TIMM_NAMES = {
    "TranslateX": ("TranslateXRel", "TranslateXRel"),
    "TranslateY": ("TranslateYRel", "TranslateYRel"),
    "Posterize": ("Posterize", "PosterizeIncreasing"),
    "Solarize": ("Solarize", "SolarizeIncreasing"),
    **{name: (name, f"{name}Increasing") for name in policies.ENHANCING},
}


def timm_name(name: str, increasing: bool) -> str:
    return TIMM_NAMES.get(name, (name, name))[increasing]


class TestGrammar:
    @pytest.mark.parametrize(
        "text",
        [
            RECIPE,
            "rand",
            "rand-m7",
            "rand-inc1-m5-n3",
            "rand-m9-mstd0.5-inc0-p0.8",
            "rand-mstd101-m6",
            "rand-mmax20-m15-mstd1",
            "rand-m9-mstd0.5-tweights",
            "rand-t3a-inc0-n4",
            "rand-m6-n3-t3aw",
        ],
    )
    def test_reads_what_timm_reads(self, text):
        ours = policies.parse(text)
        theirs = auto_augment.rand_augment_transform(text)
        operation = theirs.ops[0]
        assert ours.layers == theirs.num_layers
        assert ours.probability == operation.prob
        assert ours.magnitude == operation.magnitude
        assert ours.magnitude_std == operation.magnitude_std
        assert ours.magnitude_max == (operation.magnitude_max or 10)
        names = [timm_name(name, ours.increasing) for name in ours.operations]
        assert sorted(names) == sorted(operation.name for operation in theirs.ops)
        if ours.weights is None:
            assert theirs.choice_weights is None
            return
        chances = dict(zip(names, np.array(ours.weights) / sum(ours.weights), strict=True))
        expected = zip(theirs.ops, theirs.choice_weights, strict=True)
        assert chances == pytest.approx({operation.name: chance for operation, chance in expected})

    def test_the_recipe(self):
        assert policies.parse(RECIPE) == policies.Policy(
            magnitude=9.0, magnitude_std=0.5, increasing=True, layers=2, probability=0.5
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("augmix-m5", "expected a RandAugment policy such as"),
            ("rand-m9-mst0.5", r"unknown section 'mst0.5' .* did you mean 'mstd'"),
            ("rand-tweight", r"unknown set 'weight' .*; did you mean 'weights'"),
            ("rand-t", "unknown set ''"),
            ("rand-t3a-t3a", "'t' appears twice"),
            ("rand-t3aw-n15", "expected at most n14"),
            ("rand-m9-", "unknown section ''"),
            ("rand-inc2", "expected a number"),
            ("rand-inc", "expected a number"),
            ("rand-m9x", "expected a number"),
            ("rand-p1.5", "expected a number"),
            ("rand-n1.5", "expected a number"),
            ("rand-m9-m8", "'m' appears twice"),
        ],
    )
    def test_refuses(self, text, message):
        with pytest.raises(ValueError, match=message):
            policies.parse(text)

    def test_infinite_deviation(self):
        assert policies.parse("rand-mstdinf").magnitude_std == math.inf


@pytest.mark.parametrize("name", policies.KNOWN)
class TestOperations:
    @pytest.mark.parametrize("increasing", [False, True])
    def test_argument_equals_timm(self, name, increasing, monkeypatch):
        level_function = auto_augment.LEVEL_TO_ARG[timm_name(name, increasing)]
        for sign in (1, -1):
            monkeypatch.setattr(random, "random", lambda sign=sign: 0.5 - 0.25 * sign)
            for level in np.concatenate([np.arange(0, 10.5, 0.5), np.linspace(0, 10, 57)]):
                value = policies.argument(name, level, sign, increasing=increasing, numpy=np)
                expected = level_function(level, {})[0] if level_function else 0
                assert value == expected

    @pytest.mark.parametrize("level", [0, 1, 4, 8.43, 9, 10])
    @pytest.mark.parametrize("sign", [-1, 1])
    def test_pixels_equal_timm(self, name, level, sign, augmented_photographs):
        function = auto_augment.NAME_TO_OP[timm_name(name, True)]
        value = policies.argument(name, level, sign, increasing=True, numpy=np)
        if name in ("Posterize", "Solarize", "SolarizeAdd"):
            value = int(value)
        elif name == "GaussianBlur":
            value = float(value)  # Pillow compares it with a tuple
        arguments = () if name in ("AutoContrast", "Equalize", "Invert") else (value,)
        options = {"fillcolor": policies.FILL, "resample": Image.Resampling.BICUBIC}
        for image in augmented_photographs:
            if (name, value) == ("Posterize", 0):
                expected = Image.new("RGB", image.size)  # timm under Pillow before 13; later raises
            else:
                expected = function(image, *arguments, **options)
            found = randaugment_host.apply_operation(image, name, value)
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("name", policies.SPECIAL)
@pytest.mark.parametrize("level", [10.0, 10.5, 20.0])
def test_what_stops_growing_at_ten(name, level):
    """timm clamps only these two."""
    expected = auto_augment.LEVEL_TO_ARG[name](level, {})[0]
    assert policies.argument(name, level, 1, increasing=True, numpy=np) == expected


class TestDistribution:
    def drawn(self, text, count):
        rng = np.random.default_rng(0)
        policy = policies.parse(text)
        return [randaugment_host.draw_operations(policy, rng) for _ in range(count)]

    def test_operations_are_uniform_and_half_are_applied(self):
        """Chi-squared test over the 15 operations; their number per image is binomial."""
        draws = self.drawn(RECIPE, 12_000)
        counts = collections.Counter(name for image in draws for name, _ in image)
        assert set(counts) == set(policies.OPERATIONS)
        assert stats.chisquare(list(counts.values())).pvalue > 1e-3
        lengths = np.bincount([len(image) for image in draws], minlength=3)
        assert stats.chisquare(lengths, 12_000 * np.array([0.25, 0.5, 0.25])).pvalue > 1e-3

    def test_repeats_happen(self):
        """With replacement: both layers are the same operation in 1 of 15 images with two."""
        pairs = [image for image in self.drawn(RECIPE, 12_000) if len(image) == 2]
        same = sum(first[0] == second[0] for first, second in pairs)
        assert stats.binomtest(same, len(pairs), 1 / 15).pvalue > 1e-3

    def test_magnitudes_are_a_clipped_normal(self):
        angles = np.array(
            [abs(v) / 3 for image in self.drawn(RECIPE, 30_000) for n, v in image if n == "Rotate"]
        )
        inside = angles[angles < 10]
        assert angles.max() == 10
        clipped = stats.binomtest(len(angles) - len(inside), len(angles), stats.norm.sf(2))
        assert clipped.pvalue > 1e-3
        truncated = stats.truncnorm(-18, 2, loc=9, scale=0.5)
        assert stats.kstest(inside, truncated.cdf).pvalue > 1e-3

    @pytest.mark.parametrize("name", [*policies.GEOMETRIC, *policies.ENHANCING])
    def test_signs_are_even(self, name):
        centre = 1.0 if name in policies.ENHANCING else 0.0
        values = [v for image in self.drawn(RECIPE, 6_000) for n, v in image if n == name]
        positive = sum(value > centre for value in values)
        assert stats.binomtest(positive, len(values), 0.5).pvalue > 1e-3

    def test_uniform_magnitudes(self):
        draws = self.drawn("rand-m8-mstdinf-p1-n1", 15_000)
        slopes = [abs(value) / 0.03 for image in draws for name, value in image if "Shear" in name]
        assert stats.kstest(slopes, stats.uniform(0, 8).cdf).pvalue > 1e-3

    def test_weights_choose_without_replacement(self):
        """The second operation of an image is drawn by the weights of the remaining ones."""
        text = "rand-m9-p1-t3aw"
        policy = policies.parse(text)
        pairs = collections.Counter(
            tuple(n for n, _ in image) for image in self.drawn(text, 20_000)
        )
        chances = dict(zip(policy.operations, np.array(policy.weights), strict=True))
        whole = sum(chances.values())
        expected = {
            (first, second): 20_000 * a / whole * b / (whole - a)
            for first, a in chances.items()
            for second, b in chances.items()
            if first != second
        }
        assert set(pairs) <= set(expected)
        observed = [pairs[pair] for pair in expected]
        assert stats.chisquare(observed, list(expected.values())).pvalue > 1e-3

    def test_a_set_without_weights_is_uniform(self):
        draws = self.drawn("rand-m9-t3a", 9_000)
        counts = collections.Counter(name for image in draws for name, _ in image)
        assert set(counts) == {"Solarize", "Desaturate", "GaussianBlur"}
        assert stats.chisquare(list(counts.values())).pvalue > 1e-3

    def test_fixed_magnitude(self):
        draws = self.drawn("rand-m8-p1-inc1", 500)
        assert {value for image in draws for name, value in image if name == "Posterize"} == {1}
        assert all(len(image) == 2 for image in draws)


class TestRandAugment:
    def test_applies_what_it_draws(self, china):
        policy = policies.parse(RECIPE)
        for seed in range(12):
            expected = china
            for name, value in randaugment_host.draw_operations(
                policy, np.random.default_rng(seed)
            ):
                expected = randaugment_host.apply_operation(expected, name, value)
            found = randaugment_host.rand_augment(china, policy, np.random.default_rng(seed))
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))

    def test_magnitudes_above_ten(self, china):
        """With `mmax` the strongest Posterize keeps nothing, the strongest plain one everything."""
        black = randaugment_host.apply_operation(china, "Posterize", -2)
        assert np.asarray(black).max() == 0
        same = randaugment_host.apply_operation(china, "Posterize", 9)
        np.testing.assert_array_equal(np.asarray(same), np.asarray(china))
