"""Prepares a TFDS data set for reading in random order, as ArrayRecord.

    python -m pit_jax.cli.prepare NAME [--data_dir=DIR] [--manual_dir=DIR]

A set is prepared split by split, and one that is prepared as TFRecord already is converted beside
its old files, shard by shard. What is done is kept, so that starting again after an interruption
does the rest. docs/data.md says which files ImageNet needs, how much disk and how much time.
"""

import contextlib
import inspect
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import tensorflow_datasets as tfds
from tqdm import tqdm

from pit_jax.data.folders import PREFIX
from pit_jax.data.sources import RANDOM_ACCESS, prepare_digits, registered_builder

logger = logging.getLogger(__name__)

# Sets whose files nobody may redistribute, with the names TFDS knows these by.
MANUAL_FILES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
    """Prepares or converts a data set; returns its folder. One that is ready is left alone.

    Args:
      name: a TFDS set, or "digits".
      data_dir: where it goes; None for TFDS's default (digits: the user's cache).
      manual_dir: where files that TFDS may not download lie; None for downloads/manual in data_dir.

    Raises:
      ValueError: no such set, missing files, a folder that cannot be written.
    """
    if name == "synthetic" or name.startswith(PREFIX):
        raise ValueError(f"{name} needs no preparation: use it as config.data.name")
    if name == "digits" and data_dir is None:
        return str(prepare_digits().data_path)
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    builder = registered_builder(name, str(root))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f".{re.sub('[/:]', '-', name)}.lock"):
            _make_ready(name, builder, root, manual_dir, data_dir)
    except OSError as error:
        raise ValueError(
            f"cannot prepare {name} in {root}: {error}; make room there, or choose another "
            "--data_dir, and start again"
        ) from error
    return str(builder.data_path)


def _make_ready(
    name: str,
    builder: tfds.core.DatasetBuilder,
    root: Path,
    manual_dir: str | None,
    data_dir: str | None,
) -> None:
    if not builder.is_prepared():
        folder = Path(manual_dir).expanduser() if manual_dir else root / "downloads" / "manual"
        _check_manual_files(name, folder, data_dir)
        # TFDS tells its progress partly on standard output, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            _prepare(name, builder, root, tfds.download.DownloadConfig(manual_dir=str(folder)))
        return
    stored = tfds.builder_from_directory(builder.data_path)
    if RANDOM_ACCESS not in stored.info.available_file_formats():
        convert(stored)
    else:
        logger.info("%s is ready; nothing to do", builder.data_path)


def _prepare(name: str, builder: tfds.core.DatasetBuilder, root: Path, config: Any) -> None:
    """Prepares a set split by split; splits that are done stay done when this is interrupted."""
    parts = root / f".splits.{re.sub('[/:]', '-', name)}"
    options = {
        "download_dir": str(root / "downloads"),
        "download_config": config,
        "file_format": RANDOM_ACCESS,
    }

    def generate_splits(downloads: Any, _: Any) -> list[Any]:
        infos = []
        for split in _by_split(builder._split_generators(downloads)):
            part = _only_split(name, split, parts / split)
            if not part.is_prepared():
                part.download_and_prepare(**options)
            info = part.info.splits[split]
            for file in info.filepaths:
                _link(Path(file), Path(builder.data_dir) / Path(file).name)
            infos.append(info.replace(filename_template=builder._get_filename_template(split)))
        return infos

    plain = isinstance(builder, tfds.core.GeneratorBasedBuilder)
    # A set made by one Beam pipeline is made as a whole.
    if plain and "pipeline" not in inspect.signature(builder._split_generators).parameters:
        # What TFDS has written of a split when it is killed outright is of no use to it.
        for leftover in parts.rglob("incomplete.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        builder._generate_splits = generate_splits
    builder.download_and_prepare(**options)
    shutil.rmtree(parts, ignore_errors=True)


def _only_split(name: str, split: str, folder: Path) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a set of which there is but one split."""
    builder = registered_builder(name, str(folder))
    all_splits = builder._split_generators

    def only(downloads: Any) -> Any:
        generators = all_splits(downloads)
        one = _by_split(generators)[split]
        return {split: one} if isinstance(generators, dict) else [one]

    builder._split_generators = only
    return builder


def _by_split(generators: Any) -> dict[str, Any]:
    """What makes each split; older sets, such as ImageNet, list it."""
    if isinstance(generators, dict):
        return generators
    return {str(generator.name): generator for generator in generators}


def _link(file: Path, target: Path) -> None:
    """The file under another name as well, in no time where the disk knows hard links."""
    try:
        target.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, target)


def _check_manual_files(name: str, folder: Path, data_dir: str | None) -> None:
    wanted = MANUAL_FILES.get(re.split("[/:]", name)[0], ())
    missing = [file for file in wanted if not (folder / file).is_file()]
    if not missing:
        return
    names = sorted(path.name for path in folder.glob("[!.]*"))[:5]
    found = ", ".join(names) or ("nothing" if folder.is_dir() else "no such folder")
    again = f"python -m pit_jax.cli.prepare {name} --manual_dir=FOLDER" + (
        f" --data_dir={data_dir}" if data_dir else ""
    )
    raise ValueError(
        f"looked in {folder} for {', '.join(wanted)}, found {found}; get {', '.join(missing)} from "
        f"the set's own site, then run: {again}"
    )


def convert(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the records of a prepared set once more, as ArrayRecord, and notes that in its
    description. The old files stay, and stay readable.

    Raises:
      ValueError: a shard with another number of records than the set's description says.
    """
    for split in builder.info.splits.values():
        template = split.filename_template.replace(filetype_suffix=RANDOM_ACCESS.file_suffix)
        targets = split.replace(filename_template=template).filepaths
        shards = zip(split.filepaths, targets, split.shard_lengths, strict=True)
        for shard, target, records in tqdm(
            shards, desc=f"converting {split.name}", total=len(targets), unit="shard"
        ):
            if not Path(target).is_file():
                _convert_shard(builder, Path(shard), Path(target), records)
    builder.info.add_alternative_file_format(RANDOM_ACCESS.value)
    builder.info.write_dataset_info_json(builder.data_path)


def _convert_shard(
    builder: tfds.core.DatasetBuilder, shard: Path, target: Path, records: int
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    unfinished = target.with_name(f"unfinished.{target.name}")
    writer = ArrayRecordWriter(str(unfinished), "group_size:1")
    written = 0
    try:
        for record in _records(builder, shard):
            writer.write(record)
            written += 1
    finally:
        writer.close()
    if written != records:
        unfinished.unlink()
        raise ValueError(
            f"{shard} holds {written} records, expected {records}: it is damaged; prepare the set "
            "anew in another --data_dir"
        )
    # Only now does it bear its name: what bears it is whole.
    unfinished.replace(target)


def _records(builder: tfds.core.DatasetBuilder, shard: Path) -> Iterator[bytes]:
    from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT

    adapter = ADAPTER_FOR_FORMAT[builder.info.file_format]
    try:
        yield from adapter.make_tf_data(str(shard)).as_numpy_iterator()
    # TensorFlow has an exception of its own for every kind of damage.
    except Exception as error:
        raise ValueError(
            f"cannot read {shard}: {error}; prepare the set anew in another --data_dir"
        ) from error
