"""Between weight files and the parameters of a model: recognised, fitted, checked, renamed."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.errors import suggestion
from pit_jax.models import parameters, zoo
from pit_jax.models.torch_names import OURS
from pit_jax.weights import files
from pit_jax.weights.match import (
    Comparison,
    compare,
    describe,
    fitting_models,
    parameter_shapes,
    position_grid,
    table_of,
)
from pit_jax.weights.strict import check_against, report

logger = logging.getLogger(__name__)

HEAD_CHOICES = ("load", "new")
Grid = tuple[int, int]  # height, width


class HeadError(ValueError):
    """Weights do not fit, with a head for other classes; `head="new"` would take a fresh one."""


def load_weights(
    source: files.Source, model: str | zoo.ModelConfig, *, head: str = "load", seed: int = 0
) -> parameters.Params:
    """Parameters of a model from a file, directory or hub repository.

    Names and axes of the official and the timm layout are recognised by themselves. Positions for
    another image size are resized as torch's bicubic interpolation does it, those of class tokens
    excepted, and the log says so. All else has to fit exactly.

    Args:
      source: path of a .safetensors file, a torch checkpoint or a directory of ours, or
        "hf:owner/name[@revision]".
      model: a name of `list_models()`, or a configuration from `model_config`.
      head: "load", or "new" to take a fresh classification head where the file's has another number
        of classes; the log says so. A model without classes (`num_classes=0`) leaves the file's
        head out.
      seed: of a fresh head.

    Returns:
      Nested dict of float32 arrays, as `pit_jax.models.parameters.split` gives.

    Raises:
      ValueError: a source that cannot be read; entries missing, unknown or mis-shaped, all of them
        listed; `HeadError`: another number of classes with head="load".
    """
    config = zoo.model_config(model) if isinstance(model, str) else model
    return fit(files.read(source), config, head=head, seed=seed)


def fit(
    file: files.WeightFile, config: zoo.ModelConfig, *, head: str = "load", seed: int = 0
) -> parameters.Params:
    """Parameters of a configuration from the content of a file; see `load_weights`."""
    if head not in HEAD_CHOICES:
        raise ValueError(
            f"unknown head {head!r}{suggestion(head, HEAD_CHOICES)}; expected one of "
            f"{', '.join(HEAD_CHOICES)}"
        )
    comparison = compare(file, config)
    _refuse(file, config, comparison, head)

    shapes = parameter_shapes(config)
    values: dict[str, Any] = {
        row.path: row.read(file.tensors[name], comparison.layout)
        for name, row in comparison.rows.items()
    }
    position, grid = comparison.table.position, position_grid(file, config)
    if position and grid and grid != config.grids[0]:
        prefix = comparison.table.prefix
        values[position] = _resize(
            values[position], prefix, grid, config.grids[0], source=file.source
        )
    if comparison.classes != config.num_classes:
        fresh = f"fresh head for {config.num_classes}" if config.num_classes else "no head"
        logger.warning(
            "%s: its head for %d classes is left out, %s", file.source, comparison.classes, fresh
        )
        if config.num_classes:
            values |= fresh_head(config, seed)
    found = {path: value.shape for path, value in values.items()}
    check_against(found, shapes, f"the table of {describe(config)} does not give its parameters:")
    # Not `jnp.asarray`, which compiles a program for every shape.
    return parameters.unflatten({path: jax.device_put(values[path]) for path in shapes})


def to_torch(
    params: Mapping[str, Any], config: zoo.ModelConfig, layout: str
) -> dict[str, np.ndarray]:
    """A torch state dict of a model's parameters, bit for bit, in the order of the table.

    Args:
      params: nested dict of arrays that fits `config`.
      config: of the model.
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


def fresh_head(config: zoo.ModelConfig, seed: int) -> dict[str, jax.Array]:
    """Initial values of the classification heads by path: those of a model built with `seed`."""
    flat = parameters.flatten(parameters.split(zoo.build(config, seed=seed))[1])
    return {row.path: flat[row.path] for row in table_of(config).head}


def _refuse(
    file: files.WeightFile, config: zoo.ModelConfig, comparison: Comparison, head: str
) -> None:
    """Raises one error with everything that is wrong, if anything is."""
    lines = []
    if comparison.problems:
        lines = _advice(file, config, comparison) + comparison.problems.lines()
    not_floating = [
        name
        for name in comparison.rows
        if name in file.tensors and not jnp.issubdtype(file.tensors[name].dtype, jnp.floating)
    ]
    if not_floating:
        lines.append(f"not floating point: {', '.join(not_floating)}")
    classes = comparison.classes
    other_classes = head == "load" and config.num_classes not in (0, classes)
    if other_classes:
        kept = f"num_classes={classes} keeps it, " if classes else ""
        lines.append(
            f"its head is for {classes} classes, expected {config.num_classes}: {kept}"
            'head="new" takes a fresh one'
        )
    if lines:
        named = f" ({comparison.layout} layout)" if comparison.layout != OURS else ""
        error = HeadError if other_classes else ValueError
        raise error(report(f"{file.source}{named} does not fit {describe(config)}:", lines))


def _advice(file: files.WeightFile, config: zoo.ModelConfig, comparison: Comparison) -> list[str]:
    """What the file seems to be instead."""
    lines = []
    fitting = fitting_models(file)
    if hasattr(config, "distilled"):
        changes: dict[str, Any] = {"distilled": not config.distilled}
        other = compare(file, dataclasses.replace(config, **changes))
        if len(other.problems) < len(comparison.problems):
            is_, holds = ("distilled", "plain") if config.distilled else ("plain", "distilled")
            lines.append(f"it holds a {holds} model, and {describe(config)} is a {is_} one")
    if fitting:
        lines.append(f"the model it fits is {' or '.join(fitting)}")
    if file.card:
        asked = {key: file.card.get(key) for key in ("image_size", "num_classes")}
        asked |= file.card.get("options") or {}
        options = ", ".join(f"{key}={value}" for key, value in asked.items())
        lines.append(f"its card says {file.card.get('model')} with {options}")
    return lines


def _resize(
    position: np.ndarray, prefix: int | None, grid: Grid, wanted: Grid, *, source: str
) -> jax.Array:
    """Resamples positions from one grid to another as torch's bicubic interpolation does.

    That is the cubic of -0.75 with repeated edges and no antialiasing, aligned at pixel centres.

    Args:
      position: a map (1, H, W, C), or a sequence (1, prefix + H * W, C).
      prefix: entries of a sequence that stay as they are; None for a map.
      grid: H, W.
      wanted: the same afterwards.
      source: for the log.
    """
    logger.warning(
        "%s: %s of positions resized from %d x %d to %d x %d",
        *(source, "map" if prefix is None else "sequence", *grid, *wanted),
    )
    channels = position.shape[-1]
    maps = jnp.asarray(position if prefix is None else position[:, prefix:])
    resized = jax.image.resize(
        maps.reshape(1, *grid, channels), (1, *wanted, channels), "cubic-pytorch", antialias=False
    )
    if prefix is None:
        return resized
    return jnp.concatenate([position[:, :prefix], resized.reshape(1, -1, channels)], axis=1)
