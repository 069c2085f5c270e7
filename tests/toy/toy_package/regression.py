"""A task in one file: the brightness of random pictures, measured by an error on the host."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pit_jax.models import zoo
from pit_jax.options import option
from pit_jax.training.config import ModelConfig, TrainConfig
from pit_jax.training.evaluation import EvaluationStep, outputs_over
from pit_jax.training.task import Batch, Evaluation, Metric, Network, Params, Shapes, Task
from pit_jax.weights import create

EXAMPLES = 64
SIDE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Noise of the measured brightness."""

    scale: float = option(0.01, "Standard deviation, as a share of white.", at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionConfig(TrainConfig):
    """One experiment of regression."""

    task: str = "regression"
    model: ModelConfig = dataclasses.field(
        default_factory=lambda: ModelConfig(name="toy", image_size=(SIDE, SIDE), dtype="float32")
    )
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Pictures on which weights are evaluated."""

    examples: str = option("24", "how many pictures")


class Regression(Task):
    """The mean brightness of a picture."""

    config_class = RegressionConfig
    metrics = (Metric(name="loss"), Metric(name="median_error", format=".3%"))
    main_metric = "median_error"

    def __init__(self, config: RegressionConfig):
        self.config = config
        self.network = zoo.model_config(config.model.name, **config.model.options)
        self.num_examples = EXAMPLES
        self.data = "pictures/train"

    @classmethod
    def open(cls, config: RegressionConfig) -> Self:
        return cls(config)

    without_data = open

    def batch_shapes(self, size: int) -> tuple[Shapes, ...]:
        image = jax.ShapeDtypeStruct((size, SIDE, SIDE, 3), jnp.uint8)
        return ({"image": image, "target": jax.ShapeDtypeStruct((size,), jnp.float32)},)

    def train_rows(self, first_batch: int) -> Iterator[Mapping[str, np.ndarray]]:
        rows = self.config.batch_size // jax.process_count()
        batch = first_batch
        while True:
            rng = np.random.default_rng((self.config.seed, jax.process_index(), batch))
            yield pictures(rng, rows, self.config.noise.scale)
            batch += 1

    def loss(
        self, network: Network, inputs: Batch, key: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        predicted = network(inputs["image"] / 255.0, key=key)[:, 0]
        return ((predicted - inputs["target"]) ** 2).mean(), {}

    def evaluator(self, mesh: Mesh) -> Callable[[Params], dict[str, float]]:
        return evaluator(self.network, mesh, examples=24)

    def inference(self, size: int) -> tuple[EvaluationStep, Shapes]:
        def add(params: Params, batch: Batch, sums: Batch) -> Batch:
            return {"error": sums["error"] + errors(self.network, params, batch).sum()}

        step = EvaluationStep(add, lambda: {"error": jnp.zeros(())})
        return step, self.batch_shapes(size)[0]

    @classmethod
    def evaluation_options(cls, file: Any) -> Protocol:
        return Protocol()

    @classmethod
    def evaluate(cls, file: Any, options: Protocol, **rest: Any) -> Evaluation:
        from pit_jax import sharding
        from pit_jax.models import parameters

        model = create.load_model(file.source)
        params = parameters.split(model)[1]
        mesh = sharding.make_mesh()
        metrics = evaluator(model.config, mesh, examples=int(options.examples))(params)
        return Evaluation(
            model="toy",
            parameters=parameters.count(params),
            data="pictures/test",
            options=dataclasses.asdict(options),
            metrics=metrics,
            seconds=1.0,
        )


def pictures(rng: np.random.Generator, count: int, noise: float) -> dict[str, np.ndarray]:
    """`count` pictures (B, H, W, 3) uint8 and their brightness (B,), from 0 to 1."""
    level = rng.uniform(0, 255, (count, 1, 1, 3))
    image = rng.uniform(0, level, (count, SIDE, SIDE, 3)).astype(np.uint8)
    target = image.mean((1, 2, 3)) / 255 + noise * rng.standard_normal(count)
    return {"image": image, "target": target.astype(np.float32)}


def errors(network: Any, params: Params, batch: Batch) -> jax.Array:
    """Absolute errors (B,)."""
    from pit_jax.models import parameters

    model = parameters.merge(zoo.abstract(network)[0], params)
    return jnp.abs(model(batch["image"] / 255.0)[:, 0] - batch["target"])


def evaluator(network: Any, mesh: Mesh, *, examples: int) -> Callable[[Params], dict[str, float]]:
    """The median needs all errors in one place: they are gathered, and compared on the host."""
    rng = np.random.default_rng(0)
    batches = [pictures(rng, 8 // jax.process_count(), 0.0) for _ in range(examples // 8)]

    def step(params: Params, batch: Batch) -> jax.Array:
        return errors(network, params, batch)

    outputs = outputs_over(step, mesh, batches)

    def evaluate(params: Params) -> dict[str, float]:
        found = np.concatenate(list(outputs(params)))
        median, mean = float(np.median(found)), float((found**2).mean())
        return {"median_error": median, "loss": mean, "count": len(found)}

    return evaluate
