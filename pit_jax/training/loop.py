"""The training loop: named steps, nothing that waits for the device.

Metrics are fetched one step late, so the next step is already queued while the last one's numbers
travel. The order at an epoch's end matters: evaluate first, then save with the metrics found.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from typing import Any

import jax
from ml_collections import config_dict

from pit_jax import flops, parallel
from pit_jax.data import pipeline
from pit_jax.training.checkpoints import Checkpoints
from pit_jax.training.evaluation import make_evaluator, protocol_of
from pit_jax.training.reporting import Reporter, duration
from pit_jax.training.setup import Setup, prepare, versions
from pit_jax.training.state import TrainState, abstract_state, create_state
from pit_jax.training.step import make_train_step
from pit_jax.weights.cards import make_card
from pit_jax.weights.files import DIRECTORY_FILE, replace_file, write_weights

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"


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


class TrainingError(RuntimeError):
    """Training went wrong in a way that continuing cannot mend."""


def train(config: config_dict.ConfigDict, workdir: str | os.PathLike[str]) -> Result:
    """Trains an experiment to its end, from wherever its directory says it is.

    Raises:
      ValueError: an experiment that cannot run; nothing has been computed then.
      TrainingError: a loss that is not finite.
    """
    return run(prepare(config, workdir))


def run(setup: Setup) -> Result:
    """Trains what `prepare` has checked; a finished run is reported, an interrupted one resumed."""
    started = time.monotonic()
    config, total = setup.config, setup.total_steps
    finished = _finished(setup)
    if finished is not None:
        logger.info("%s is finished; nothing to do", setup.workdir)
        return finished
    with contextlib.closing(Checkpoints(setup.workdir, keep=config.keep_checkpoints)) as saved:
        state, first_step = _start(setup, saved)
        train_step = _compile_step(setup, state)
        evaluate = make_evaluator(setup.graphdef, setup.mesh, _eval_batches(setup))
        batches = iter(_train_batches(setup, first_step))
        window = _Window(saved)
        with contextlib.closing(_reporter(setup, first_step)) as reporter:
            metrics: dict[str, float] = {}
            for step in range(first_step + 1, total + 1):
                batch = parallel.to_global(setup.mesh, next(batches))
                state, step_metrics = train_step(state, batch)
                window.add(step, step_metrics)
                if step % config.log_every_steps == 0:
                    reporter.training(step, window.means())
                epoch, rest = divmod(step, setup.steps_per_epoch)
                if rest:
                    continue
                if epoch % config.eval_every_epochs == 0 or step == total:
                    window.settle()
                    began = time.monotonic()
                    metrics = evaluate(state.params)
                    reporter.evaluation(step, metrics, time.monotonic() - began)
                if epoch % config.checkpoint_every_epochs == 0 or step == total:
                    window.settle()
                    saved.save(state, step, metrics)
            if not metrics:  # stopped after its last step, before its result was written
                metrics = evaluate(state.params)
        saved.wait()
        weights = _export(setup, state)
        seconds = time.monotonic() - started
        result = Result(
            step=total,
            metrics={f"test_{name}": value for name, value in metrics.items()},
            checkpoint=str(saved.path(total)),
            weights=weights,
            seconds=round(seconds, 3),
            images_per_second=round((total - first_step) * config.batch_size / seconds, 1),
            versions=versions(),
        )
    if jax.process_index() == 0:
        text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
        replace_file(setup.workdir / RESULT_FILE, text.encode())
    return result


def _start(setup: Setup, saved: Checkpoints) -> tuple[TrainState, int]:
    """The newest checkpoint's state, or a new one; and the steps it has done."""
    _overview(setup)
    step = saved.latest_step()
    if step is not None:
        logger.info("resuming from step %d of %s", step, setup.workdir)
        abstract = abstract_state(setup.model_config, setup.optimizer, setup.mesh)
        return saved.restore(step, abstract), step
    state = create_state(setup.model_config, setup.optimizer, setup.mesh, setup.config.seed)
    return state, 0


