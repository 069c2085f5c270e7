"""The table of data sets: which function opens the one that `config.data.name` names.

A new kind of data set is a function with the signature of `Opener`, in a file of its own, and one
line in `SOURCES`. A package outside adds its own as an entry point of the group `pit_jax.sources`,
named like a key of the table:

    [project.entry-points."pit_jax.sources"]
    my_images = "my_package.images:open_my_images"

or, in a program of its own, as `sources.SOURCES["my_images"] = open_my_images`.
"""

import importlib.metadata
import logging
from collections.abc import Callable

from pit_jax.data import folders, synthetic
from pit_jax.data.source import Source

logger = logging.getLogger(__name__)

Opener = Callable[[str, str, str | None], Source]
"""Takes the data set's name, the split and `config.data.data_dir`; raises ValueError."""


# TFDS takes a second to import, which other data sets do without.
def _open_digits(name: str, split: str, data_dir: str | None) -> Source:
    from pit_jax.data import digits

    return digits.open_digits(name, split, data_dir)


def _open_tfds(name: str, split: str, data_dir: str | None) -> Source:
    from pit_jax.data import tfds_sets

    return tfds_sets.open_tfds(name, split, data_dir, known=known_names())


# Name, or prefix that ends with a colon -> opener. Any other name is a TFDS set.
SOURCES: dict[str, Opener] = {
    "digits": _open_digits,
    folders.PREFIX: folders.open_folder,
    "synthetic": synthetic.open_synthetic,
}


def _offered() -> importlib.metadata.EntryPoints:
    """Returns the openers that installed packages offer."""
    return importlib.metadata.entry_points(group="pit_jax.sources")


def open_source(name: str, split: str, data_dir: str | None = None) -> Source:
    """Opens a split for reading; the digits are prepared first if they are not yet.

    Args:
      name: "digits", "synthetic", "folder:/path" (a directory per class), a data set of another
        package, or a TFDS classification set such as "imagenet2012".
      split: a split of that set; TFDS slices such as "train[:1%]" work. For a folder, a sub-folder
        such as "train" or "val"; "all" if it has none.
      data_dir: where TFDS keeps the set; None for TFDS's default, and for the digits a folder in
        the user's cache.

    Raises:
      ValueError: no such set, split or folder, an empty one, a set that is not prepared as
        ArrayRecord, one without images and labels. The message says where it looked, what it
        found and what to run.
    """
    return (find_opener(name) or _open_tfds)(name, split, data_dir)


def find_opener(name: str) -> Opener | None:
    """Returns the opener of a data set; None for TFDS's.

    Raises:
      ValueError: another package offers the data set and its opener cannot be imported.
    """
    for key, opener in SOURCES.items():
        if _matches(name, key):
            return opener
    for entry in _offered():
        if _matches(name, entry.name):
            try:
                return entry.load()
            except (ImportError, AttributeError) as error:
                raise ValueError(
                    f"the opener {entry.value} of the data set {name!r} cannot be imported: "
                    f"{error}; repair or remove the package that offers it"
                ) from error
    return None


def _matches(name: str, key: str) -> bool:
    return name.startswith(key) if key.endswith(":") else name == key


def known_names() -> list[str]:
    """Lists the keys of the table and those of other packages, for suggestions."""
    return [*SOURCES, *(entry.name for entry in _offered())]


def check_splits(train: Source, held_out: Source) -> None:
    """Compares the classes of the two splits of a training; warns of classes never trained on.

    Raises:
      ValueError: the splits number their classes differently; the message has the classes that
        one of them lacks.
    """
    ours, theirs = train.class_names, held_out.class_names
    if ours is not None and theirs is not None and ours != theirs:
        odd = sorted(set(ours).symmetric_difference(theirs))
        raise ValueError(
            f"the training and the evaluation split number their classes differently: only one of "
            f"them knows {folders.shortened(odd)}. Give both the same classes; of a folder's, "
            f"those of the splits named {', '.join(folders.SPLIT_NAMES)} are numbered together"
        )
    if train.absent:
        logger.warning(
            "%d of %d classes have no training image: %s",
            *(len(train.absent), train.num_classes, folders.shortened(train.absent)),
        )
