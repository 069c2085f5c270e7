"""What a run starts from: data, initial or restored state, the compiled step."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from pit_jax import sharding
from pit_jax.data import pipeline
from pit_jax.data.loading import BadImageError
from pit_jax.models import parameters, zoo
from pit_jax.ops import lowerings
from pit_jax.training.checkpoints import Checkpoints, Progress
from pit_jax.training.placement import placement
from pit_jax.training.reporting import duration
from pit_jax.training.setup import UNTRAINED, Experiment, Setup
from pit_jax.training.state import TrainState, abstract_state, create_state
from pit_jax.training.step import make_train_step
from pit_jax.training.window import TrainingError
from pit_jax.weights.load import HeadError, load_weights

logger = logging.getLogger(__name__)


def overview(setup: Setup) -> None:
    """Says what is about to be trained, on what."""
    from clu import parameter_overview

    trained, _ = parameters.separate(setup.abstract)
    cost = zoo.cost(setup.model_config)
    logger.info(
        "parameters of %s:\n%s",
        setup.config.model.name,
        parameter_overview.get_parameter_overview(trained, include_stats=False),
    )
    logger.info(
        "%s parameters, %.3f GMACs an image; %s training and %s evaluation images; %d steps of "
        "%d images on %d %s device(s) of %d process(es)",
        f"{cost.parameters:,}",
        cost.macs / 1e9,
        f"{len(setup.train_source):,}",
        f"{len(setup.eval_source):,}",
        setup.steps.total,
        setup.config.batch_size,
        jax.device_count(),
        jax.devices()[0].device_kind,
        jax.process_count(),
    )


def start_state(setup: Setup, saved: Checkpoints) -> tuple[TrainState, Progress]:
    """The newest readable checkpoint's state and progress; else the initial state: from
    `config.init_from`, or drawn from the seed.
    """
    ema = setup.config.ema_decay is not None
    abstract = abstract_state(setup.abstract, setup.learner.optimizer, setup.mesh, ema=ema)
    restored = saved.restore_newest(abstract, seed=setup.config.seed)
    if restored is not None:
        logger.info("resuming after step %d of %s", int(restored[0].step), setup.workdir)
        return restored
    values = initial_values(setup)
    state = create_state(
        values, setup.learner.optimizer, setup.mesh, ema=ema, seed=setup.config.seed
    )
    return state, {}


def initial_values(setup: Setup) -> parameters.Params:
    """The model's values before the first step."""
    config = setup.config
    if config.init_from is None:
        return parameters.split(zoo.build(setup.model_config, seed=config.seed))[1]
    logger.info("starting from the weights %s", config.init_from)
    return _load(
        "config.init_from",
        config.init_from,
        setup.model_config,
        head=config.init_head,
        seed=config.seed,
    )


def _load(option: str, weights: str, model_config: Any, **choices: Any) -> parameters.Params:
    """Weights that an option names; what is wrong with them is a matter of the configuration."""
    try:
        return load_weights(weights, model_config, **choices)
    except ValueError as error:
        choice = isinstance(error, HeadError) and "head" in choices
        how = "; here --config.init_head=new" if choice else ""
        raise TrainingError(f"{option}={weights!r}: {error}{how}") from error


def teacher_params(setup: Setup) -> parameters.Params:
    """The teacher's values on the devices; {} without distillation."""
    weights = setup.config.distillation.teacher_weights
    if setup.teacher_config is None or weights is None:
        return {}
    if weights == UNTRAINED:
        values = parameters.split(zoo.build(setup.teacher_config, seed=setup.config.seed))[1]
    else:
        values = _load("config.distillation.teacher_weights", weights, setup.teacher_config)
    logger.info("teacher %s from %s", setup.config.distillation.teacher, weights)
    shardings = sharding.state_shardings(setup.mesh, values)
    return jax.tree.map(sharding.shard, values, shardings)


def abstract_batch(
    setup: Experiment, size: int, canvas: tuple[int, int] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a global batch of so many images, or of crops in a canvas."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "image": ((size, *(canvas or setup.config.model.image_size), 3), "uint8"),
        "label": ((size,), "int32"),
    }
    if canvas is not None:
        shapes |= {"extent": ((size, 2), "int32"), "rows_first": ((size,), "bool")}
    rows = sharding.batch_sharding(setup.mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in shapes.items()
    }


