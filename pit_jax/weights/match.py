"""Finds the model that a file holds the weights of, and all that does not fit a given one."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pit_jax.models import parameters, zoo
from pit_jax.models.config import Grid, ModelConfig
from pit_jax.models.torch_names import Row, Table, own_names
from pit_jax.weights.cards import card_config, differing_options
from pit_jax.weights.read import WeightFile
from pit_jax.weights.strict import Differences, Shape, differences

logger = logging.getLogger(__name__)

FLOAT32 = jnp.dtype(jnp.float32)


@functools.lru_cache(maxsize=64)
def abstract_model(config: ModelConfig, dtype: np.dtype) -> tuple[nnx.GraphDef, dict[str, Shape]]:
    """Structure of a model, and the shapes of its parameters by path. Cached: tracing takes a
    second.
    """
    graphdef, params = zoo.abstract(config, dtype=dtype)
    return graphdef, {path: leaf.shape for path, leaf in parameters.flatten(params).items()}


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of a model's parameters by path, in the module's order."""
    return abstract_model(config, FLOAT32)[1]


def table_of(config: ModelConfig) -> Table:
    """Names of a configuration's parameters in files; in our layout alone if torch does not have
    the family.
    """
    names = zoo.family_of(config).names
    if names is not None:
        return names(config)
    # A head is known even where there should be none.
    with_head = dataclasses.replace(config, num_classes=config.num_classes or 1)
    return own_names(parameter_shapes(with_head))


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """Comparison of a file with a configuration.

    Positions of another grid and a head for another number of classes are not counted as problems:
    `load.fit` resizes the former and can replace the latter.

    Attributes:
      file: the content of the file.
      name: the model's name, for messages and cards.
      config: the configuration to fill.
      table: names of its parameters.
      layout: the layout that most of the file's names belong to.
      classes: classes of the file's head; 0 without one.
      rows: rows to read, by the file's names; without the head where class counts differ.
      grid: height and width of the file's positions; None without positions of the right rank.
      problems: missing, unknown and mis-shaped entries.
    """

    file: WeightFile
    name: str
    config: ModelConfig
    table: Table
    layout: str
    classes: int
    rows: Mapping[str, Row]
    grid: Grid | None
    problems: Differences

    @property
    def other_grid(self) -> Grid | None:
        """The grid of the file's positions where the configuration has another one."""
        return self.grid if self.grid != self.config.grids[0] else None


def match(file: WeightFile, config: ModelConfig, name: str | None = None) -> Match:
    """Compares a file with a configuration.

    Args:
      file: content of the file, from `read`.
      config: a configuration of any family.
      name: name of the model for messages and cards; None for `describe(config)`.
    """
    table = table_of(config)
    layout = table.recognise(file.tensors)
    classes = _classes(file, config, table, layout)
    same_classes = classes == config.num_classes
    rows = table.by_name(layout, with_head=same_classes and classes > 0)
    skipped = table.ignored(layout)
    if not same_classes:
        skipped |= {row.name(layout) for row in table.head}
    shapes = parameter_shapes(config)
    expected = {name: row.file_shape(shapes[row.path], layout) for name, row in rows.items()}
    found = {name: value.shape for name, value in file.tensors.items() if name not in skipped}

    entries = {row.path: name for name, row in rows.items() if name in found}
    grid = None
    for position in table.positions:
        if position.path not in entries:
            continue
        entry = entries[position.path]
        ours, theirs = (rows[entry].our_shape(of[entry], layout) for of in (expected, found))
        if position == table.positions[0]:
            grid = _grid(file, theirs, position.prefix)
        resizable = grid not in (None, config.grids[0]) and ours[-1] == theirs[-1]
        if grid and resizable and position.describes(theirs, grid):
            found[entry] = expected[entry]
    return Match(
        file=file,
        name=name or describe(config),
        config=config,
        table=table,
        layout=layout,
        classes=classes,
        rows=rows,
        grid=grid,
        problems=differences(found, expected),
    )


def _classes(file: WeightFile, config: ModelConfig, table: Table, layout: str) -> int:
    """Number of classes of a file's head; 0 without one, and of networks that have none."""
    biases = [row.name(layout) for row in table.head if row.path.endswith("/bias")]
    if not biases:
        return config.num_classes
    return file.tensors[biases[0]].size if biases[0] in file.tensors else 0


