"""Learning rates against the values that DeiT's script uses."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from pit_jax.optim import schedules
from pit_jax.optim.schedules import Curve, scaled_learning_rate

# Rate by epoch, as recorded from DeiT's script with timm 0.3.4 at a peak of 1e-3, to five digits.
RECORDED = {
    (300, 5): {
        0: 1e-6,
        1: 1e-6,
        2: 2.008e-4,
        3: 4.006e-4,
        4: 6.004e-4,
        5: 8.002e-4,
        6: 9.9932e-4,
        299: 1.0109e-5,
    },
    (300, 10): {0: 1e-6, 1: 1e-6, 2: 1.009e-4, 10: 9.001e-4, 11: 9.9729e-4},
    (100, 5): {0: 1e-6, 1: 1e-6, 6: 9.9391e-4, 99: 1.0977e-5},
}
STEPS = 1251  # per epoch, at a batch of 1024


def make(name: str, *, steps_per_epoch: int, **options: Any) -> optax.Schedule:
    return schedules.SCHEDULES[name](Curve(**options), steps_per_epoch)


deit, smooth = functools.partial(make, "deit"), functools.partial(make, "smooth")


def exact(t: float, epochs: int, warmup: int) -> float:
    """The formula in double precision, at a peak of 1e-3."""
    if t < warmup:
        return 1e-6 + t * (1e-3 - 1e-6) / warmup
    return 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + np.cos(np.pi * t / epochs))


@pytest.mark.parametrize(("epochs", "warmup"), RECORDED)
def test_deit_has_the_recorded_values(epochs, warmup):
    schedule = deit(peak=1e-3, epochs=epochs, warmup_epochs=warmup, steps_per_epoch=STEPS)
    for epoch, rate in RECORDED[epochs, warmup].items():
        found = [float(schedule(epoch * STEPS + step)) for step in (0, 700, STEPS - 1)]
        assert [f"{value:.4e}" for value in found] == [f"{rate:.4e}"] * 3, epoch


@pytest.mark.parametrize(("epochs", "warmup"), [*RECORDED, (20, 0), (3, 3)])
def test_deit_is_the_formula_an_epoch_late(epochs, warmup):
    schedule = jax.jit(deit(peak=1e-3, epochs=epochs, warmup_epochs=warmup, steps_per_epoch=7))
    found = [schedule(7 * epoch + 3) for epoch in range(epochs)]
    expected = [exact(max(epoch - 1, 0), epochs, warmup) for epoch in range(epochs)]
    assert {rate.dtype.name for rate in found} == {"float32"}
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
    assert schedule(7 * epochs) == schedule(70 * epochs) == found[-1]


@pytest.mark.parametrize(("epochs", "warmup"), RECORDED)
def test_smooth_has_the_recorded_values_an_epoch_early(epochs, warmup):
    schedule = smooth(peak=1e-3, epochs=epochs, warmup_epochs=warmup, steps_per_epoch=STEPS)
    for epoch, rate in RECORDED[epochs, warmup].items():
        if epoch:
            assert f"{float(schedule((epoch - 1) * STEPS)):.4e}" == f"{rate:.4e}", epoch


def test_smooth_moves_at_every_step_and_reaches_the_end():
    schedule = jax.jit(smooth(peak=1e-3, epochs=300, warmup_epochs=5, steps_per_epoch=STEPS))
    steps = np.array([0, 1, 2, 3000, 5 * STEPS - 1, 5 * STEPS, 200_000, 200_001, 300 * STEPS])
    expected = [exact(step / STEPS, 300, 5) for step in steps]
    found = np.array([schedule(step) for step in steps])
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert found[1] > found[0]
    assert found[-2] < found[-3]
    np.testing.assert_allclose([schedule(300 * STEPS), schedule(301 * STEPS)], 1e-5, rtol=1e-6)


def test_absolute_ends_do_not_follow_the_batch():
    options = {"epochs": 10, "warmup_epochs": 2, "steps_per_epoch": 5}
    schedule = smooth(peak=scaled_learning_rate(5e-4, 4096), **options)
    np.testing.assert_allclose(schedule(0), 1e-6, rtol=1e-6)
    np.testing.assert_allclose(schedule(50), 1e-5, rtol=1e-6)
    schedule = smooth(peak=1e-3, warmup_lr=1e-4, min_lr=2e-4, **options)
    np.testing.assert_allclose([schedule(0), schedule(50)], [1e-4, 2e-4], rtol=1e-6)


def test_learning_rate_scales_with_the_batch():
    assert scaled_learning_rate(5e-4, 1024) == 1e-3
    assert scaled_learning_rate(5e-4, 512) == 5e-4
    assert scaled_learning_rate(5e-4, 64) == 6.25e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "at least one epoch, found 0"),
        ({"warmup_epochs": 11}, "between 0 and the 10 epochs trained, found 11"),
        ({"warmup_epochs": -1}, "found -1"),
    ],
)
@pytest.mark.parametrize("function", [deit, smooth])
def test_impossible_schedules_are_refused(function, options, message):
    valid = {"peak": 1e-3, "epochs": 10, "warmup_epochs": 2, "steps_per_epoch": 5}
    with pytest.raises(ValueError, match=message):
        function(**{**valid, **options})
