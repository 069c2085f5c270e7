"""Which model a file holds the weights of, and what keeps it from being a given one."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pit_jax.models import parameters, zoo
from pit_jax.models.torch_names import Row, Table
from pit_jax.weights.cards import card_config
from pit_jax.weights.files import WeightFile
from pit_jax.weights.strict import Differences, Shape, differences

FLOAT32 = jnp.dtype(jnp.float32)


@functools.lru_cache(maxsize=64)
def abstract_model(
    config: zoo.ModelConfig, dtype: np.dtype
) -> tuple[nnx.GraphDef, dict[str, Shape]]:
    """Structure of a model, and the shapes of its parameters by path; tracing it takes a second."""
    graphdef, params = zoo.abstract(config, dtype=dtype)
    return graphdef, {path: leaf.shape for path, leaf in parameters.flatten(params).items()}


def parameter_shapes(config: zoo.ModelConfig) -> dict[str, Shape]:
    """Shapes of a model's parameters by path, in the module's order."""
    return abstract_model(config, FLOAT32)[1]


def table_of(config: zoo.ModelConfig) -> Table:
    """The torch names of a configuration's parameters.

    Raises:
      ValueError: a family without torch names.
    """
    names = zoo.family_of(config).names
    if names is None:
        raise ValueError(f"{type(config).__name__} has no table of torch names")
    return names(config)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a file relates to a configuration.

    Attributes:
      table: of the configuration.
      layout: that most of the file's names belong to.
      classes: of the file's head; 0 without one.
      rows: what to read, by the file's names; without the head where class counts differ.
      problems: missing, unknown and mis-shaped entries among those.
    """

    table: Table
    layout: str
    classes: int
    rows: dict[str, Row]
    problems: Differences


def compare(file: WeightFile, config: zoo.ModelConfig) -> Comparison:
    """Sets a file beside a configuration, leaving image size and number of classes open."""
    table = table_of(config)
    layout = table.recognise(file.tensors)
    bias = file.tensors.get(table.head[1].name(layout))
    classes = 0 if bias is None else bias.size
    head = {row.name(layout) for row in table.head}
    same_classes = classes == config.num_classes
    rows = table.by_name(layout, with_head=same_classes and classes > 0)

    shapes = parameter_shapes(config)
    expected = {name: row.file_shape(shapes[row.path], layout) for name, row in rows.items()}
    skipped = table.ignored(layout) | (set() if same_classes else head)
    found = {name: value.shape for name, value in file.tensors.items() if name not in skipped}
    for name, row in rows.items():
        if row.path == table.position and name in found and position_grid(file, config):
            sizes = found[name], expected[name]
            channels = {row.our_shape(size, layout)[-1] for size in sizes}
            if len(channels) == 1:
                found[name] = expected[name]
    return Comparison(table, layout, classes, rows, differences(found, expected))


def position_grid(file: WeightFile, config: zoo.ModelConfig) -> tuple[int, int] | None:
    """Height and width of a file's positions; None if it has none of the right rank.

    Of a sequence they are what the file's card says. Without a card it is taken for a square one,
    as those of published files are; None if it has no such number of entries.
    """
    table = table_of(config)
    layout = table.recognise(file.tensors)
    for name, row in table.by_name(layout).items():
        if row.path == table.position and name in file.tensors:
            shape = row.our_shape(file.tensors[name].shape, layout)
            if table.prefix is not None:
                return _grid_of(file, shape, table.prefix)
            return (shape[1], shape[2]) if len(shape) == 4 and min(shape) > 0 else None
    return None


def _grid_of(file: WeightFile, shape: Shape, prefix: int) -> tuple[int, int] | None:
    """Height and width of a sequence of positions (1, prefix + H * W, C)."""
    count = shape[1] - prefix if len(shape) == 3 else 0
    if file.card is not None:
        height, width = card_config(file.card).grids[0]
        return (height, width) if height * width == count else None
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def fitting_models(file: WeightFile) -> list[str]:
    """Names of the models a file holds the weights of, at any image size and class count."""
    names = []
    for name, row in zoo.rows().items():
        if zoo.family_of(row).names is None:
            continue
        table = table_of(row)
        layout = table.recognise(file.tensors)
        body = table.by_name(layout, with_head=False).keys()
        known = table.by_name(layout).keys() | table.ignored(layout)
        # Names are looked at first, for the shapes of a model take a second to find.
        if body <= file.tensors.keys() <= known and not compare(file, row).problems:
            names.append(name)
    return names


def describe(config: zoo.ModelConfig) -> str:
    """The name of a configuration's model; of one that is no row of the table, its type's."""
    free = ("image_size", "num_classes", "dropout_rate", "attention_dropout_rate", "drop_path_rate")
    found = dataclasses.asdict(config)
    for name, row in zoo.rows().items():
        expected = dataclasses.asdict(row)
        fixed = [field for field in expected if field not in free]
        if type(row) is type(config) and all(found[key] == expected[key] for key in fixed):
            return name
    return f"this {type(config).__name__.removesuffix('Config')}"


def identify(
    file: WeightFile,
    model: str | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
) -> tuple[str, zoo.ModelConfig]:
    """Name and configuration of the model to give a file's weights to.

    Args:
      file: with or without a card.
      model: a name of the zoo; None for what the card says, or the shapes if only one model fits.
      image_size: height and width; None for the file's.
      num_classes: of the head; None for the file's.

    Raises:
      ValueError: no or several models fit; positions for another image size than the model's own,
        which do not tell it exactly, with neither a card nor `image_size`.
    """
    if file.card is not None and model in (None, file.card["model"]):
        name, config = file.card["model"], card_config(file.card)
    else:
        name = model or _only_fitting(file)
        row = zoo.model_config(name)
        config = dataclasses.replace(row, num_classes=compare(file, row).classes)
        if image_size is None:
            _check_card(file, name, config)
            _check_grid(file, config)
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
    return name, config


def _only_fitting(file: WeightFile) -> str:
    fitting = fitting_models(file)
    if len(fitting) != 1:
        raise ValueError(
            f"name the model of {file.source}, with --model=NAME or in Python with "
            f"create_model(NAME, weights=...), for it fits "
            f"{' and '.join(fitting) or 'none of those known'}"
        )
    return fitting[0]


def _check_card(file: WeightFile, name: str, config: zoo.ModelConfig) -> None:
    """Refuses a model that does not fit where the card names another one: no image size helps."""
    if file.card is not None and compare(file, config).problems:
        raise ValueError(
            f"{file.source} does not fit {name}: its card says that it holds a "
            f"{file.card['model']}. Leave out --model, or in Python use load_model(...)"
        )


def _check_grid(file: WeightFile, config: zoo.ModelConfig) -> None:
    """Refuses to guess the image size of positions that are not for the model's own.

    Several sizes have the same grid, since the last pixels short of a patch go unseen.
    """
    grid = position_grid(file, config)
    if grid is None or grid == config.grids[0]:
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
