"""Tables that map the entries of a torch state dict to our parameters, and the parts to write one.

A row holds a parameter's path, its name in every torch layout, and the order of the torch axes that
gives our axes. Rows only permute axes, so each has an exact inverse, and the same table writes the
torch file. A family that torch has gives a `Table` for each of its configurations.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from pit_jax.errors import suggestion
from pit_jax.models.parameters import BATCH_STATS

Shape = tuple[int, ...]

# The layout of our own files: entries under the parameters' paths, axes as in the modules.
OURS = "pit_jax"

# Orders of torch's axes; () leaves them alone.
LINEAR = (1, 0)  # (out, in) -> (in, out)
SEQUENCE_CONVOLUTION = (2, 1, 0)  # (out, in, length) -> (length, in, out)
CONVOLUTION = (2, 3, 1, 0)  # (out, in / groups, height, width) -> (height, width, in, out)
MAP = (0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: our `path`, its torch `names` by layout, and torch's axes in our order."""

    path: str
    names: Mapping[str, str]
    axes: tuple[int, ...] = ()

    def name(self, layout: str) -> str:
        """The parameter's name in a file of this layout."""
        return self.path if layout == OURS else self.names[layout]

    def read(self, value: np.ndarray, layout: str) -> np.ndarray:
        """Turns a file's array into ours."""
        return value.transpose(self.axes) if self.axes and layout != OURS else value

    def write(self, value: np.ndarray, layout: str) -> np.ndarray:
        """Turns our array into a file's; the inverse of `read`."""
        return value.transpose(self._inverse) if self.axes and layout != OURS else value

    def file_shape(self, shape: Shape, layout: str) -> Shape:
        """The shape in a file of a parameter that has `shape` here."""
        if not self.axes or layout == OURS:
            return shape
        return tuple(shape[axis] for axis in self._inverse)

    def our_shape(self, shape: Shape, layout: str) -> Shape:
        """The shape here of a parameter that has `shape` in a file; the inverse of `file_shape`."""
        if len(shape) != len(self.axes) or layout == OURS:
            return shape
        return tuple(shape[axis] for axis in self.axes)

    @property
    def _inverse(self) -> tuple[int, ...]:
        return tuple(self.axes.index(axis) for axis in range(len(self.axes)))


@dataclasses.dataclass(frozen=True)
class Position:
    """Learned positions that follow the image size.

    Attributes:
      path: of the parameter, a map (1, H, W, C) or a sequence (1, prefix + entries, C).
      prefix: entries of class tokens that a sequence begins with; None for a map.
      run: neighbouring patches, in row-major order, that an entry of a sequence stands for; those
        short of a whole run have none.
    """

    path: str
    prefix: int | None = None
    run: int = 1

    def describes(self, shape: Shape, grid: tuple[int, int]) -> bool:
        """Whether positions of this shape are those of such a grid of patches; any map may be."""
        if self.prefix is None:
            return len(shape) == 4 and min(shape) > 0
        height, width = grid
        return len(shape) == 3 and shape[1] == self.prefix + height * width // self.run


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one architecture, in the order of a state dict of the first layout.

    Attributes:
      layouts: names of the torch layouts that every row has a name in; () of a network that torch
        does not have.
      body: a row per parameter, but for the heads'.
      head: the rows of the classifiers, those of the class token first, also of a configuration
        without classes, to know a head where there should be none. The first row whose path ends in
        "/bias" tells the number of classes.
      positions: those that follow the image size, if any; the first has an entry per patch, which
        tells the grid of a file.
    """

    layouts: tuple[str, ...]
    body: tuple[Row, ...]
    head: tuple[Row, ...]
    positions: tuple[Position, ...] = ()

    def by_name(self, layout: str, *, with_head: bool = True) -> dict[str, Row]:
        """The rows by their names in a file of this layout."""
        return {row.name(layout): row for row in self.body + (self.head if with_head else ())}

    def ignored(self, layout: str) -> set[str]:
        """Entries of torch files that are neither read nor written: how many batches a batch
        normalisation has seen. No figure depends on it, and torch starts from 0 without it.
        """
        means = (name for name in self.by_name(layout) if name.endswith("running_mean"))
        return {f"{name.removesuffix('running_mean')}num_batches_tracked" for name in means}

    def recognise(self, names: Iterable[str]) -> str:
        """The layout that most of a file's `names` belong to."""
        names = set(names)
        known = {
            layout: len(names & self.by_name(layout).keys()) for layout in (*self.layouts, OURS)
        }
        return max(known, key=lambda layout: known[layout])

    def check_layout(self, layout: str) -> None:
        """Refuses a torch layout that the family does not have."""
        if not self.layouts:
            raise ValueError("there is no torch layout of this model: only our own files hold it")
        if layout not in self.layouts:
            raise ValueError(
                f"unknown layout {layout!r}{suggestion(layout, self.layouts)}; there are "
                f"{', '.join(self.layouts)}"
            )