def _overview(setup: Setup) -> None:
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(setup.abstract_params, include_stats=False)
    cost = flops.cost(setup.model_config)
    logger.info("parameters of %s:\n%s", setup.config.model.name, table)
    logger.info(
        "%s parameters, %.3f GMACs an image; %s training and %s evaluation images; %d steps of "
        "%d images on %d %s device(s) of %d process(es)",
        f"{cost.parameters:,}",
        cost.macs / 1e9,
        f"{len(setup.train_source):,}",
        f"{len(setup.eval_source):,}",
        setup.total_steps,
        setup.config.batch_size,
        jax.device_count(),
        jax.devices()[0].device_kind,
        jax.process_count(),
    )


def _compile_step(setup: Setup, state: TrainState) -> Any:
    """The jitted step, compiled for this state and batch; the state given to it is consumed."""
    config = setup.config
    step = make_train_step(
        setup.graphdef,
        setup.optimizer,
        setup.schedule,
        seed=config.seed,
        num_classes=setup.model_config.num_classes,
        label_smoothing=config.label_smoothing,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(
        step, donate_argnums=0, out_shardings=(shardings, parallel.replicated(setup.mesh))
    )
    rows = parallel.batch_sharding(setup.mesh)
    images = (config.batch_size, *config.model.image_size, 3)
    batch = {
        "image": jax.ShapeDtypeStruct(images, "uint8", sharding=rows),
        "label": jax.ShapeDtypeStruct(images[:1], "int32", sharding=rows),
    }
    began = time.monotonic()
    compiled = jitted.lower(state, batch).compile()
    logger.info("compiled the training step in %s", duration(time.monotonic() - began))
    return compiled


def _reading(setup: Setup) -> pipeline.Reading:
    return pipeline.Reading(
        threads=setup.config.data.threads,
        prefetch=setup.config.data.prefetch,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def _train_batches(setup: Setup, first_step: int) -> Any:
    config = setup.config
    return pipeline.train_batches(
        setup.train_source,
        image_size=config.model.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        crop_scale=config.data.crop_scale,
        crop_ratio=config.data.crop_ratio,
        first_batch=first_step,
        reading=_reading(setup),
    )


def _eval_batches(setup: Setup) -> Any:
    return pipeline.eval_batches(
        setup.eval_source,
        image_size=setup.config.model.image_size,
        batch_size=setup.config.eval_batch_size,
        protocol=setup.config.data.eval_protocol,
        reading=_reading(setup),
    )


def _reporter(setup: Setup, first_step: int) -> Reporter:
    return Reporter(
        setup.workdir,
        steps_per_epoch=setup.steps_per_epoch,
        total_steps=setup.total_steps,
        batch_size=setup.config.batch_size,
        first_step=first_step,
        active=jax.process_index() == 0,
    )


class _Window:
    """Metrics of the steps since the last log line, each fetched when the next step is queued."""

    def __init__(self, saved: Checkpoints):
        self._saved = saved
        self._queued: tuple[int, dict[str, jax.Array]] | None = None
        self._fetched: list[dict[str, float]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.settle()
        self._queued = (step, metrics)

    def settle(self) -> None:
        """Fetches what is outstanding, so that nothing broken is evaluated or saved."""
        if self._queued is None:
            return
        step, metrics = self._queued
        self._queued = None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            last = self._saved.latest_step()
            good = f"{self._saved.path(last)}" if last is not None else "none yet"
            raise TrainingError(
                f"loss is {values['loss']} at step {step}; the last good checkpoint: {good}. "
                "Lower the learning rate, clip gradients (config.optimizer.clip_norm) or look at "
                "the data, then start again"
            )
        self._fetched.append(values)

    def means(self) -> dict[str, float]:
        """Means since the last call; of the learning rate, the newest."""
        if not self._fetched:
            self.settle()
        rows, self._fetched = self._fetched, []
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return means | {"learning_rate": rows[-1]["learning_rate"]}


def _finished(setup: Setup) -> Result | None:
    """The result of a run that has done all its steps, or None."""
    path = setup.workdir / RESULT_FILE
    if not path.is_file():
        return None
    result = Result(**json.loads(path.read_text()))
    return result if result.step >= setup.total_steps else None


def _export(setup: Setup, state: TrainState) -> str:
    """Leaves the parameters in the run directory as a weights file; returns its path."""
    path = setup.workdir / DIRECTORY_FILE
    params = parallel.gather(state.params)
    if jax.process_index() == 0:
        card = make_card(setup.config.model.name, setup.model_config, source=str(setup.workdir))
        card["evaluation"] = protocol_of(setup.config)
        write_weights(path, params, card)
    return str(path)
