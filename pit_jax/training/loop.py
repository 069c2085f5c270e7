"""The training loop: named steps, nothing that waits for the device.

Metrics are fetched one step late, so the next step is already queued while the last one's numbers
travel. The order after a step matters: log, evaluate, then save with the metrics found.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator

import jax
from ml_collections import config_dict

from pit_jax import processes
from pit_jax.data.loading import BadImageError
from pit_jax.files import replace_file
from pit_jax.models import parameters
from pit_jax.training.build import (
    TrainBatches,
    compile_step,
    eval_batches,
    logger,
    overview,
    start_state,
    teacher_params,
)
from pit_jax.training.checkpoints import Checkpoints
from pit_jax.training.evaluation import make_evaluator, protocol_of
from pit_jax.training.flops_rate import utilisation
from pit_jax.training.profile import Profile
from pit_jax.training.reporting import Reporter
from pit_jax.training.setup import Setup, prepare, record, record_of
from pit_jax.training.stopping import orderly
from pit_jax.training.window import TrainingError, Window
from pit_jax.weights.cards import make_card
from pit_jax.weights.run_directory import RESULT_FILE, WEIGHTS_FILE
from pit_jax.weights.write import write_weights


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: steps done.
      metrics: of the last evaluation: "test_top1", "test_top5" (fractions), "test_loss",
        "test_count".
      checkpoint: folder of the last checkpoint.
      weights: file of the parameters alone, for `create_model(weights=...)`.
      seconds: wall time of the last start, compilation and evaluation included.
      images_per_second: training images of the last start over its wall time.
      versions: of the packages that decide the numbers.
    """

    step: int
    metrics: dict[str, float]
    checkpoint: str
    weights: str
    seconds: float
    images_per_second: float
    versions: dict[str, str]

    def __str__(self) -> str:
        top1 = self.metrics["test_top1"]
        return f"done: step={self.step} test_top1={top1:.4f} checkpoint={self.checkpoint}"


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """A run that was told to end before it had done all its steps; starting it again continues."""

    step: int
    checkpoint: str

    def __str__(self) -> str:
        return (
            f"interrupted: step={self.step} checkpoint={self.checkpoint}; "
            "run the same command again to continue"
        )


def train(config: config_dict.ConfigDict, workdir: str | os.PathLike[str]) -> Result | Interrupted:
    """Trains an experiment to its end, from wherever its directory says it is.

    Raises:
      ValueError: an experiment that cannot run; nothing has been computed then.
      TrainingError: a loss that is not finite.
      CheckpointError: a checkpoint that cannot be written, or is of another model.
    """
    return run(prepare(config, workdir))


def run(setup: Setup) -> Result | Interrupted:
    """Trains what `prepare` has checked; a finished run is reported, an interrupted one resumed."""
    finished = _finished(setup)
    if finished is not None:
        logger.info("%s is finished; nothing to do", setup.workdir)
        return finished
    config = setup.config
    try:
        with contextlib.closing(Checkpoints(setup.workdir, keep=config.keep_checkpoints)) as saved:
            return _Run(setup, saved).to_the_end()
    except OSError as error:
        raise TrainingError(
            f"the run in {setup.workdir} cannot go on: {error}. What was saved before is as it "
            "was; make room or mend the folder, then run the same command again"
        ) from error