def jitted_step(setup: Experiment, state: Any) -> Any:
    """The training step as it runs; the state given to it is consumed.

    Args:
      setup: the experiment.
      state: a `TrainState`, of arrays or of shapes with shardings.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(setup.learner, setup.config)
    return jax.jit(
        lowerings.compiling_for(sharding.platform(setup.mesh))(step),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(setup.mesh)),
    )


def compile_step(setup: Experiment, state: Any, teacher: Any) -> Any:
    """The training step compiled ahead of time.

    Args:
      setup: the experiment.
      state: a `TrainState`, of arrays or of shapes with shardings.
      teacher: the teacher's values, likewise.
    """
    batch = abstract_batch(setup, setup.config.batch_size, placement(setup.config).canvas)
    began = time.monotonic()
    compiled = jitted_step(setup, state).lower(state, teacher, batch).compile()
    logger.info("compiled the training step in %s", duration(time.monotonic() - began))
    return compiled


def _reading(setup: Setup) -> pipeline.Reading:
    return pipeline.Reading(
        threads=setup.config.data.threads,
        prefetch=setup.config.data.prefetch,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def _training_rows(setup: Setup, first_batch: int) -> Any:
    """This process's rows of the training batches, as `pipeline.train_batches` gives them."""
    config = setup.config
    place = placement(config)
    views = pipeline.Views(
        size=config.model.image_size,
        scale=config.data.crop_scale,
        ratio=config.data.crop_ratio,
        flip_probability=place.host_flip,
        policy=place.host_policy,
        canvas=place.canvas,
        repeats=config.data.repeats,
    )
    return pipeline.train_batches(
        setup.train_source,
        views,
        batch_size=config.batch_size,
        seed=config.seed,
        first_batch=first_batch,
        bad_images=config.data.bad_images,
        max_bad_images=config.data.max_bad_images,
        reading=_reading(setup),
    )


class TrainBatches:
    """The global training batches on the devices, from batch `first_batch` on, without end.

    Attributes:
      bad_images: indices of the examples skipped so far, since the start: in this process, and as
        of the last `count_bad_images` in all others.

    The first ones are begun at once, while the step compiles. A thread hands this process's rows to
    the devices one batch ahead: what that takes on a busy host, the step hides. Iterating raises
    TrainingError for an image that does not decode, or one too many.
    """

    def __init__(self, setup: Setup, first_batch: int):
        self._source = setup.train_source
        self._options = setup.config.data
        self._mesh = setup.mesh
        self._rows = iter(_training_rows(setup, first_batch))
        self._rows.start_prefetch()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pit_jax batches")
        self._coming = self._thread.submit(self._make)
        self.bad_images: set[int] = set()

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, jax.Array]:
        try:
            batch, replaced = self._coming.result()
        except BadImageError as error:
            raise TrainingError(
                f"{error}; to go on without such images set config.data.bad_images='skip' and "
                "--allow_config_changes"
                if self._options.bad_images == "error"
                else f"{error}; it is one of more than {self._options.max_bad_images} in a row"
            ) from error
        self._coming = self._thread.submit(self._make)
        self._skip(replaced)
        return batch

    def _make(self) -> tuple[dict[str, jax.Array], set[int]]:
        """A batch, and what had to be replaced in it: to be counted when it is used, not before."""
        rows = dict(next(self._rows))
        replaced = rows.pop("replaced")
        batch = sharding.to_global(self._mesh, rows)
        return batch, {int(index) for index in replaced[replaced >= 0]}

    def count_bad_images(self) -> int:
        """Different examples that the whole job has skipped since its start. All processes have to
        call this at the same steps.

        Raises:
          TrainingError: they are more than `config.data.max_bad_images`; on all processes.
        """
        if self._options.bad_images == "skip" and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            enough = self._options.max_bad_images + 1
            mine = np.full(enough, -1, np.int32)
            known = sorted(self.bad_images)[:enough]
            mine[: len(known)] = known
            everybodys = multihost_utils.process_allgather(mine)
            self.bad_images |= {int(index) for index in everybodys[everybodys >= 0]}
        self._check_limit()
        return len(self.bad_images)

    def _skip(self, replaced: set[int]) -> None:
        for index in sorted(replaced - self.bad_images):
            logger.warning("%s, example %d does not decode: skipped", self._source.name, index)
        self.bad_images |= replaced
        if jax.process_count() == 1:  # one of several would leave the others waiting for it
            self._check_limit()

    def _check_limit(self) -> None:
        limit = self._options.max_bad_images
        if len(self.bad_images) > limit:
            raise TrainingError(
                f"{len(self.bad_images)} images of {self._source.name} do not decode, more than "
                f"config.data.max_bad_images={limit}: examples "
                f"{', '.join(map(str, sorted(self.bad_images)[:10]))}, ...; repair the data"
            )


def eval_batches(setup: Setup) -> Any:
    """This process's rows of the evaluation batches, iterable again and again."""
    return pipeline.eval_batches(
        setup.eval_source,
        image_size=setup.config.model.image_size,
        batch_size=setup.config.eval_batch_size,
        protocol=setup.config.data.eval_protocol,
        reading=_reading(setup),
    )
