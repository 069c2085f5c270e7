"""Preparation of TFDS data sets for random access, as ArrayRecord.

TFDS prepares a set as a whole and begins anew after an interruption. A set that is prepared as
TFRecord is converted beside its old files, shard by shard: finished shards are kept. TFDS's own
converter (`tfds convert_format`) cannot be imported without Apache Beam, and does not notice
shards that were cut short. docs/data.md says which files ImageNet needs, how much disk and time.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters
from tqdm import tqdm

from pit_jax.data.digits import prepare_digits
from pit_jax.data.sources import find_opener, known_names
from pit_jax.data.tfds_sets import RANDOM_ACCESS, prepare_command, registered_builder

logger = logging.getLogger(__name__)

# Archives that may not be redistributed, under the names that TFDS expects.
MANUAL_FILES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
ANEW = "prepare the set anew in another --data_dir"


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
    """Prepares or converts a data set and returns its folder; a set that is ready is left alone.

    Args:
      name: a TFDS set, or "digits".
      data_dir: where it is written; None for TFDS's default (digits: the user's cache).
      manual_dir: folder of the archives that TFDS may not download; None for downloads/manual in
        data_dir.

    Raises:
      ValueError: no such set, missing archives, a damaged shard, a folder that cannot be written.
    """
    if name != "digits" and find_opener(name):
        raise ValueError(f"{name} needs no preparation: use it as config.data.name")
    if name == "digits" and data_dir is None:
        return str(prepare_digits().data_path)
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    builder = registered_builder(name, str(root), known_names())
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f".{re.sub('[/:]', '-', name)}.lock"):
            if builder.is_prepared():
                _convert_if_needed(tfds.builder_from_directory(builder.data_path))
            else:
                archives = Path(manual_dir).expanduser() if manual_dir else None
                _prepare(name, builder, root, archives, data_dir)
    except OSError as error:
        raise ValueError(
            f"cannot prepare {name} in {root}: {error}; make room there, or choose another "
            "--data_dir, and start again"
        ) from error
    return str(builder.data_path)


def _prepare(
    name: str,
    builder: tfds.core.DatasetBuilder,
    root: Path,
    archives: Path | None,
    data_dir: str | None,
) -> None:
    folder = archives or root / "downloads" / "manual"
    _check_manual_files(name, folder, data_dir)
    # Not removed here: another process may be writing it at this moment.
    for leftover in sorted(Path(builder.data_path).parent.glob("incomplete.*")):
        logger.warning(
            "%s is left of a preparation that was killed; remove it, unless it is still running",
            leftover,
        )
    # TFDS reports its progress partly on standard output, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(
            download_dir=str(root / "downloads"),
            download_config=tfds.download.DownloadConfig(manual_dir=str(folder)),
            file_format=RANDOM_ACCESS,
        )


def _check_manual_files(name: str, folder: Path, data_dir: str | None) -> None:
    wanted = MANUAL_FILES.get(re.split("[/:]", name)[0], ())
    missing = [file for file in wanted if not (folder / file).is_file()]
    if not missing:
        return
    names = sorted(path.name for path in folder.glob("[!.]*"))[:5]
    found = ", ".join(names) or ("nothing" if folder.is_dir() else "no such folder")
    raise ValueError(
        f"looked in {folder} for {', '.join(wanted)}, found {found}; get {', '.join(missing)} from "
        f"the set's own site, then run: {prepare_command(name, data_dir, '--manual_dir=FOLDER')}"
    )


def _convert_if_needed(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the records of a prepared set again as ArrayRecord and adds the format to its
    description. The old files stay, and stay readable.

    Raises:
      ValueError: a shard cannot be read, or holds another number of records than described.
    """
    if RANDOM_ACCESS in builder.info.available_file_formats():
        logger.info("%s is ready; nothing to do", builder.data_path)
        return
    for split in builder.info.splits.values():
        template = split.filename_template.replace(filetype_suffix=RANDOM_ACCESS.file_suffix)
        targets = split.replace(filename_template=template).filepaths
        shards = zip(split.filepaths, targets, split.shard_lengths, strict=True)
        for shard, target, records in tqdm(
            shards, desc=f"converting {split.name}", total=len(targets), unit="shard"
        ):
            if not target.is_file():
                _convert_shard(builder.info.file_format, shard, target, records)
    builder.info.add_alternative_file_format(RANDOM_ACCESS.value)
    builder.info.write_dataset_info_json(builder.data_path)
    # Left by a conversion that was killed.
    for path in builder.data_path.iterdir():
        if tfds.core.utils.is_incomplete_file(path):
            path.unlink()


def _convert_shard(
    stored_as: tfds.core.FileFormat, shard: Path, target: Path, records: int
) -> None:
    adapter = file_adapters.ADAPTER_FOR_FORMAT[RANDOM_ACCESS]
    # Renamed to `target` when complete, so that every file of that name is whole.
    with tfds.core.utils.incomplete_file(target) as unfinished:
        adapter.write_examples(unfinished, enumerate(_records(stored_as, shard)))
        written = adapter.num_examples(unfinished)
        if written != records:
            raise ValueError(
                f"{shard} holds {written} records, expected {records}: it is damaged; {ANEW}"
            )


def _records(stored_as: tfds.core.FileFormat, shard: Path) -> Iterator[bytes]:
    adapter = file_adapters.ADAPTER_FOR_FORMAT[stored_as]
    try:
        yield from adapter.make_tf_data(str(shard)).as_numpy_iterator()
    # TensorFlow raises a different exception for every kind of damage.
    except Exception as error:
        raise ValueError(f"cannot read {shard}: {error}; {ANEW}") from error
