"""Stored images with random access: what a data set looks like to the pipeline.

TFDS sets are read as ArrayRecord through `tfds.data_source`, without TensorFlow. An example is the
encoded image and its label; decoding belongs to the pipeline's threads. Folders of images
(pit_jax.data.folders) look the same.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from pit_jax.data import folders
from pit_jax.data.digits import Digits
from pit_jax.data.examples import Example, Source
from pit_jax.errors import suggestion
from pit_jax.files import cache_dir

RANDOM_ACCESS = tfds.core.FileFormat.ARRAY_RECORD
# TFDS then hands out images as the bytes of their files.
ENCODED = {"image": tfds.decode.SkipDecoding()}


def open_source(name: str, split: str, data_dir: str | None = None) -> Source:
    """Opens a split for reading; the digits are prepared first where they are not yet.

    Args:
      name: "digits", "synthetic", "folder:/path" (a directory per class), or a TFDS
        classification set such as "imagenet2012".
      split: a split of that set; TFDS slices such as "train[:1%]" work. Of a folder, a sub-folder
        such as "train" or "val"; "all" where it has none.
      data_dir: where TFDS keeps it; None for TFDS's default, and for the digits a folder in the
        user's cache.

    Raises:
      ValueError: no such set, split or folder, an empty one, a set that is not prepared as
        ArrayRecord, one without images and labels. The message says where it looked, what it
        found and what to run.
    """
    if name == "synthetic":
        return Source(f"synthetic/{split}", SyntheticImages(), SyntheticImages.num_classes)
    if name.startswith(folders.PREFIX):
        files = folders.FolderImages(name.removeprefix(folders.PREFIX), split)
        return Source(f"{name}/{split}", files, len(files.classes))
    builder = prepare_digits(data_dir) if name == "digits" else _prepared_builder(name, data_dir)
    features = builder.info.features
    if features is None or "image" not in features or "label" not in features:
        raise ValueError(f"TFDS set {name!r} has no 'image' and 'label' features: {features}")
    if not isinstance(features["label"], tfds.features.ClassLabel):
        raise ValueError(
            f"the labels of TFDS set {name!r} are {features['label']}, not classes: choose a set "
            "for classification"
        )
    base_split = split.split("[", maxsplit=1)[0]
    if base_split not in builder.info.splits:
        known = list(builder.info.splits)
        raise ValueError(
            f"{name} has no split {base_split!r}{suggestion(base_split, known)}: looked in "
            f"{builder.data_path}, found {', '.join(known)}; choose one of these"
        )
    _check_files(name, builder, base_split)
    examples = builder.as_data_source(split, decoders=ENCODED)
    return Source(f"{name}/{split}", examples, features["label"].num_classes)


def _check_files(name: str, builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Refuses a split of which files are missing, that would be missed in the middle of training.

    Raises:
      ValueError: naming the first one.
    """
    files = [Path(path) for path in builder.info.splits[split].filepaths]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{name}/{split} is not complete: looked in {builder.data_path}, found "
            f"{len(files) - len(missing)} of {len(files)} files, not {missing[0].name}; copy them "
            "again, or remove the folder and run: "
            f"python -m pit_jax.cli.prepare {name}"
        )


def prepare_digits(data_dir: str | None = None) -> Digits:
    """The digits' TFDS builder, prepared once; processes that start together wait for the first."""
    root = Path(data_dir).expanduser() if data_dir else cache_dir() / "datasets"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / "digits.lock"):
            builder = Digits(data_dir=str(root), file_format="array_record")
            with _quiet():
                builder.download_and_prepare()
    except OSError as error:
        raise ValueError(
            f"cannot prepare the digits in {root}: {error}; set data_dir or $PIT_JAX_CACHE to a "
            "folder that can be written"
        ) from error
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's progress, bars and lines, away from the results on standard output and from
    error messages; preparing the digits takes a second.
    """
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def registered_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a set, prepared or not.

    Raises:
      ValueError: a set that TFDS does not know; the message has the closest name. Or a path.
    """
    path = re.search("(?:^|:)([./~].*)", name)
    if path:
        raise ValueError(
            f"{name!r} is no data set; for a folder of images write {folders.PREFIX}{path[1]}"
        )
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["digits", "synthetic", *tfds.list_builders()]
        raise ValueError(
            f"unknown data set {name!r}{suggestion(name, known)}; for a folder of images write "
            "folder:/path"
        ) from error


def _prepared_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    where = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    prepare = f"python -m pit_jax.cli.prepare {name}" + (
        f" --data_dir={data_dir}" if data_dir else ""
    )
    builder = registered_builder(name, data_dir)
    if not builder.is_prepared():
        raise ValueError(
            f"{name} is not prepared: looked in {where}, found {_versions(where, name)}; run: "
            f"{prepare}"
        )
    # Of the formats stored beside the first, only the description on the disk tells.
    builder = tfds.builder_from_directory(builder.data_path)
    if RANDOM_ACCESS not in builder.info.available_file_formats():
        raise ValueError(
            f"{name} cannot be read in random order: looked in {builder.data_path}, found it "
            f"stored as {builder.info.file_format.value}, expected {RANDOM_ACCESS.value}; to "
            f"convert it, run: {prepare}"
        )
    return builder


def _versions(where: Path, name: str) -> str:
    """What there is of a TFDS set, for messages."""
    try:
        found = sorted(path.name for path in (where / name).iterdir())
    except FileNotFoundError:
        return f"no folder {name!r}" if where.is_dir() else "no such folder"
    except OSError as error:
        return f"no directory that can be read ({error.strerror})"
    return f"only {name}/ with {', '.join(found) or 'nothing'} in it"


class SyntheticImages:
    """Fixed random pictures with labels: exercises the whole path where there is no data."""

    num_classes = 1000
    size = (256, 256)

    def __init__(self, examples: int = 1280):
        self._examples = examples

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(self.size, Image.Resampling.BICUBIC).save(file, "JPEG")
        return {"image": file.getvalue(), "label": int(rng.integers(self.num_classes))}
