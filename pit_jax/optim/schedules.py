"""Learning-rate schedules: functions from the optimizer step (from 0) to a learning rate.

Both are DeiT's linear warm-up and cosine. The cosine counts from epoch 0, so that the warm-up hides
its beginning. In epochs t, with E in total and W of warm-up:

    t < W:  warmup_lr + t * (peak - warmup_lr) / W
    else:   min_lr + (peak - min_lr) * (1 + cos(pi * t / E)) / 2

The two schedules differ in the t of a step.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# DeiT states learning rates for this batch size and scales them with the batch.
REFERENCE_BATCH = 512


def scaled_learning_rate(base: float, batch_size: int) -> float:
    """Returns base * batch_size / 512, DeiT's linear rule for the global batch of one step."""
    return base * batch_size / REFERENCE_BATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Learning rate over time in epochs, by the formula of the module.

    Attributes:
      peak: learning rate that the warm-up aims at, already scaled (`scaled_learning_rate`).
      epochs: E, warm-up included.
      warmup_epochs: W, 0 for none.
      warmup_lr: learning rate at the start of the warm-up; not scaled with the batch.
      min_lr: learning rate at the end of the cosine; not scaled either.

    Raises:
      ValueError: no epochs, or a warm-up that is negative or longer than the training.
    """

    peak: float
    epochs: int
    warmup_epochs: int
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"a schedule needs at least one epoch, found {self.epochs}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"warmup_epochs must be between 0 and the {self.epochs} epochs trained, found "
                f"{self.warmup_epochs}"
            )

    def at(self, t: Any, xp: Any) -> Any:
        """Returns the learning rate at times `t` in epochs, arrays of `xp` (numpy or jax.numpy)."""
        slope = (self.peak - self.warmup_lr) / max(self.warmup_epochs, 1)
        cosine = (1 + xp.cos(math.pi * t / self.epochs)) / 2
        cosine = self.min_lr + (self.peak - self.min_lr) * cosine
        return xp.where(t < self.warmup_epochs, self.warmup_lr + t * slope, cosine)


def deit(curve: Curve, steps_per_epoch: int) -> optax.Schedule:
    """Returns the schedule of DeiT's script as it runs: constant within an epoch, an epoch late.

    The script advances the schedule after the epoch just trained, so that epoch e trains at
    t = max(e - 1, 0): the first two epochs at `warmup_lr`, and `min_lr` is never quite reached.
    Steps beyond the last epoch get the learning rate of the last epoch.
    """
    times = np.maximum(np.arange(curve.epochs) - 1.0, 0.0)
    table = curve.at(times, np).astype(np.float32)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        return jnp.asarray(table)[jnp.minimum(epoch, curve.epochs - 1)]

    return schedule


def smooth(curve: Curve, steps_per_epoch: int) -> optax.Schedule:
    """Returns the schedule that follows the curve at every step, on time: t = step /
    steps_per_epoch.

    At a whole epoch it has the value that `deit` has one epoch later.
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step, jnp.float32) / steps_per_epoch
        return curve.at(jnp.minimum(t, curve.epochs), jnp)

    return schedule


# Name -> function from a curve and the optimizer steps per epoch to a schedule, float32.
SCHEDULES = {"deit": deit, "smooth": smooth}
