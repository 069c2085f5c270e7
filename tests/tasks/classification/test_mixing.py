"""Mixup and CutMix: equal to timm's for the same draws, within groups; distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from pit_jax.tasks.classification import mixing

SIZE = (24, 32)
CLASSES = 10


def batch(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, *SIZE, 3)).astype(np.float32), rng.integers(
        CLASSES, size=count
    )


def only(kind: str, ratio: float, box=(0, 0, 0, 0)) -> mixing.Mixing:
    return mixing.Mixing(
        jnp.array([ratio], jnp.float32), jnp.array([kind == "cutmix"]), jnp.array([box], jnp.int32)
    )


class TestAgainstTimm:
    @pytest.mark.parametrize("kind", ["mixup", "cutmix"])
    def test_equal_for_the_same_draws(self, timm, monkeypatch, kind):
        """Each group is mixed as one of timm's processes would mix it."""
        groups, group = 12, 6
        before, labels = batch(groups * group)
        alphas = {"mixup_alpha": 0.8 * (kind == "mixup"), "cutmix_alpha": 1.0 * (kind == "cutmix")}
        transform = timm.data.Mixup(**alphas, label_smoothing=0.1, num_classes=CLASSES)
        rng = np.random.default_rng(7)
        ratios = rng.beta(0.8, 0.8, groups)
        centres = np.stack([rng.integers(0, length, groups) for length in SIZE], 1)
        boxes, kept = jax.vmap(lambda ratio, centre: mixing.cutmix_box(ratio, centre, SIZE))(
            jnp.array(ratios, jnp.float32), tuple(jnp.array(centres.T))
        )
        drawn = mixing.Mixing(
            kept if kind == "cutmix" else jnp.array(ratios, jnp.float32),
            jnp.full(groups, kind == "cutmix"),
            boxes,
        )
        found = jax.jit(mixing.mix_images)(before, drawn)
        targets = mixing.mix_targets(jnp.array(labels), drawn, CLASSES, 0.1)
        for i in range(groups):
            rows = slice(i * group, (i + 1) * group)
            numbers = iter(centres[i])
            monkeypatch.setattr(np.random, "beta", lambda a, b, i=i: ratios[i])
            monkeypatch.setattr(np.random, "randint", lambda *a, size, n=numbers: next(n))
            images = torch.tensor(before[rows]).permute(0, 3, 1, 2).contiguous()
            expected, expected_targets = transform(images, torch.tensor(labels[rows]))
            np.testing.assert_allclose(
                np.asarray(found[rows]), expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6
            )
            np.testing.assert_allclose(
                np.asarray(targets[rows]), expected_targets.numpy(), rtol=0, atol=1e-6
            )

    def test_a_ratio_of_one_changes_nothing(self):
        before, labels = batch(4)
        for kind in ("mixup", "cutmix"):
            found = mixing.mix_images(jnp.array(before), only(kind, 1.0))
            np.testing.assert_array_equal(np.asarray(found), before)
            targets = mixing.mix_targets(jnp.array(labels), only(kind, 1.0), CLASSES)
            np.testing.assert_array_equal(np.asarray(targets), np.eye(CLASSES)[labels])


class TestMixing:
    def test_partners_stay_in_the_group(self):
        """Each group is its own reverse at ratio 0."""
        before, labels = batch(12)
        drawn = mixing.Mixing(jnp.zeros(3), jnp.zeros(3, bool), jnp.zeros((3, 4), jnp.int32))
        order = np.array([3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8])
        found = mixing.mix_images(jnp.array(before), drawn)
        np.testing.assert_array_equal(np.asarray(found), before[order])
        targets = mixing.mix_targets(jnp.array(labels), drawn, CLASSES)
        np.testing.assert_array_equal(np.asarray(targets), np.eye(CLASSES)[labels[order]])

    def test_smoothing(self):
        targets = mixing.mix_targets(jnp.array([3, 3]), only("mixup", 0.3), CLASSES, 0.1)
        expected = np.full(CLASSES, 0.01)
        expected[3] = 0.91
        np.testing.assert_allclose(np.asarray(targets), np.tile(expected, (2, 1)), atol=1e-7)

    @pytest.mark.parametrize(("images", "groups"), [(10, 4), (9, 3), (6, 6)])
    def test_refuses_odd_groups(self, images, groups):
        drawn = mixing.Mixing(
            jnp.ones(groups), jnp.zeros(groups, bool), jnp.zeros((groups, 4), jnp.int32)
        )
        with pytest.raises(ValueError, match=f"{groups} groups of an even number .* {images} im"):
            mixing.mix_images(jnp.zeros((images, *SIZE, 3)), drawn)


