"""Exact evaluation: every example of a split counted once, whatever the batch and the devices."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from pit_jax import sharding
from pit_jax.data.folders import PREFIX
from pit_jax.data.images import check_protocol
from pit_jax.data.pipeline import Reading, eval_batches
from pit_jax.data.sources import Source, open_source
from pit_jax.models import parameters, zoo
from pit_jax.ops import lowerings
from pit_jax.training.config import TrainConfig
from pit_jax.training.step import make_eval_step, zero_sums
from pit_jax.weights.load import fit
from pit_jax.weights.match import identify
from pit_jax.weights.read import WeightFile, read


def jitted_eval_step(graphdef: nnx.GraphDef, mesh: Mesh) -> Any:
    """The evaluation step as it runs on a mesh; the sums given to it are consumed."""
    step = make_eval_step(graphdef)
    return jax.jit(lowerings.compiling_for(sharding.platform(mesh))(step), donate_argnums=2)


def make_evaluator(
    graphdef: nnx.GraphDef, mesh: Mesh, batches: Iterable[Any]
) -> Callable[[parameters.Params], dict[str, float]]:
    """A function from parameters to metrics of one pass over `batches`.

    Args:
      graphdef: structure of the model.
      mesh: the devices.
      batches: `data.pipeline.eval_batches`, iterated anew at each call.

    Returns:
      A function giving "top1" and "top5" (fractions), "loss" (mean cross-entropy) and "count".
    """
    eval_step = jitted_eval_step(graphdef, mesh)

    def evaluate(params: parameters.Params) -> dict[str, float]:
        sums = jax.device_put(zero_sums(), sharding.replicated(mesh))
        for batch in batches:
            sums = eval_step(params, sharding.to_global(mesh, batch), sums)
        totals = {name: value.item() for name, value in jax.device_get(sums).items()}
        count = totals.pop("count")
        return {name: total / count for name, total in totals.items()} | {"count": count}

    return evaluate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """On what and how weights are evaluated.

    Attributes:
      data: a data set of `data.sources.open_source`, its `split` and `data_dir`.
      crop: of `data.images.PROTOCOLS`.
      dtype: what the arithmetic runs in, "float32" or "bfloat16".
    """

    data: str = "imagenet2012"
    split: str = "validation"
    data_dir: str | None = None
    crop: str = "deit"
    dtype: str = "float32"


def recorded_protocol(weights: str | os.PathLike[str]) -> Protocol:
    """How the weights were evaluated in training: their card says; ImageNet where none does.

    Raises:
      ValueError: weights that cannot be read.
    """
    card = read(weights).card or {}
    return Protocol(**card.get("evaluation", {}))


def protocol_of(config: TrainConfig) -> dict[str, Any]:
    """What the card of a run's weights records of its evaluation."""
    return dataclasses.asdict(
        Protocol(
            data=config.data.name,
            split=config.data.eval_split,
            data_dir=config.data.data_dir,
            crop=config.data.eval_protocol,
            dtype=config.model.dtype,
        )
    )


def _check_classes(file: WeightFile, classes: int, protocol: Protocol, source: Source) -> None:
    """Refuses data whose labels cannot be those that a model of so many classes has learnt.

    TFDS has sets with the labels of ImageNet and fewer pictures. A folder's labels number its own
    classes: fewer of them are numbered alike only where the model was trained on that folder.
    """
    found = f"{file.source} tells {classes} classes apart, {source.name} has {source.num_classes}"
    if classes < source.num_classes:
        raise ValueError(f"{found}: choose data with the classes that the model was trained on")
    trained_on = ((file.card or {}).get("evaluation") or {}).get("data")
    own = protocol.data.startswith(PREFIX) and protocol.data != trained_on
    if own and classes != source.num_classes:
        raise ValueError(
            f"{found}: the labels of a folder number its own classes in sorted order, which are "
            "not those of the model. Evaluate a model that was trained on these classes; or, where "
            "they are some of the model's, give all of those a directory in FOLDER/train, empty "
            "ones will do"
        )


def evaluate_weights(
    weights: str | os.PathLike[str],
    *,
    model: str | None = None,
    protocol: Protocol,
    batch_size: int = 256,
    image_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Accuracy of a run directory or a weights file on a data set.

    Args:
      weights: anything `create_model` takes.
      model: a name of the zoo; None for the one the card or the shapes tell.
      protocol: data and crop.
      batch_size: images per step over all devices, rounded up to a multiple of their number.
      image_size: height and width, None for the model's own; positions are resized.

    Returns:
      "model", "parameters", "data", "crop", "count", "top1", "top5" (fractions), "loss", "seconds".

    Raises:
      ValueError: weights that do not fit, data that is not there.
    """
    file = read(weights)
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
    return {
        "model": found.name,
        "parameters": parameters.count(params),
        "data": source.name,
        "crop": protocol.crop,
        **metrics,
        "seconds": time.monotonic() - began,
    }
