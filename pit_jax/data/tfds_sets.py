"""Prepared TFDS data sets, read as ArrayRecord through `tfds.data_source`, without TensorFlow."""

import re
from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds

from pit_jax.data.source import Source
from pit_jax.errors import suggestion

RANDOM_ACCESS = tfds.core.FileFormat.ARRAY_RECORD
# Makes TFDS hand out the bytes of image files: the pipeline's threads decode them.
ENCODED = {"image": tfds.decode.SkipDecoding()}


def prepare_command(name: str, data_dir: str | None, *options: str) -> str:
    """Returns the command that prepares a set, for messages."""
    where = [f"--data_dir={data_dir}"] if data_dir else []
    return " ".join(["python -m pit_jax.cli.prepare", name, *options, *where])


def open_tfds(
    name: str, split: str, data_dir: str | None = None, known: Iterable[str] = ()
) -> Source:
    """Opens a split of a TFDS set.

    Args:
      name: TFDS's name of the set.
      split: a split or a slice of one, such as "train[:1%]".
      data_dir: TFDS's folder; None for TFDS's default.
      known: names of other data sets, to suggest for a misspelt one.

    Raises:
      ValueError: as `registered_builder` and `open_prepared`.
    """
    return open_prepared(registered_builder(name, data_dir, known), name, split, data_dir)


def registered_builder(
    name: str, data_dir: str | None, known: Iterable[str] = ()
) -> tfds.core.DatasetBuilder:
    """Returns TFDS's builder of a set, prepared or not.

    Raises:
      ValueError: a set that TFDS does not know, or a path; the message has the closest name, also
        among the other data sets `known`.
    """
    path = re.search("(?:^|:)([./~].*)", name)
    if path:
        raise ValueError(f"{name!r} is no data set; for a folder of images write folder:{path[1]}")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"unknown data set {name!r}{suggestion(name, [*known, *tfds.list_builders()])}; for a "
            "folder of images write folder:/path"
        ) from error


def open_prepared(
    builder: tfds.core.DatasetBuilder, name: str, split: str, data_dir: str | None = None
) -> Source:
    """Opens a split of a set that is prepared as ArrayRecord.

    Args:
      builder: TFDS's builder of the set.
      name: what the configuration calls the set.
      split: a split or a slice of one, such as "train[:1%]".
      data_dir: TFDS's folder, as the user gave it; None for TFDS's default.

    Raises:
      ValueError: the set is not prepared or not as ArrayRecord, is not for classification, lacks
        the split, or lacks files of it.
    """
    builder = _as_random_access(builder, name, data_dir)
    features = builder.info.features
    if features is None or "image" not in features or "label" not in features:
        raise ValueError(f"TFDS set {name!r} has no 'image' and 'label' features: {features}")
    labels = features["label"]
    if not isinstance(labels, tfds.features.ClassLabel):
        raise ValueError(
            f"the labels of TFDS set {name!r} are {labels}, not classes: choose a set for "
            "classification"
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
    return Source(f"{name}/{split}", examples, labels.num_classes, tuple(labels.names))


def _as_random_access(
    builder: tfds.core.DatasetBuilder, name: str, data_dir: str | None
) -> tfds.core.DatasetBuilder:
    """Returns a builder of the files on disk, which are ArrayRecord."""
    if not builder.is_prepared():
        where = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
        raise ValueError(
            f"{name} is not prepared: looked in {where}, found {_versions(where, name)}; run: "
            f"{prepare_command(name, data_dir)}"
        )
    # Only the description on disk knows of formats that were added by a conversion.
    builder = tfds.builder_from_directory(builder.data_path)
    if RANDOM_ACCESS not in builder.info.available_file_formats():
        raise ValueError(
            f"{name} cannot be read in random order: looked in {builder.data_path}, found it "
            f"stored as {builder.info.file_format.value}, expected {RANDOM_ACCESS.value}; to "
            f"convert it, run: {prepare_command(name, data_dir)}"
        )
    return builder


def _versions(where: Path, name: str) -> str:
    """Describes what a folder holds of a TFDS set, for messages."""
    try:
        found = sorted(path.name for path in (where / name).iterdir())
    except FileNotFoundError:
        return f"no folder {name!r}" if where.is_dir() else "no such folder"
    except OSError as error:
        return f"no directory that can be read ({error.strerror})"
    return f"only {name}/ with {', '.join(found) or 'nothing'} in it"


def _check_files(name: str, builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Refuses a split with missing files, which would otherwise end the run in the middle.

    Raises:
      ValueError: files are missing; the message names the first one.
    """
    files = [Path(path) for path in builder.info.splits[split].filepaths]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{name}/{split} is not complete: looked in {builder.data_path}, found "
            f"{len(files) - len(missing)} of {len(files)} files, not {missing[0].name}; copy them "
            f"again, or remove the folder and run: {prepare_command(name, None)}"
        )
