"""Image classification, as a task of the trainer."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from pit_jax.augment.resize import resize
from pit_jax.models import parameters, zoo
from pit_jax.tasks.classification.augmentation import training_batch
from pit_jax.tasks.classification.config import ClassificationConfig, Protocol
from pit_jax.tasks.classification.losses import cross_entropy, distillation_loss
from pit_jax.tasks.classification.networks import UNTRAINED, network_of, teacher_of
from pit_jax.tasks.classification.placement import Placement, placement
from pit_jax.training import initial
from pit_jax.training.evaluation import EvaluationStep
from pit_jax.training.task import Batch, Evaluation, Metric, Network, Params, Shapes, Task
from pit_jax.weights.read import WeightFile

logger = logging.getLogger(__name__)

# Images in ImageNet's training split. Without data, the number sets constants of the schedule.
IMAGENET_IMAGES = 1_281_167


class Classification(Task):
    """Learns the classes of images; with distillation, also the outputs of a teacher.

    Args:
      config: options of the experiment.
      network: configuration of the model.
      teacher: configuration of the teacher; None without distillation.
      place: division of the input pipeline between host and device; None to decide it here.
      num_examples: size of the training split.
      data: name of the training split.
      train_source, eval_source: the opened splits; None in a task without data.
    """

    config_class = ClassificationConfig
    metrics = (
        Metric(name="loss", format=".4f"),
        Metric(name="top1", format=".2%", higher_is_better=True),
        Metric(name="top5", format=".2%", higher_is_better=True),
    )
    main_metric = "top1"

    config: ClassificationConfig

    def __init__(
        self,
        config: ClassificationConfig,
        network: Any,
        *,
        teacher: Any | None = None,
        place: Placement | None = None,
        num_examples: int = IMAGENET_IMAGES,
        data: str = "imagenet2012/train",
        train_source: Any = None,
        eval_source: Any = None,
    ):
        self.config = config
        self.num_examples = num_examples
        self.data = data
        self.train_source = train_source
        self.eval_source = eval_source
        self.placement = place or placement(config)
        self.network = network
        self.teacher = teacher

    @classmethod
    def open(cls, config: ClassificationConfig) -> Self:
        from pit_jax.data.sources import check_splits, open_source

        # Mistakes are found before data is opened, which may prepare it for hours.
        place = placement(config)
        network_of(config, config.model.num_classes or 1)
        train = open_source(config.data.name, config.data.train_split, config.data.data_dir)
        held_out = open_source(config.data.name, config.data.eval_split, config.data.data_dir)
        check_splits(train, held_out)
        network = network_of(config, held_out.num_classes)
        return cls(
            config,
            network,
            teacher=teacher_of(config, network),
            place=place,
            num_examples=len(train),
            data=train.name,
            train_source=train,
            eval_source=held_out,
        )

    @classmethod
    def without_data(cls, config: ClassificationConfig) -> Self:
        classes = config.model.num_classes or zoo.model_config(config.model.name).num_classes
        network = network_of(config, classes)
        return cls(
            config,
            network,
            teacher=teacher_of(config, network),
            num_examples=max(IMAGENET_IMAGES, config.batch_size),
            data=f"{config.data.name}/{config.data.train_split}",
        )

    def check(self) -> None:
        """Refuses mixing groups that do not divide the batch."""
        augment, size = self.config.augment, self.config.batch_size
        if augment.mixes and (augment.mix_group % 2 or size % augment.mix_group):
            raise ValueError(
                f"config.augment.mix_group={augment.mix_group} must be even and divide "
                f"config.batch_size={size}"
            )

    def without_mixing(self) -> "Classification":
        """Copies the task without Mixup and CutMix, to draw images before they are mixed."""
        augment = dataclasses.replace(self.config.augment, mix_probability=0.0)
        plain = copy.copy(self)
        plain.config = dataclasses.replace(self.config, augment=augment)
        return plain

    def summary(self) -> str:
        return (
            f"{zoo.cost(self.network).macs / 1e9:.3f} GMACs per image; "
            f"{self.num_examples:,} training and {len(self.eval_source):,} evaluation images"
        )

    # Computation.

    @functools.cached_property
    def _model(self) -> tuple[nnx.GraphDef, Params]:
        return super().model()

    def model(self) -> tuple[nnx.GraphDef, Params]:
        return self._model

    def constants(self) -> Params:
        """Reads the teacher's values, on the host; {} without distillation."""
        options = self.config.distillation
        if self.teacher is None or options.teacher_weights is None:
            return {}
        if options.teacher_weights == UNTRAINED:
            values = initial.drawn(self.teacher, self.config.seed)
        else:
            option = "config.distillation.teacher_weights"
            values = initial.read(option, options.teacher_weights, self.teacher)
        logger.info("teacher %s from %s", options.teacher, options.teacher_weights)
        return values

    def abstract_constants(self) -> Params:
        return {} if self.teacher is None else zoo.abstract(self.teacher)[1]

    def batch_shapes(self, size: int) -> tuple[Shapes, ...]:
        canvas = self.placement.canvas
        shapes = _shapes(size, canvas or self.config.model.image_size)
        if canvas is not None:
            shapes |= {
                "extent": jax.ShapeDtypeStruct((size, 2), jnp.int32),
                "rows_first": jax.ShapeDtypeStruct((size,), jnp.bool_),
            }
        return (shapes,)

    def prepare(self, key: jax.Array, batch: Batch) -> Batch:
        """Augments a global batch to "images" (B, H, W, 3) and soft "targets" (B, K).

        A batch of crops, which has their "extent" and "rows_first", is resized first.
        """
        images = batch["image"]
        if "extent" in batch:
            size = self.config.model.image_size
            images = resize(images, batch["extent"], batch["rows_first"], size)
        images, targets = training_batch(
            key,
            images,
            batch["label"],
            self.config.augment,
            num_classes=self.network.num_classes,
            flip_probability=self.placement.device_flip,
            policy=self.placement.device_policy,
            dtype=jnp.dtype(self.config.model.dtype),
        )
        return {"images": images, "targets": targets}

    def references(self, constants: Params, inputs: Batch) -> Batch:
        """Adds the teacher's logits (B, K) on the same augmented images the student sees."""
        if self.teacher is None:
            return inputs
        graphdef, _ = zoo.abstract(self.teacher, dtype=jnp.dtype(self.config.model.dtype))
        teacher = parameters.merge(graphdef, constants)
        return {**inputs, "teacher_logits": teacher(inputs["images"])}

    def loss(
        self, network: Network, inputs: Batch, key: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The loss, and "top1": how often the prediction is the class with the largest share.

        The loss is the cross entropy, or with a teacher that of distillation.
        """
        outputs, targets = network(inputs["images"], key=key), inputs["targets"]
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        top1 = (logits.argmax(-1) == targets.argmax(-1)).mean()
        if "teacher_logits" not in inputs:
            return cross_entropy(outputs, targets), {"top1": top1}
        options = self.config.distillation
        loss = distillation_loss(
            outputs,
            targets,
            inputs["teacher_logits"],
            kind=options.kind,
            alpha=options.alpha,
            temperature=options.temperature,
        )
        return loss, {"top1": top1}

    def flops(self, *, training: bool) -> int:
        """Operations of the model; in training, the teacher's forward pass is included."""
        student = zoo.model_flops(self.network, training=training)
        if self.teacher is None or not training:
            return student
        return student + zoo.model_flops(self.teacher, training=False)

    # Data and evaluation.

    def train_rows(self, first_batch: int) -> Iterator[Mapping[str, np.ndarray]]:
        from pit_jax.tasks.classification import input

        config = self.config
        views = input.Views(
            size=config.model.image_size,
            scale=config.data.crop_scale,
            ratio=config.data.crop_ratio,
            flip_probability=self.placement.host_flip,
            policy=self.placement.host_policy,
            canvas=self.placement.canvas,
            repeats=config.data.repeats,
        )
        return iter(
            input.train_batches(
                self.train_source,
                views,
                batch_size=config.batch_size,
                seed=config.seed,
                first_batch=first_batch,
                bad_images=config.data.bad_images,
                max_bad_images=config.data.max_bad_images,
                reading=self._reading(),
            )
        )

    def evaluator(self, mesh: Mesh) -> Callable[[Params], dict[str, float]]:
        from pit_jax.tasks.classification import evaluation, input

        batches = input.eval_batches(
            self.eval_source,
            image_size=self.config.model.image_size,
            batch_size=self.config.eval_batch_size,
            protocol=self.config.data.eval_protocol,
            reading=self._reading(),
        )
        return evaluation.make_evaluator(self.model()[0], mesh, batches)

    def inference(self, size: int) -> tuple[EvaluationStep, Shapes]:
        from pit_jax.tasks.classification.evaluation import evaluation_step

        return evaluation_step(self.model()[0]), _shapes(size, self.config.model.image_size)

    def _reading(self) -> Any:
        from pit_jax.data.pipeline import Reading

        return Reading(
            threads=self.config.data.threads,
            prefetch=self.config.data.prefetch,
            process=jax.process_index(),
            processes=jax.process_count(),
        )

    def card(self) -> dict[str, Any]:
        """The data and crop that the run evaluates, as defaults for `evaluate.py`."""
        data = self.config.data
        protocol = Protocol(
            data=data.name,
            split=data.eval_split,
            data_dir=data.data_dir,
            crop=data.eval_protocol,
            dtype=self.config.model.dtype,
        )
        return {"evaluation": dataclasses.asdict(protocol)}

    @classmethod
    def evaluation_options(cls, file: WeightFile) -> Protocol:
        """The data and crop of the run, from the weights' card; ImageNet without a card."""
        return Protocol(**(file.card or {}).get("evaluation", {}))

    @classmethod
    def evaluate(
        cls,
        file: WeightFile,
        options: Protocol,
        *,
        model: str | None = None,
        batch_size: int = 256,
        image_size: tuple[int, int] | None = None,
    ) -> Evaluation:
        from pit_jax.tasks.classification.evaluation import evaluate_weights

        return evaluate_weights(
            file, options, model=model, batch_size=batch_size, image_size=image_size
        )


def _shapes(size: int, image_size: tuple[int, int]) -> Shapes:
    return {
        "image": jax.ShapeDtypeStruct((size, *image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
