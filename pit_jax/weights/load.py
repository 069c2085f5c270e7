"""From a file's content to the parameters of a model and back: fitted, checked, renamed."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.errors import suggestion
from pit_jax.models import parameters, zoo
from pit_jax.models.config import ModelConfig
from pit_jax.models.torch_names import OURS
from pit_jax.weights.match import (
    Match,
    describe,
    fitting_models,
    match,
    parameter_shapes,
    table_of,
)
from pit_jax.weights.positions import resize_positions
from pit_jax.weights.read import Source, read
from pit_jax.weights.strict import check_against, report

logger = logging.getLogger(__name__)

HEAD_CHOICES = ("load", "new")


class HeadError(ValueError):
    """Weights do not fit, among other things because their head is for another number of classes:
    `head="new"` takes a fresh one.
    """


def load_weights(
    source: Source, model: str | ModelConfig, *, head: str = "load", seed: int = 0
) -> parameters.Params:
    """Parameters of a model from a file, directory or hub repository.

    The names tell whether a file has our layout or one of torch's. Positions for another image size
    are resized as torch's bicubic interpolation does it, those of class tokens excepted, and the
    log says so. All else has to fit exactly.

    Args:
      source: path of a .safetensors file, a torch checkpoint or a directory of ours, or
        "hf:owner/name[@revision]".
      model: a name of `list_models()`, or a configuration from `model_config`.
      head: "load", or "new" to take a fresh classification head where the file's has another number
        of classes, which the log says. A model without classes (`num_classes=0`) leaves the file's
        head out.
      seed: seed of a fresh head.

    Returns:
      Nested dict of float32 arrays, as `pit_jax.models.parameters.split` gives.

    Raises:
      ValueError: a source that cannot be read; entries missing, unknown or mis-shaped, all of them
        listed; `HeadError`: another number of classes with head="load".
    """
    name = model if isinstance(model, str) else None
    config = zoo.model_config(model) if isinstance(model, str) else model
    return fit(match(read(source), config, name), head=head, seed=seed)


def fit(found: Match, *, head: str = "load", seed: int = 0) -> parameters.Params:
    """Parameters of the configuration that a file was matched with; see `load_weights`."""
    if head not in HEAD_CHOICES:
        raise ValueError(
            f"unknown head {head!r}{suggestion(head, HEAD_CHOICES)}; expected one of "
            f"{', '.join(HEAD_CHOICES)}"
        )
    _refuse(found, head)
    file, config, table = found.file, found.config, found.table
    values: dict[str, Any] = {
        row.path: row.read(file.tensors[name], found.layout) for name, row in found.rows.items()
    }
    shapes = parameter_shapes(config)
    if grid := found.other_grid:
        wanted = config.grids[0]
        logger.warning("%s: positions resized from %d x %d to %d x %d", file.source, *grid, *wanted)
        for position in table.positions:
            path = position.path
            values[path] = resize_positions(position, values[path], shapes[path], grid, wanted)
    if found.classes != config.num_classes:
        fresh = f"fresh head for {config.num_classes}" if config.num_classes else "no head"
        logger.warning(
            "%s: its head for %d classes is left out, %s", file.source, found.classes, fresh
        )
        if config.num_classes:
            values |= _fresh_head(found, seed)
    check_against(
        {path: value.shape for path, value in values.items()},
        shapes,
        f"the table of {found.name} does not give its parameters:",
    )
    # Not `jnp.asarray`, which compiles a program for every shape.
    return parameters.unflatten({path: jax.device_put(values[path]) for path in shapes})


def to_torch(params: Mapping[str, Any], config: ModelConfig, layout: str) -> dict[str, np.ndarray]:
    """A torch state dict of a model's parameters, bit for bit, in the order of the table.

    Args:
      params: nested dict of arrays that fits `config`.
      config: configuration of the model.
      layout: "official" or "timm".

    Raises:
      ValueError: an unknown layout; with all missing, unknown and mis-shaped entries listed,
        parameters of another model.
    """
    table = table_of(config)
    table.check_layout(layout)
    flat = {path: np.asarray(value) for path, value in parameters.flatten(params).items()}
    check_against(
        {path: value.shape for path, value in flat.items()},
        parameter_shapes(config),
        f"the parameters do not fit {describe(config)}:",
    )
    rows = table.by_name(layout, with_head=config.num_classes > 0)
    return {name: row.write(flat[row.path], layout) for name, row in rows.items()}


def _fresh_head(found: Match, seed: int) -> dict[str, jax.Array]:
    """Initial values of the classification heads by path: those of a model built with `seed`."""
    flat = parameters.flatten(parameters.split(zoo.build(found.config, seed=seed))[1])
    return {row.path: flat[row.path] for row in found.table.head}


def _refuse(found: Match, head: str) -> None:
    """Raises one error with everything that is wrong, if anything is."""
    file, classes, expected = found.file, found.classes, found.config.num_classes
    lines = []
    if found.problems:
        lines = _advice(found) + found.problems.lines()
    not_floating = [
        name
        for name in found.rows
        if name in file.tensors and not jnp.issubdtype(file.tensors[name].dtype, jnp.floating)
    ]
    if not_floating:
        lines.append(f"not floating point: {', '.join(not_floating)}")
    other_classes = head == "load" and expected not in (0, classes)
    if other_classes:
        kept = f"num_classes={classes} keeps it, " if classes else ""
        lines.append(
            f"its head is for {classes} classes, expected {expected}: {kept}"
            'head="new" takes a fresh one'
        )
    if lines:
        named = f" ({found.layout} layout)" if found.layout != OURS else ""
        error = HeadError if other_classes else ValueError
        raise error(report(f"{file.source}{named} does not fit {found.name}:", lines))


def _advice(found: Match) -> list[str]:
    """Lines that tell which other model the file holds, as far as that can be told."""
    file, name, config = found.file, found.name, found.config
    lines = []
    if hasattr(config, "distilled"):
        changes: dict[str, Any] = {"distilled": not config.distilled}
        other = match(file, dataclasses.replace(config, **changes))
        if len(other.problems) < len(found.problems):
            is_, holds = ("distilled", "plain") if config.distilled else ("plain", "distilled")
            lines.append(f"it holds a {holds} model, and {name} is a {is_} one")
    if fitting := [name for names in fitting_models(file) for name in names]:
        lines.append(f"the model it fits is {' or '.join(fitting)}")
    if file.card:
        asked = {key: file.card.get(key) for key in ("image_size", "num_classes")}
        asked |= file.card.get("options") or {}
        options = ", ".join(f"{key}={value}" for key, value in asked.items())
        lines.append(f"its card says {file.card.get('model')} with {options}")
    return lines
