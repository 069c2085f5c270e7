"""Folders of images as a data set, `folder:/path`: a directory per class.

The folder holds either the classes themselves, as one split called "all", or a sub-folder per split
("train", "val", ...) with the classes inside. Labels number the class names in sorted order, over
all splits together, so that splits agree on them. Beside the splits, other directories are ignored
unless the requested split names them.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from pit_jax.data.source import Source
from pit_jax.errors import suggestion

PREFIX = "folder:"
# Usual names of splits; a folder with a directory of one of these names has splits.
SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
VALIDATION = ("val", "valid", "validation")
WHOLE = "all"
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LAYOUT = "put the images into a directory per class, FOLDER/CLASS/*.jpg or FOLDER/train/CLASS/*.jpg"


class NamedExample(TypedDict):
    """The bytes of an image file, its class, and its path."""

    image: bytes
    label: int
    file_name: str


class FolderImages:
    """The images of one split by index, ordered by path.

    Args:
      folder: path of the folder.
      split: a sub-folder ("validation" also finds "val"), or "all" if there are no splits.

    Attributes:
      classes: names of the classes, in the order of the labels.
      absent: names of the classes that have no directory in this split.

    Raises:
      ValueError: a folder that is missing, unreadable or empty, a class without images, or no such
        split. The message says where it looked, what it found and what to do.
    """

    def __init__(self, folder: str, split: str) -> None:
        root = Path(folder).expanduser()
        directory, siblings = _split_folder(root, split)
        self.classes = sorted({name for part in siblings for name in _directories(part)})
        if not _directories(directory):
            raise ValueError(
                f"looked in {directory} for a directory per class, found {_content(directory)}; "
                f"{LAYOUT}"
            )
        self.absent = sorted(set(self.classes).difference(_directories(directory)))
        self._files: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            if name in self.absent:
                continue
            files = sorted(_images(directory / name))
            if not files:
                raise ValueError(
                    f"looked in {directory / name} for images ({', '.join(ENDINGS)}), found "
                    f"{_content(directory / name)}; add images of this class or remove its "
                    "directory"
                )
            self._files += [(file, label) for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> NamedExample:
        """Raises ValueError for a file that cannot be read."""
        file, label = self._files[index]
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise ValueError(
                f"cannot read {file}: {error.strerror}; the file was there when the run started"
            ) from error
        return {"image": data, "label": label, "file_name": file}


def open_folder(name: str, split: str, data_dir: str | None = None) -> Source:
    """Opens a split of "folder:/path"; `data_dir` has no effect.

    Raises:
      ValueError: as `FolderImages`.
    """
    del data_dir
    files = FolderImages(name.removeprefix(PREFIX), split)
    return Source(
        f"{name}/{split}", files, len(files.classes), tuple(files.classes), tuple(files.absent)
    )


def _split_folder(root: Path, split: str) -> tuple[Path, list[Path]]:
    """Returns the split's folder, and the folders of all splits including this one."""
    names = _directories(root)
    if not any(name in SPLIT_NAMES for name in names):
        if split == WHOLE:
            return root, [root]
        raise ValueError(
            f"looked in {root} for a folder {split!r}, found {_content(root)}; without folders "
            f"named train, val or test the only split is {WHOLE!r}"
        )
    alike = [split, *(VALIDATION if split in VALIDATION else ())]
    for name in alike:
        if name in names:
            return root / name, [root / other for other in names if other in (name, *SPLIT_NAMES)]
    raise ValueError(
        f"looked in {root} for a folder {split!r}, found {_content(root)}"
        f"{suggestion(split, names)}; slices such as 'train[:10%]' are for TFDS sets only"
    )


def _directories(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise ValueError(
            f"looked in {folder}, found no directory that can be read ({error.strerror}); check "
            "the path and its permissions"
        ) from error
    return sorted(name for name in found if not name.startswith("."))


def _images(folder: Path) -> Iterator[str]:
    """Yields the paths of the images anywhere below a class's directory."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"looked in {error.filename}, found no directory that can be read ({error.strerror}); "
            "check its permissions"
        ) from error

    for where, _, files in os.walk(folder, onerror=refuse, followlinks=True):
        for name in files:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield os.path.join(where, name)


def _content(folder: Path) -> str:
    """Lists a few of the names in a folder, for messages."""
    return shortened(sorted(os.listdir(folder))) or "nothing"


def shortened(names: Sequence[str]) -> str:
    """Lists the first five names and counts the others, for messages."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
