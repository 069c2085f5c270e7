"""Learning-rate schedules: functions from the optimizer step (from 0) to a learning rate.

Both are DeiT's linear warm-up and cosine, the cosine counted from epoch 0 so that the warm-up hides
its beginning: in units of epochs t, of E in total and W of warm-up,

    t < W:  warmup_lr + t * (peak - warmup_lr) / W
    else:   min_lr + (peak - min_lr) * (1 + cos(pi * t / E)) / 2

They differ in the t of a step.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pit_jax.errors import suggestion

# DeiT states learning rates for this batch size, and scales them with the batch.
REFERENCE_BATCH = 512


def scaled_learning_rate(base: float, batch_size: int) -> float:
    """base * batch_size / 512, for the global batch of one optimizer step (DeiT's linear rule)."""
    return base * batch_size / REFERENCE_BATCH


def deit(
    *,
    peak: float,
    epochs: int,
    warmup_epochs: int,
    steps_per_epoch: int,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-5,
) -> optax.Schedule:
    """The schedule of DeiT's script as it runs: constant within an epoch, and an epoch late.

    The script moves the schedule on after the epoch it has just trained, so that epoch e trains at
    t = max(e - 1, 0): the first two epochs at `warmup_lr`, and `min_lr` is never quite reached.

    Args:
      peak: learning rate the warm-up aims at, already scaled (`scaled_learning_rate`).
      epochs: total epochs, warm-up included.
      warmup_epochs: epochs of warm-up, 0 for none.
      steps_per_epoch: optimizer steps per epoch.
      warmup_lr: where the warm-up starts; absolute, not scaled with the batch.
      min_lr: where the cosine ends; absolute too.

    Returns:
      step -> float32 learning rate; steps beyond the last epoch get that of the last.

    Raises:
      ValueError: no epochs or no steps, or a warm-up that is negative or longer than the training.
    """
    _check(epochs, warmup_epochs, steps_per_epoch)
    curve = _Curve(peak, epochs, warmup_epochs, warmup_lr, min_lr)
    table = curve.at(np.maximum(np.arange(epochs) - 1.0, 0.0), np).astype(np.float32)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        return jnp.asarray(table)[jnp.minimum(epoch, epochs - 1)]

    return schedule


def smooth(
    *,
    peak: float,
    epochs: int,
    warmup_epochs: int,
    steps_per_epoch: int,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-5,
) -> optax.Schedule:
    """The same curve followed at every step, on time: t = step / steps_per_epoch.

    At whole epochs t it has the value that `deit` has one epoch later. Arguments, result and errors
    as `deit`.
    """
    _check(epochs, warmup_epochs, steps_per_epoch)
    curve = _Curve(peak, epochs, warmup_epochs, warmup_lr, min_lr)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step, jnp.float32) / steps_per_epoch
        return curve.at(jnp.minimum(t, epochs), jnp)

    return schedule


SCHEDULES = {"deit": deit, "smooth": smooth}


def make_schedule(
    name: str,
    *,
    peak: float,
    epochs: int,
    warmup_epochs: int,
    steps_per_epoch: int,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-5,
) -> optax.Schedule:
    """A schedule of `SCHEDULES` by name; arguments and errors as `deit`.

    Raises:
      ValueError: also for an unknown name.
    """
    if name not in SCHEDULES:
        raise ValueError(
            f"unknown schedule {name!r}{suggestion(name, SCHEDULES)}; there are "
            f"{', '.join(SCHEDULES)}"
        )
    return SCHEDULES[name](
        peak=peak,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_lr=warmup_lr,
        min_lr=min_lr,
    )


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Learning rate over time in epochs."""

    peak: float
    epochs: int
    warmup_epochs: int
    warmup_lr: float
    min_lr: float

    def at(self, t: Any, xp: Any) -> Any:
        """The formula of the module, for times in the arrays of `xp` (numpy or jax.numpy)."""
        slope = (self.peak - self.warmup_lr) / max(self.warmup_epochs, 1)
        cosine = (1 + xp.cos(math.pi * t / self.epochs)) / 2
        cosine = self.min_lr + (self.peak - self.min_lr) * cosine
        return xp.where(t < self.warmup_epochs, self.warmup_lr + t * slope, cosine)


def _check(epochs: int, warmup_epochs: int, steps_per_epoch: int) -> None:
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(
            "a schedule needs at least one epoch of at least one step, found "
            f"epochs={epochs}, steps_per_epoch={steps_per_epoch}"
        )
    if not 0 <= warmup_epochs <= epochs:
        raise ValueError(
            f"warmup_epochs must be between 0 and the {epochs} epochs trained, found "
            f"{warmup_epochs}"
        )