class TestDistribution:
    # The options are traced, so that one compilation serves all tests of a size.
    compiled = staticmethod(jax.jit(mixing.draw_mixing, static_argnums=(1, 2)))

    def draw(self, count=20_000, mixup_alpha=0.8, cutmix_alpha=1.0, probability=1.0):
        return self.compiled(
            jax.random.key(0),
            count,
            (224, 224),
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
            probability=probability,
            switch_probability=0.5,
        )

    def test_modes_and_mixup_ratios(self):
        drawn = self.draw()
        cuts = np.asarray(drawn.cuts)
        assert stats.binomtest(int(cuts.sum()), len(cuts), 0.5).pvalue > 1e-3
        ratios = np.asarray(drawn.ratio)[~cuts]
        assert stats.kstest(ratios, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3

    def test_cutmix_boxes(self):
        """Ratios are those of the clipped boxes. Sides follow Beta(1, 1), centres are uniform."""
        drawn = self.draw(mixup_alpha=0.0)
        assert np.asarray(drawn.cuts).all()
        top, bottom, left, right = np.asarray(drawn.box).T
        assert min(top.min(), left.min()) == 0
        assert max(bottom.max(), right.max()) == 224
        area = (bottom - top) * (right - left)
        np.testing.assert_allclose(np.asarray(drawn.ratio), 1 - area / 224**2, atol=1e-6)
        inside = (top > 0) & (bottom < 224) & (left > 0) & (right < 224)
        assert (bottom - top)[inside].tolist() == (right - left)[inside].tolist()

        rng = np.random.default_rng(0)
        side = (224 * np.sqrt(rng.uniform(size=20_000))).astype(int)
        middle = rng.integers(0, 224, 20_000)
        length = np.clip(middle + (side + 1) // 2, 0, 224) - np.clip(middle - side // 2, 0, 224)
        assert stats.ks_2samp(bottom - top, length).pvalue > 1e-3
        assert stats.ks_2samp(right - left, length).pvalue > 1e-3

    def test_probability(self):
        drawn = self.draw(probability=0.3)
        mixed = np.asarray(drawn.ratio) < 1
        assert stats.binomtest(int(mixed.sum()), mixed.size, 0.3).pvalue > 1e-3
        assert not np.asarray(drawn.cuts)[~mixed].any()

    def test_off(self):
        drawn = self.draw(mixup_alpha=0.0, cutmix_alpha=0.0)
        assert (np.asarray(drawn.ratio) == 1).all()
        assert not np.asarray(drawn.cuts).any()

    @pytest.mark.parametrize("alpha", [0.2, 0.5, 0.6, 0.8, 1.0, 5.0])
    def test_mixup_ratios(self, alpha):
        """The comparison leaves out values that float32 cannot tell from 0 or 1."""
        drawn = self.draw(cutmix_alpha=0.0, mixup_alpha=alpha)
        assert not np.asarray(drawn.cuts).any()
        ratios = np.clip(np.asarray(drawn.ratio, np.float64), 1e-4, 1 - 1e-4)
        levels = np.linspace(0.01, 0.99, 99)
        expected = stats.beta(alpha, alpha).cdf(levels) * len(ratios)
        counts = np.diff([0, *np.searchsorted(np.sort(ratios), levels), len(ratios)])
        assert stats.chisquare(counts, np.diff([0, *expected, len(ratios)])).pvalue > 1e-3

    def test_tiny_alphas_stay_finite(self):
        ratios = np.asarray(self.draw(cutmix_alpha=0.0, mixup_alpha=1e-3).ratio)
        assert ((ratios >= 0) & (ratios <= 1)).all()
        assert ((ratios < 1e-6) | (ratios > 1 - 1e-6)).mean() > 0.95

    def test_a_group_draws_the_same_in_any_batch(self):
        first = self.draw(30)
        more = self.draw()
        for few, many in zip(first, more, strict=True):
            np.testing.assert_array_equal(np.asarray(few), np.asarray(many)[:30])
