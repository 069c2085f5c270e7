"""Training metrics between log lines, each fetched only when the next step is queued."""

import math
from collections.abc import Callable
from typing import Any

import jax

from pit_jax.training.errors import TrainingError

# Metrics of which a log line gives the last step's value; of all others the mean.
NEWEST = ("learning_rate", "skipped")


class Window:
    """Collects the metrics of steps; of a step whose update was skipped only those of `NEWEST`.

    Args:
      rows: metrics left over from before an interruption.
      on_nonfinite: "stop" or "skip".
      max_skips: skipped updates in a row that stop the run.
      last_good: names the last checkpoint, for the message.
    """

    def __init__(
        self,
        rows: list[dict[str, float]],
        *,
        on_nonfinite: str,
        max_skips: int,
        last_good: Callable[[], str],
    ):
        self.rows = list(rows)
        self._on_nonfinite = on_nonfinite
        self._max_skips = max_skips
        self._last_good = last_good
        self._queued: tuple[int, dict[str, jax.Array]] | None = None

    def add(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float] | None:
        """Queues the metrics of a step; those of the step before, now fetched, or None.

        Raises:
          TrainingError: the step before was not finite, and config or patience say to stop.
        """
        fetched = self.settle()
        self._queued = (step, metrics)
        return fetched

    def settle(self) -> dict[str, float] | None:
        """Fetches what is queued, so that nothing broken is evaluated or saved; raises as `add`."""
        if self._queued is None:
            return None
        step, metrics = self._queued
        self._queued = None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        broken = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
        in_a_row = values.pop("skipped_in_a_row")
        if broken and self._on_nonfinite == "stop":
            raise TrainingError(
                f"{broken[0]} is {values[broken[0]]} at step {step}; the last good checkpoint: "
                f"{self._last_good()}. Lower the learning rate, clip gradients "
                "(config.optimizer.clip_norm), skip such updates (config.on_nonfinite='skip') or "
                "look at the data, then start again with --allow_config_changes"
            )
        if in_a_row >= self._max_skips:
            raise TrainingError(
                f"{broken[0]} was not finite in {in_a_row} steps in a row, up to step "
                f"{step}; the last good checkpoint: {self._last_good()}"
            )
        self.rows.append({name: values[name] for name in NEWEST} if broken else values)
        return values

    def means(self) -> dict[str, Any]:
        """Means over the collected steps, of learning rate and skips the newest; then empty. Where
        all updates were skipped there are no means, only the newest.
        """
        rows, self.rows = self.rows, []
        finite = [row for row in rows if row.keys() - NEWEST]
        names = finite[0] if finite else {}
        means = {name: sum(row[name] for row in finite) / len(finite) for name in names}
        return means | {name: rows[-1][name] for name in NEWEST}
