"""Accuracy on a held-out split, during training and of a weights file."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from pit_jax import sharding
from pit_jax.augment.normalise import normalise
from pit_jax.data.folders import PREFIX
from pit_jax.data.images import IMAGENET_MEAN, IMAGENET_STD, check_protocol
from pit_jax.data.pipeline import Reading
from pit_jax.data.source import Source
from pit_jax.data.sources import open_source
from pit_jax.models import parameters, zoo
from pit_jax.tasks.classification.config import Protocol
from pit_jax.tasks.classification.input import eval_batches
from pit_jax.training.evaluation import Batch, EvaluationStep, Sums, sum_over
from pit_jax.training.task import Evaluation
from pit_jax.weights.load import fit
from pit_jax.weights.match import identify
from pit_jax.weights.read import WeightFile


def evaluation_step(graphdef: nnx.GraphDef) -> EvaluationStep:
    """Makes the step that adds a batch to the running sums "count", "loss", "top1", "top5".

    Rows with a negative label are padding and add nothing.
    """

    def add(params: parameters.Params, batch: Batch, sums: Sums) -> Sums:
        labels = batch["label"]
        valid = labels >= 0
        images = normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD)
        logits = parameters.merge(graphdef, params)(images)
        own_class = jnp.maximum(labels, 0)[:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, own_class[:, 0])
        # Rank of the label's logit. bfloat16 makes ties: as in argmax, the lower class comes first.
        # `~(<=)` rather than `>`: a NaN compares with nothing, and must not count as a hit.
        own = jnp.take_along_axis(logits, own_class, axis=-1)
        earlier = jnp.arange(logits.shape[-1])[None] < own_class
        rank = (~(logits <= own) | ((logits == own) & earlier)).sum(-1)
        return {
            "count": sums["count"] + valid.sum(),
            "loss": sums["loss"] + jnp.where(valid, losses, 0.0).sum(),
            "top1": sums["top1"] + (valid & (rank < 1)).sum(),
            "top5": sums["top5"] + (valid & (rank < 5)).sum(),
        }

    return EvaluationStep(add, zero_sums)


def zero_sums() -> Sums:
    """The sums before the first batch."""
    return {
        "count": jnp.zeros((), jnp.int32),
        "loss": jnp.zeros((), jnp.float32),
        "top1": jnp.zeros((), jnp.int32),
        "top5": jnp.zeros((), jnp.int32),
    }


def make_evaluator(
    graphdef: nnx.GraphDef, mesh: Mesh, batches: Any
) -> Callable[[parameters.Params], dict[str, float]]:
    """Makes a function from parameters to metrics of one pass over `batches`.

    Args:
      graphdef: structure of the model.
      mesh: the devices.
      batches: result of `input.eval_batches`; each call iterates over it once.

    Returns:
      A function returning "top1" and "top5" (fractions), "loss" (mean cross-entropy) and "count".
    """
    totals_of = sum_over(evaluation_step(graphdef), mesh, batches)

    def evaluate(params: parameters.Params) -> dict[str, float]:
        totals = totals_of(params)
        count = totals.pop("count")
        return {name: total / count for name, total in totals.items()} | {"count": count}

    return evaluate


def evaluate_weights(
    file: WeightFile,
    protocol: Protocol,
    *,
    model: str | None = None,
    batch_size: int = 256,
    image_size: tuple[int, int] | None = None,
) -> Evaluation:
    """Measures the accuracy of a weights file on a data set.

    Args:
      file: result of `weights.read.read`.
      protocol: data and crop.
      model: a name of the zoo; None to identify it by the card or the shapes.
      batch_size: images per step over all devices, rounded up to a multiple of their number.
      image_size: height and width in pixels, for which positions are resized; None for the model's
        own.

    Raises:
      ValueError: the weights do not fit, or the data is missing.
    """
    found = identify(file, model, image_size=image_size)
    config = found.config
    check_protocol(protocol.crop)
    source = open_source(protocol.data, protocol.split, protocol.data_dir)
    _check_classes(file, config.num_classes, protocol, source)
    graphdef, _ = zoo.abstract(config, dtype=jnp.dtype(protocol.dtype))
    mesh = sharding.make_mesh()
    params = jax.device_put(fit(found), sharding.replicated(mesh))
    batches = eval_batches(
        source,
        image_size=config.image_size,
        batch_size=-(-batch_size // jax.device_count()) * jax.device_count(),
        protocol=protocol.crop,
        reading=Reading(process=jax.process_index(), processes=jax.process_count()),
    )
    began = time.monotonic()
    metrics = make_evaluator(graphdef, mesh, batches)(params)
    return Evaluation(
        model=found.name,
        parameters=parameters.count(params),
        data=source.name,
        options={"crop": protocol.crop, "dtype": protocol.dtype},
        metrics=metrics,
        seconds=time.monotonic() - began,
    )


def _check_classes(file: WeightFile, classes: int, protocol: Protocol, source: Source) -> None:
    """Refuses data whose labels cannot be the classes that the model has learnt.

    A TFDS set with fewer classes may use ImageNet's numbers, so it passes. A folder numbers its own
    classes: with fewer of them the numbers differ, unless the model was trained on that folder.
    """
    found = f"{file.source} has {classes} classes, {source.name} has {source.num_classes}"
    if classes < source.num_classes:
        raise ValueError(f"{found}: choose data with the classes that the model was trained on")
    trained_on = ((file.card or {}).get("evaluation") or {}).get("data")
    own = protocol.data.startswith(PREFIX) and protocol.data != trained_on
    if own and classes != source.num_classes:
        raise ValueError(
            f"{found}: the labels of a folder number its own classes in sorted order, which are "
            "not those of the model. Evaluate a model that was trained on these classes; or, if "
            "they are a subset of the model's, give each of the model's classes a directory in "
            "FOLDER/train, which may be empty"
        )
