"""The seam between the trainer and what is learnt.

The trainer, the compile report, `evaluate.py` and the reporter know a task by the class below and
nothing else of it. A task is a folder of `pit_jax/tasks/` and a line of `tasks/registry.py`, or a
class in a package of its own that announces itself by an entry point. `training/` imports no task:
programs look it up and hand it in.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from pit_jax.models import parameters, zoo
from pit_jax.training.config import TrainConfig
from pit_jax.training.evaluation import EvaluationStep
from pit_jax.training.initial import initial_values
from pit_jax.weights.read import WeightFile

Params = parameters.Params
Batch = dict[str, Any]
Shapes = dict[str, jax.ShapeDtypeStruct]
# The model in training mode: `network(images, key=key)`. Batch statistics are kept by the trainer.
Network = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that a task reports, of training or of evaluation.

    Attributes:
      name: without a prefix; logs and files say "train/NAME" and "test/NAME".
      format: how it is printed, as `format()` takes it: ".2%" of a fraction.
      higher_is_better: decides which checkpoint is the best by it.
    """

    name: str
    format: str = ".4f"
    higher_is_better: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of weights on a data set.

    Attributes:
      model: name of the network.
      parameters: how many it has.
      data: name of data set and split.
      options: how else it was evaluated, for people.
      metrics: of the task, by name without a prefix; "count" is the number of examples.
      seconds: wall time, compilation included.
    """

    model: str
    parameters: int
    data: str
    options: dict[str, Any]
    metrics: dict[str, float]
    seconds: float


class Task(abc.ABC):
    """One learning problem: its data, its loss, its metrics.

    Constructed by `open`, which opens the data, or by `without_data`, for programs that are
    compiled and never run.

    Attributes:
      config_class: dataclass of all options, a subclass of `TrainConfig`.
      metrics: what logs, curves and the last line print, in this order.
      main_metric: name of the one that ranks checkpoints.
      config: the experiment's options.
      network: configuration of the model, of `models.zoo`.
      num_examples: of the training split.
      data: the training split's name, for messages.
    """

    config_class: ClassVar[type[TrainConfig]] = TrainConfig
    metrics: ClassVar[tuple[Metric, ...]]
    main_metric: ClassVar[str]

    config: Any
    network: Any
    num_examples: int
    data: str

    @classmethod
    @abc.abstractmethod
    def open(cls, config: Any) -> Self:
        """The task of an experiment, with its data opened.

        Raises:
          ValueError: one line that names the option, what was found and what to do.
        """

    @classmethod
    def without_data(cls, config: Any) -> Self:
        """The task as the compiler needs it, on a machine that has not the data.

        Raises:
          ValueError: as from `open`.
        """
        raise ValueError(f"config.task={config.task!r} cannot be compiled without its data")

    def check(self) -> None:
        """Refuses with a ValueError what can be evaluated, but not trained."""
        return

    def summary(self) -> str:
        """A line for the start of a run: the network's cost, the data's size."""
        return f"{self.num_examples:,} training examples"

    # What is computed.

    def model(self) -> tuple[nnx.GraphDef, Params]:
        """Structure of the network, and its parameters as shapes."""
        return zoo.abstract(self.network, dtype=jnp.dtype(self.config.model.dtype))

    def initial_values(self) -> Params:
        """Parameters before the first step: of `config.init_from`, or drawn from the seed."""
        return initial_values(self.config, self.network)

    def constants(self) -> Params:
        """Arrays that every step reads and none changes, such as a teacher's weights."""
        return {}

    def abstract_constants(self) -> Params:
        """Shapes of `constants`, with nothing computed or read."""
        return {}

    @abc.abstractmethod
    def batch_shapes(self, size: int) -> tuple[Shapes, ...]:
        """Shapes of a global training batch of `size` examples. Where batches come in several
        shapes, all of them, the largest first: a step is compiled for each.
        """

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        """The whole global batch as the loss takes it: augmentation on the device. Arrays begin
        with the batch axis (B, ...).
        """
        del key
        return batch

    def references(self, constants: Params, inputs: Batch) -> Batch:
        """The inputs with what no gradient passes through, such as a teacher's logits.

        It is computed outside of what is differentiated: rematerialisation neither keeps nor
        repeats it.
        """
        del constants
        return inputs

    @abc.abstractmethod
    def loss(
        self, network: Network, inputs: Batch, key: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """A float32 scalar, a mean over the batch, and further scalar metrics by name."""

    def moves(self, key: jax.Array, params: Params) -> Params | None:
        """Which parameters and moments of the optimizer this step may change.

        Args:
          key: the one that `prepare` is given in this step.
          params: before the step.

        Returns:
          A tree like `params` of booleans, broadcast against each array; None where all move.
        """
        del key, params
        return None

    def flops(self, *, training: bool) -> int | None:
        """Floating-point operations per example, of a training step or of a forward pass; None
        where unknown.
        """
        del training
        return None

    # Data and evaluation.

    @abc.abstractmethod
    def train_rows(self, first_batch: int) -> Iterator[Mapping[str, np.ndarray]]:
        """This process's rows of the endless training batches, from batch `first_batch` on.

        An iterator with `start_prefetch()` is asked to begin at once. Rows may have "replaced",
        int32 (rows,): the example that could not be decoded and that a row stands for, or -1.
        """

    @abc.abstractmethod
    def evaluator(self, mesh: Mesh) -> Callable[[Params], dict[str, float]]:
        """A function from parameters to metrics of the held-out split, "count" among them; every
        example is counted once, on any number of processes.
        """

    def inference(self, size: int) -> tuple[EvaluationStep, Shapes]:
        """The program of an evaluation, and the shapes of its global batch, for the compiler."""
        raise ValueError(f"config.task={self.config.task!r} has no program of inference")

    def card(self) -> dict[str, Any]:
        """What the card of a run's weights says beside the model; JSON values."""
        return {}

    # What `evaluate.py` does with weights that a run or a conversion left.

    @classmethod
    def evaluation_options(cls, file: WeightFile) -> Any:
        """How weights are evaluated unless told otherwise: a dataclass of options (`options.py`),
        which become flags of `evaluate.py`.
        """
        raise ValueError(f"{file.source}: weights of this task cannot be evaluated by themselves")

    @classmethod
    def evaluate(
        cls,
        file: WeightFile,
        options: Any,
        *,
        model: str | None = None,
        batch_size: int = 256,
        image_size: tuple[int, int] | None = None,
    ) -> Evaluation:
        """Metrics of a weights file.

        Args:
          file: with its card.
          options: of `evaluation_options`, with what the user has changed.
          model: a name of the zoo; None for what the file says.
          batch_size: examples of a step over all devices, rounded up to a multiple of theirs.
          image_size: height and width, None for the file's.

        Raises:
          ValueError: weights that do not fit, data that is not there.
        """
        del options, model, batch_size, image_size
        raise ValueError(f"{file.source}: weights of this task cannot be evaluated by themselves")


def main_metric(task: Task | type[Task]) -> Metric:
    """The metric that ranks the checkpoints of a task."""
    return next(metric for metric in task.metrics if metric.name == task.main_metric)
