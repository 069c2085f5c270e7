"""Training metrics between two log lines, fetched from the devices one step late."""

import math
from collections.abc import Callable
from typing import Any

import jax

from pit_jax.training.errors import TrainingError

# Metrics that a log line gives as of the last step; of all others it gives the mean.
NEWEST = ("learning_rate", "skipped")


class MetricsWindow:
    """Collects the metrics of steps; of a skipped update it keeps only those of `NEWEST`.

    Args:
      rows: metrics of steps not yet logged, restored from a checkpoint.
      on_nonfinite: "stop" or "skip", at a loss or gradient that is not finite.
      max_skips: number of skipped updates in a row at which the run stops.
      last_good: returns the name of the last checkpoint, for messages.
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
        """Queues the metrics of a step; returns those of the step before, or None.

        Raises:
          TrainingError: the step before was not finite and "stop" is set, or too many updates in a
            row were skipped.
        """
        fetched = self.settle()
        self._queued = (step, metrics)
        return fetched

    def settle(self) -> dict[str, float] | None:
        """Fetches the queued metrics and returns them, or None; raises as `add` does.

        Call this before an evaluation or a checkpoint, so that neither sees a broken state.
        """
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
                "inspect the data, then start again with --allow_config_changes"
            )
        if in_a_row >= self._max_skips:
            raise TrainingError(
                f"{broken[0]} was not finite in {in_a_row} steps in a row, up to step "
                f"{step}; the last good checkpoint: {self._last_good()}"
            )
        self.rows.append({name: values[name] for name in NEWEST} if broken else values)
        return values

    def means(self) -> dict[str, Any]:
        """Means over the collected steps, and the newest value of each of `NEWEST`; empties the
        window. If all updates were skipped, there are no means.
        """
        rows, self.rows = self.rows, []
        finite = [row for row in rows if row.keys() - NEWEST]
        names = finite[0] if finite else {}
        means = {name: sum(row[name] for row in finite) / len(finite) for name in names}
        return means | {name: rows[-1][name] for name in NEWEST}
