"""The training loop, which never waits for the device.

Metrics are fetched one step late: the next step is queued while those of the last one travel to the
host. After a step the order is log, evaluate, save: a checkpoint stores the metrics just found.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator

import jax

from pit_jax import processes
from pit_jax.data.loading import BadImageError
from pit_jax.files import replace_file
from pit_jax.models import parameters
from pit_jax.training.batches import TrainBatches
from pit_jax.training.checkpoints import Checkpoints
from pit_jax.training.errors import TrainingError
from pit_jax.training.metrics_window import MetricsWindow
from pit_jax.training.profile import Profile
from pit_jax.training.reporting import Reporter
from pit_jax.training.setup import Experiment, record
from pit_jax.training.start import compile_step, constants, overview, start_state
from pit_jax.training.stopping import graceful_shutdown
from pit_jax.training.task import Metric, main_metric
from pit_jax.training.utilisation import utilisation
from pit_jax.training.workdir import versions
from pit_jax.weights.cards import make_card
from pit_jax.weights.run_directory import RESULT_FILE, WEIGHTS_FILE
from pit_jax.weights.write import write_weights

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of a finished run.

    Attributes:
      step: number of steps done.
      metrics: metrics of the last evaluation, under "test/NAME".
      checkpoint: folder of the last checkpoint.
      weights: file of the parameters alone, for `create_model(weights=...)`.
      seconds: wall time since the last start, compilation and evaluation included.
      images_per_second: training examples since the last start, over `seconds`.
      versions: versions of the packages that affect the numbers.
      main_metric: name of the metric that ranks checkpoints, "test/NAME".
    """

    step: int
    metrics: dict[str, float]
    checkpoint: str
    weights: str
    seconds: float
    images_per_second: float
    versions: dict[str, str]
    main_metric: str = "test/top1"

    def __str__(self) -> str:
        main = f"{self.main_metric}={self.metrics[self.main_metric]:.4f}"
        return f"done: step={self.step} {main} checkpoint={self.checkpoint}"


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """Outcome of a run that was asked to stop early; starting it again continues it."""

    step: int
    checkpoint: str

    def __str__(self) -> str:
        return (
            f"interrupted: step={self.step} checkpoint={self.checkpoint}; "
            "run the same command again to continue"
        )


def run(experiment: Experiment) -> Result | Interrupted:
    """Trains an experiment from `setup.prepare`. An interrupted run is resumed; of a finished one
    the result is returned.

    Raises:
      TrainingError: the loss is not finite, or the run cannot continue for another reason.
      CheckpointError: a checkpoint cannot be written, or is of another model.
    """
    finished = _finished(experiment)
    if finished is not None:
        logger.info("%s is finished; nothing to do", experiment.workdir)
        return finished
    try:
        with contextlib.closing(_checkpoints_of(experiment)) as saved:
            return _Run(experiment, saved).to_the_end()
    except OSError as error:
        raise TrainingError(
            f"the run in {experiment.workdir} cannot continue: {error}. Earlier checkpoints are "
            "intact; free space or repair the folder, then run the same command again"
        ) from error