def _grid(file: WeightFile, shape: Shape, prefix: int | None) -> Grid | None:
    """Height and width of a file's positions; None if they are not of the right rank.

    A map (1, H, W, C) has them as axes. For a sequence (1, prefix + H * W, C) they are the card's.
    Without a card a square grid is assumed, as in published files; None if no square has that
    number of positions.
    """
    if prefix is None:
        return (shape[1], shape[2]) if len(shape) == 4 and min(shape) > 0 else None
    count = shape[1] - prefix if len(shape) == 3 else 0
    if file.card is not None:
        height, width = card_config(file.card).grids[0]
        return (height, width) if height * width == count else None
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def fitting_models(file: WeightFile) -> list[list[str]]:
    """Networks that a file fits at some image size and number of classes, each as the list of its
    names. Families without torch names are left out: their files have cards.
    """
    networks: dict[ModelConfig, list[str]] = {}
    for name, row in zoo.rows().items():
        networks.setdefault(row, []).append(name)
    return [names for row, names in networks.items() if _fits(file, row)]


def _fits(file: WeightFile, row: ModelConfig) -> bool:
    if zoo.family_of(row).names is None:
        return False
    table = table_of(row)
    layout = table.recognise(file.tensors)
    body = table.by_name(layout, with_head=False).keys()
    known = table.by_name(layout).keys() | table.ignored(layout)
    # Names are looked at first, for the shapes of a model take a second to find.
    return body <= file.tensors.keys() <= known and not match(file, row).problems


def describe(config: ModelConfig) -> str:
    """The name of a configuration's model, regardless of image size, classes and rates; "this PiT"
    for a configuration that is no row of the zoo.
    """
    for name, row in zoo.rows().items():
        if type(row) is type(config) and not differing_options(row, config):
            return name
    return f"this {type(config).__name__.removesuffix('Config')}"


def identify(
    file: WeightFile,
    model: str | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
) -> Match:
    """Finds the model of a file, by its card or by its shapes, and compares the two.

    Args:
      file: content of a file, with or without a card.
      model: a name of the zoo; None for the card's, or for the only model that the shapes fit.
      image_size: height and width; None for the file's.
      num_classes: classes of the head; None for the file's.

    Raises:
      ValueError: no or several models fit; positions for another image size than the model's own,
        which do not tell it exactly, with neither a card nor `image_size`.
    """
    if file.card is not None and model in (None, file.card["model"]):
        name, config = file.card["model"], card_config(file.card)
    else:
        name = model or _only_fitting(file)
        found = match(file, zoo.model_config(name), name)
        if image_size is None:
            _check_sizes(found)
        config = dataclasses.replace(found.config, num_classes=found.classes)
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
    return match(file, config, name)


def _only_fitting(file: WeightFile) -> str:
    fitting = fitting_models(file)
    if len(fitting) != 1:
        said = " and ".join(" or ".join(names) for names in fitting)
        raise ValueError(
            f"name the model of {file.source}, with --model=NAME or in Python with "
            f"create_model(NAME, weights=...), for it fits {said or 'none of those known'}"
        )
    first, *others = fitting[0]
    if others:
        logger.info("%s is taken as %s, also named %s", file.source, first, ", ".join(others))
    return first


def _check_sizes(found: Match) -> None:
    """Refuses a model other than the card's that does not fit, and positions of another grid than
    the model's own: several image sizes give the same grid, since pixels past the last whole patch
    are unseen.
    """
    file, config = found.file, found.config
    if file.card is not None and found.problems:
        raise ValueError(
            f"{file.source} does not fit {found.name}: its card says that it holds a "
            f"{file.card['model']}. Leave out --model, or in Python use load_model(...)"
        )
    grid = found.other_grid
    if grid is None:
        return
    stride = config.strides[0]
    patch = getattr(config, "patch_size", stride)
    smallest = [(count - 1) * stride + patch for count in grid]
    height, width = (f"{size} to {size + stride - 1}" for size in smallest)
    raise ValueError(
        f"the positions of {file.source} are {grid[0]} x {grid[1]}, for images {height} pixels "
        f"high and {width} wide: say which with --image_size=HEIGHT,WIDTH, or in Python with "
        "create_model(NAME, image_size=(HEIGHT, WIDTH), weights=...) (any other size resizes them)"
    )