class _Run:
    """One start of a training: what is set up once, and the loop over steps."""

    def __init__(self, setup: Setup, saved: Checkpoints):
        self.setup = setup
        self.saved = saved
        self.started = time.monotonic()
        overview(setup)
        self.state, progress = start_state(setup, saved)
        record(setup)  # not before it is known to fit what is there
        self.record = record_of(setup)
        self.first_step = int(self.state.step)
        self.metrics: dict[str, float] = progress.get("metrics", {})
        self.evaluated_step: int | None = None
        self.batches = TrainBatches(setup, progress.get("next_batch", 0))
        self.teacher = teacher_params(setup)
        self.train_step = compile_step(setup, self.state, self.teacher)
        saved.prepare(self.state)
        self.evaluate = make_evaluator(setup.learner.graphdef, setup.mesh, eval_batches(setup))
        self.profile = Profile(
            setup.workdir, *setup.config.profile_steps, total_steps=setup.steps.total
        )
        self.window = Window(
            progress.get("window", []),
            on_nonfinite=setup.config.on_nonfinite,
            max_skips=setup.config.max_skips,
            skips_in_a_row=int(jax.device_get(self.state.skipped)[0]),
            last_good=self._last_good,
        )

    def to_the_end(self) -> Result | Interrupted:
        """Trains; returns when all steps are done or the process was told to end."""
        steps = self.setup.steps
        with (
            orderly() as stopper,
            self._reporter() as reporter,
            contextlib.closing(self.profile),
        ):
            for step in range(self.first_step + 1, steps.total + 1):
                self._step(step, reporter)
                last = step == steps.total
                if step % steps.log == 0 or last:
                    self.window.settle()
                    bad = {"bad_images": self.batches.count_bad_images()}
                    reporter.training(step, self.window.means() | bad)
                if step % steps.evaluate == 0 or last:
                    self._evaluate(step, reporter)
                stop = stopper.requested(step)
                if step % steps.checkpoint == 0 or last or stop:
                    self._save(step)
                if stop and not last:
                    self.saved.wait()
                    return Interrupted(step, str(self.saved.path(step)))
            if not self.metrics:
                self._evaluate(steps.total, reporter)
        self.saved.wait()
        return self._finish()

    def _step(self, step: int, reporter: Reporter) -> None:
        began = time.monotonic()
        batch = next(self.batches)
        reporter.waited(time.monotonic() - began)
        self.state, metrics = self.profile.of(
            step, self.train_step, self.state, self.teacher, batch
        )
        fetched = self.window.add(step, metrics)
        if fetched is not None:
            reporter.step(step - 1, fetched)

    def _evaluate(self, step: int, reporter: Reporter) -> None:
        self.window.settle()
        began = time.monotonic()
        try:
            self.metrics = self.evaluate(self._values())
        except BadImageError as error:
            raise TrainingError(str(error)) from error
        self.evaluated_step = step
        reporter.evaluation(step, self.metrics, time.monotonic() - began)
        self._check_top1(step)

    def _check_top1(self, step: int) -> None:
        """Stops a run that is below a gate; before its checkpoint, so that it stays below it."""
        epoch, within = divmod(step, self.setup.steps.epoch)
        least = self.setup.config.min_top1_at.get(epoch, 0.0)
        if not within and not self.metrics["top1"] >= least:
            raise TrainingError(
                f"top-1 after epoch {epoch} is {self.metrics['top1']:.2%}, expected at least "
                f"{least:.2%} (config.min_top1_at): something is broken. The curves are in "
                f"{self.setup.workdir}, the last checkpoint: {self._last_good()}. To go on all the "
                "same: --config.min_top1_at={} --allow_config_changes"
            )

    def _save(self, step: int) -> None:
        self.window.settle()
        progress = {
            "next_batch": step,
            "window": self.window.rows,
            "metrics": self.metrics,
            **self.record,
        }
        evaluated = self.metrics if self.evaluated_step == step else {}
        self.saved.save(self.state, step, progress, evaluated)

    def _values(self) -> parameters.Params:
        """What is evaluated and exported: the parameters or their moving average."""
        params = self.state.ema if self.setup.config.evaluate_ema else self.state.params
        return parameters.join(params, self.state.statistics)

    def _finish(self) -> Result:
        """Leaves weights and result in the run directory."""
        setup, total = self.setup, self.setup.steps.total
        weights = _export(setup, self._values())
        seconds = time.monotonic() - self.started
        images = (total - self.first_step) * setup.config.batch_size
        result = Result(
            step=total,
            metrics={f"test_{name}": value for name, value in self.metrics.items()},
            checkpoint=str(self.saved.path(total)),
            weights=weights,
            seconds=round(seconds, 3),
            images_per_second=round(images / seconds, 1),
            versions=self.record["versions"],
        )
        if jax.process_index() == 0:
            text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
            replace_file(setup.workdir / RESULT_FILE, text.encode())
        return result

    @contextlib.contextmanager
    def _reporter(self) -> Iterator[Reporter]:
        steps, config = self.setup.steps, self.setup.config
        reporter = Reporter(
            self.setup.workdir,
            steps_per_epoch=steps.epoch,
            total_steps=steps.total,
            batch_size=config.batch_size,
            first_step=self.first_step,
            step_utilisation=utilisation(
                self.setup.model_config,
                self.setup.teacher_config,
                images=config.batch_size / self.setup.mesh.size,
                peak=config.peak_flops,
            ),
            tensorboard=config.tensorboard,
            active=jax.process_index() == 0,
        )
        with contextlib.closing(reporter):
            yield reporter

    def _last_good(self) -> str:
        step = self.saved.latest_step()
        return "none yet" if step is None else str(self.saved.path(step))


def _finished(setup: Setup) -> Result | None:
    """The result of a run that has done all its steps, or None."""
    path = setup.workdir / RESULT_FILE
    if not path.is_file():
        return None
    result = Result(**json.loads(path.read_text()))
    return result if result.step >= setup.steps.total else None


def _export(setup: Setup, values: parameters.Params) -> str:
    """Leaves the values in the run directory as a weights file; returns its path."""
    path = setup.workdir / WEIGHTS_FILE
    whole = processes.gather(values)
    if jax.process_index() == 0:
        card = make_card(setup.config.model.name, setup.model_config, source=str(setup.workdir))
        card["evaluation"] = protocol_of(setup.config)
        write_weights(path, whole, card)
    return str(path)