class _Run:
    """One start of a training: what is made once, and the loop over steps."""

    def __init__(self, experiment: Experiment, saved: Checkpoints):
        self.experiment = experiment
        self.saved = saved
        self.started = time.monotonic()
        overview(experiment)
        self.state, progress = start_state(experiment, saved)
        # Only now: the restored state has shown that the experiment fits the directory.
        record(experiment)
        self.first_step = int(self.state.step)
        self.metrics: dict[str, float] = progress.get("metrics", {})
        self.evaluated_step: int | None = None
        self.batches = TrainBatches(experiment, self.first_step)
        self.constants = constants(experiment)
        self.train_step = compile_step(experiment, self.state, self.constants)
        saved.prepare(self.state)
        self.evaluate = experiment.task.evaluator(experiment.mesh)
        config = experiment.config
        self.profile = Profile(
            experiment.directory, *config.profile_steps, total_steps=experiment.steps.total
        )
        self.window = MetricsWindow(
            progress.get("window", []),
            on_nonfinite=config.on_nonfinite,
            max_skips=config.max_skips,
            last_good=self._last_good,
        )

    def to_the_end(self) -> Result | Interrupted:
        """Trains until all steps are done or a signal asks to stop."""
        steps = self.experiment.steps
        with (
            graceful_shutdown() as stopper,
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
        self.state, metrics = self.profile.traced(
            step, self.train_step, self.state, self.constants, batch
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
        self._check_gate(step)

    def _check_gate(self, step: int) -> None:
        """Stops a run whose main metric misses the gate of this epoch.

        This comes before the checkpoint of the step: the run, started again, stops again.
        """
        epoch, within = divmod(step, self.experiment.steps.epoch)
        gate = self.experiment.config.min_metric_at.get(epoch)
        if within or gate is None:
            return
        metric, value = self.main_metric, self.metrics[self.main_metric.name]
        # A NaN is on neither side of a gate.
        if not (value >= gate if metric.higher_is_better else value <= gate):
            least = "least" if metric.higher_is_better else "most"
            raise TrainingError(
                f"test/{metric.name} after epoch {epoch} is {value:{metric.format}}, expected at "
                f"{least} {gate:{metric.format}} (config.min_metric_at): something is broken. The "
                f"curves are in {self.experiment.workdir}, the last checkpoint: "
                f"{self._last_good()}. To continue anyway: --config.min_metric_at={{}} "
                "--allow_config_changes"
            )

    def _save(self, step: int) -> None:
        self.window.settle()
        progress = {"window": self.window.rows, "metrics": self.metrics}
        evaluated = self.metrics if self.evaluated_step == step else {}
        self.saved.save(self.state, step, progress, evaluated)

    def _values(self) -> parameters.Params:
        """Values to evaluate and export: the parameters or their moving average."""
        params = self.state.ema if self.experiment.config.evaluate_ema else self.state.params
        return parameters.join(params, self.state.statistics)

    def _finish(self) -> Result:
        """Writes weights and result into the run directory."""
        total = self.experiment.steps.total
        weights = _export(self.experiment, self._values())
        seconds = time.monotonic() - self.started
        images = (total - self.first_step) * self.experiment.config.batch_size
        result = Result(
            step=total,
            metrics={f"test/{name}": value for name, value in self.metrics.items()},
            checkpoint=str(self.saved.path(total)),
            weights=weights,
            seconds=round(seconds, 3),
            images_per_second=round(images / seconds, 1),
            versions=versions(),
            main_metric=f"test/{self.main_metric.name}",
        )
        if jax.process_index() == 0:
            text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
            replace_file(self.experiment.directory / RESULT_FILE, text.encode())
        return result

    @contextlib.contextmanager
    def _reporter(self) -> Iterator[Reporter]:
        experiment = self.experiment
        steps, config, task = experiment.steps, experiment.config, experiment.task
        reporter = Reporter(
            experiment.directory,
            metrics=task.metrics,
            steps_per_epoch=steps.epoch,
            total_steps=steps.total,
            batch_size=config.batch_size,
            first_step=self.first_step,
            step_utilisation=utilisation(
                task.flops(training=True),
                examples=config.batch_size / experiment.mesh.size,
                peak=config.peak_flops,
            ),
            tensorboard=config.tensorboard,
            active=jax.process_index() == 0,
        )
        with contextlib.closing(reporter):
            yield reporter

    @property
    def main_metric(self) -> Metric:
        return main_metric(self.experiment.task)

    def _last_good(self) -> str:
        step = self.saved.latest_step()
        return "none yet" if step is None else str(self.saved.path(step))


def _checkpoints_of(experiment: Experiment) -> Checkpoints:
    """The checkpoints in the run directory, ranked by the task's main metric."""
    metric = main_metric(experiment.task)
    return Checkpoints(
        experiment.directory,
        keep=experiment.config.keep_checkpoints,
        best=metric.name,
        higher_is_better=metric.higher_is_better,
    )


def _finished(experiment: Experiment) -> Result | None:
    """The stored result of a run that has done all its steps, or None."""
    path = experiment.directory / RESULT_FILE
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    # Version 0.1 wrote "test_top1".
    stored["metrics"] = {
        name if "/" in name else name.replace("_", "/", 1): value
        for name, value in stored["metrics"].items()
    }
    result = Result(**stored)
    return result if result.step >= experiment.steps.total else None


def _export(experiment: Experiment, values: parameters.Params) -> str:
    """Writes the values into the run directory as a weights file; returns its path."""
    path = experiment.directory / WEIGHTS_FILE
    whole = processes.gather(values)
    if jax.process_index() == 0:
        config, task = experiment.config, experiment.task
        card = make_card(config.model.name, task.network, source=str(experiment.workdir))
        write_weights(path, whole, {**card, "task": config.task, **task.card()})
    return str(path)