def own_names(paths: Iterable[str]) -> Table:
    """The table of a network that torch does not have: every parameter under its path.

    Modules named "head" or "head_*" are the heads.

    Args:
      paths: paths of all parameters, those of a head included.
    """
    rows = [Row(path, {}) for path in paths]
    head = [row for row in rows if row.path.split("/")[0].split("_")[0] == "head"]
    return Table((), tuple(row for row in rows if row not in head), tuple(head))


def _module(
    path: str, names: Mapping[str, str], axes: tuple[int, ...], kernel: str
) -> tuple[Row, ...]:
    """Weight and bias of one torch module; the weight is called `kernel` here."""
    return (
        Row(f"{path}/{kernel}", {layout: f"{name}.weight" for layout, name in names.items()}, axes),
        Row(f"{path}/bias", {layout: f"{name}.bias" for layout, name in names.items()}),
    )


def linear(path: str, **names: str) -> tuple[Row, ...]:
    """A linear layer; `names` gives its torch module by layout."""
    return _module(path, names, LINEAR, "kernel")


def convolution(path: str, **names: str) -> tuple[Row, ...]:
    """A convolution with bias, grouped or not; `names` gives its torch module by layout."""
    return _module(path, names, CONVOLUTION, "kernel")


def sequence_convolution(path: str, **names: str) -> tuple[Row, ...]:
    """A convolution along a sequence, with bias; `names` gives its torch module by layout."""
    return _module(path, names, SEQUENCE_CONVOLUTION, "kernel")


def layer_norm(path: str, **names: str) -> tuple[Row, ...]:
    """A LayerNorm; `names` gives its torch module by layout."""
    return _module(path, names, (), "scale")


def batch_norm(path: str, **names: str) -> tuple[Row, ...]:
    """A batch normalisation and its running statistics; `names` gives its torch module by layout.

    The count of batches is no row: `Table.ignored`.
    """
    statistics = (
        Row(
            f"{BATCH_STATS}/{path}/{ours}",
            {layout: f"{name}.{theirs}" for layout, name in names.items()},
        )
        for ours, theirs in (("mean", "running_mean"), ("var", "running_var"))
    )
    return (*_module(path, names, (), "scale"), *statistics)


def bare_convolution(path: str, **names: str) -> tuple[Row, ...]:
    """A convolution without bias, grouped or not; `names` gives its torch module by layout."""
    return convolution(path, **names)[:1]


def transformer_block(path: str, *, reuses_map: bool = False, **names: str) -> tuple[Row, ...]:
    """A pre-norm transformer block with timm's names of its parts; `names` gives its torch module
    by layout.

    Args:
      path: of the block.
      reuses_map: the block has values alone, and the attention map of another one.
      **names: torch's name of the block.
    """

    def parts(part: str) -> dict[str, str]:
        return {layout: f"{name}.{part}" for layout, name in names.items()}

    ours, theirs = ("value", "v") if reuses_map else ("qkv", "qkv")
    return (
        *layer_norm(f"{path}/norm1", **parts("norm1")),
        *linear(f"{path}/attention/{ours}", **parts(f"attn.{theirs}")),
        *linear(f"{path}/attention/proj", **parts("attn.proj")),
        *layer_norm(f"{path}/norm2", **parts("norm2")),
        *linear(f"{path}/mlp/fc1", **parts("mlp.fc1")),
        *linear(f"{path}/mlp/fc2", **parts("mlp.fc2")),
    )
