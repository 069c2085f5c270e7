"""The interface between the trainer and a learning problem.

The trainer, the compile report, `evaluate.py` and the reporter know a task only by the class
below. A task is a folder of `pit_jax/tasks/` and a line of `tasks/registry.py`, or a class in a
package of its own, announced by an entry point. `training/` imports no task: programs look the task
up and pass it in.
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
# The model in training mode: `network(images, key=key)`. The trainer keeps the batch statistics.
Network = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that a task reports, in training or evaluation.

    Attributes:
      name: name without a prefix; logs and files say "train/NAME" and "test/NAME".
      format: format specification, as for `format()`; ".2%" suits a fraction.
      higher_is_better: whether a checkpoint with a higher value is better.
    """

    name: str
    format: str = ".4f"
    higher_is_better: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of weights on a data set.

    Attributes:
      model: name of the network.
      parameters: number of its parameters.
      data: name of data set and split.
      options: further options of the evaluation, to print.
      metrics: metrics of the task by name, without a prefix; "count" is the number of examples.
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

    `open` constructs it with its data; `without_data` constructs it for programs that are compiled
    and never run.

    Attributes:
      config_class: dataclass of all options, a subclass of `TrainConfig`.
      metrics: metrics in the order in which logs, curves and the last line print them.
      main_metric: name of the metric that ranks checkpoints.
      config: options of the experiment.
      network: configuration of the model, from `models.zoo`.
      num_examples: size of the training split.
      data: name of the training split, for messages.
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
        """Makes the task of an experiment and opens its data.

        Raises:
          ValueError: the experiment cannot run. The line names the option, what was found and what
            to do.
        """

    @classmethod
    def without_data(cls, config: Any) -> Self:
        """Makes the task for compilation alone, on a machine without the data.

        Raises:
          ValueError: as `open`.
        """
        raise ValueError(f"config.task={config.task!r} cannot be compiled without its data")

    def check(self) -> None:
        """Raises ValueError for an experiment that can be evaluated, but not trained."""
        return

    def summary(self) -> str:
        """Text for the start of a run, such as the network's cost and the data's size."""
        return f"{self.num_examples:,} training examples"

    # Computation.

    def model(self) -> tuple[nnx.GraphDef, Params]:
        """Structure of the network and shapes of its parameters."""
        return zoo.abstract(self.network, dtype=jnp.dtype(self.config.model.dtype))

    def initial_values(self) -> Params:
        """Parameters before the first step, read from `config.init_from` or drawn from the seed."""
        return initial_values(self.config, self.network)

    def constants(self) -> Params:
        """Arrays that steps read and never change, such as a teacher's weights."""
        return {}

    def abstract_constants(self) -> Params:
        """Shapes of `constants`, with nothing computed or read."""
        return {}

    @abc.abstractmethod
    def batch_shapes(self, size: int) -> tuple[Shapes, ...]:
        """Shapes of a global training batch of `size` examples, one for each form that batches
        take, the largest first. A step is compiled for each.
        """

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        """Turns a global batch, arrays (B, ...), into the inputs of the loss, arrays (B, ...).
        Augmentation on the device happens here.
        """
        del key
        return batch

    def references(self, constants: Params, inputs: Batch) -> Batch:
        """Adds to the inputs values without a gradient, such as a teacher's logits.

        They are computed outside the differentiated function, so that rematerialisation does not
        repeat them.
        """
        del constants
        return inputs

    @abc.abstractmethod
    def loss(
        self, network: Network, inputs: Batch, key: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The loss, a float32 scalar, mean over the batch; and further scalar metrics by name."""

    def moves(self, key: jax.Array, params: Params) -> Params | None:
        """Masks the parameters, and moments of the optimizer, that this step changes.

        Args:
          key: the key that `prepare` is given in this step.
          params: parameters before the step.

        Returns:
          A tree like `params` of booleans, broadcast against each array; None if all move.
        """
        del key, params
        return None

    def flops(self, *, training: bool) -> int | None:
        """Floating-point operations per example, of a training step or of a forward pass; None
        if unknown.
        """
        del training
        return None

    # Data and evaluation.

    @abc.abstractmethod
    def train_rows(self, first_batch: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Endless iterator over this process's rows of the training batches, from `first_batch` on.

        If the iterator has a method `start_prefetch()`, the trainer calls it at once. Rows may
        contain "replaced", int32 (rows,): index of the example that could not be decoded and that
        the row replaces, or -1.
        """

    @abc.abstractmethod
    def evaluator(self, mesh: Mesh) -> Callable[[Params], dict[str, float]]:
        """Makes a function from parameters to metrics of the held-out split, "count" among them.
        Every example counts once, on any number of processes.
        """

    def inference(self, size: int) -> tuple[EvaluationStep, Shapes]:
        """The evaluation step and the shapes of its global batch, for compilation."""
        raise ValueError(f"config.task={self.config.task!r} has no inference program")

    def card(self) -> dict[str, Any]:
        """Further entries for the card of a run's weights, beside the model; JSON values."""
        return {}

    # Evaluation of a weights file by `evaluate.py`.

    @classmethod
    def evaluation_options(cls, file: WeightFile) -> Any:
        """Default options for the evaluation of a file: a dataclass of options (`options.py`),
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
        """Evaluates a weights file.

        Args:
          file: content of the file, with its card.
          options: the result of `evaluation_options`, with the user's changes.
          model: a name of the zoo; None to identify the model from the file.
          batch_size: examples per step over all devices, rounded up to a multiple of their number.
          image_size: height and width in pixels; None for the file's.

        Raises:
          ValueError: the weights do not fit, or the data is missing.
        """
        del options, model, batch_size, image_size
        raise ValueError(f"{file.source}: weights of this task cannot be evaluated by themselves")


def main_metric(task: Task | type[Task]) -> Metric:
    """The metric that ranks the checkpoints of a task."""
    return next(metric for metric in task.metrics if metric.name == task.main_metric)
