"""Preparation and conversion of data sets."""

import io
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pit_jax.data import prepare, sources, tfds_sets
from pit_jax.data.digits import Digits
from pit_jax.data.source import Source


@pytest.fixture(scope="module")
def tfrecord(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tfrecord")
    Digits(data_dir=str(root), file_format="tfrecord").download_and_prepare()
    return root


@pytest.fixture
def root(tfrecord: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tfrecord, tmp_path / "copy"))


def content(source: Source) -> list[tuple[bytes, int]]:
    examples = (source.examples[index] for index in range(len(source)))
    return [(example["image"], int(example["label"])) for example in examples]


def opened(root: Path) -> Source:
    return tfds_sets.open_prepared(Digits(data_dir=str(root)), "digits", "test")


def test_another_format_is_refused_and_converted(root: Path):
    message = r"looked in .*, found it stored as tfrecord, expected array_record; .* run: python -m"
    with pytest.raises(ValueError, match=message):
        opened(root)
    folder = Path(prepare.prepare("digits", str(root)))
    assert content(opened(root)) == content(sources.open_source("digits", "test"))
    assert (folder / "digits-test.tfrecord-00000-of-00001").is_file()


def test_a_conversion_goes_on_where_it_was(root: Path, capfd: pytest.CaptureFixture[str]):
    description = next(root.rglob("dataset_info.json"))
    before = description.read_text()
    whole = Path(prepare.prepare("digits", str(root)))
    shards = {path: path.stat().st_mtime_ns for path in whole.glob("*array_record*")}
    assert len(shards) == 2
    assert prepare.prepare("digits", str(root)) == str(whole)
    # The state after an interruption: one shard done, one begun, the description unchanged.
    done, begun = sorted(shards)
    begun.rename(begun.with_name(f"incomplete.{'0' * 32}.{begun.name}"))
    description.write_text(before)
    prepare.prepare("digits", str(root))
    assert done.stat().st_mtime_ns == shards[done]
    assert not list(whole.glob("incomplete*"))
    assert len(content(opened(root))) == 360
    assert "converting train" in capfd.readouterr().err


def test_an_interrupted_preparation_leaves_nothing_and_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generate, made = Digits._generate_examples, []

    def interrupted(self, pixels, labels, indices):
        made.append(len(indices))
        for count, example in enumerate(generate(self, pixels, labels, indices)):
            if len(made) == 2 and count == 100:
                raise KeyboardInterrupt
            yield example

    monkeypatch.setattr(Digits, "_generate_examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("digits", str(tmp_path))
    assert not Digits(data_dir=str(tmp_path)).is_prepared()
    assert list((tmp_path / "digits").iterdir()) == []
    prepare.prepare("digits", str(tmp_path))
    # Both splits, in both attempts.
    assert made == [1437, 360, 1437, 360]
    for split in ("train", "test"):
        source = sources.open_source("digits", split, str(tmp_path))
        assert content(source) == content(sources.open_source("digits", split))


def test_what_a_killed_preparation_leaves_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    leftover = tmp_path / "digits" / "incomplete.ABC_1.0.0"
    leftover.mkdir(parents=True)
    prepare.prepare("digits", str(tmp_path))
    assert f"{leftover} is left of a preparation that was killed; remove it" in caplog.text
    assert len(sources.open_source("digits", "train", str(tmp_path))) == 1437


def test_a_damaged_shard_is_named(root: Path):
    shard = next(root.rglob("*train.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"(cannot read|holds) .*anew in another --data_dir"):
        prepare.prepare("digits", str(root))
    assert not list(root.rglob("*train.array_record*"))


def test_what_is_no_tfds_set_needs_no_preparation(tmp_path: Path):
    for name in ("synthetic", f"folder:{tmp_path}"):
        with pytest.raises(ValueError, match="needs no preparation: use it as config"):
            prepare.prepare(name)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's two archives in miniature: four images of two classes, and one."""
    root = tmp_path_factory.mktemp("archives")
    classes = []
    for name in ("n01440764", "n01443537"):
        files = [(f"{name}_{number}.JPEG", jpeg(len(classes) + number)) for number in (1, 2)]
        classes.append((f"{name}.tar", archive(files)))
    (root / "ILSVRC2012_img_train.tar").write_bytes(archive(classes))
    validation = [("ILSVRC2012_val_00000001.JPEG", jpeg(9))]
    (root / "ILSVRC2012_img_val.tar").write_bytes(archive(validation))
    return root


def jpeg(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 16), (25 * level, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def archive(files: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def test_imagenet_from_its_archives(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """TFDS's own builder prepares them; it checks neither the number of images nor their sizes."""
    monkeypatch.setattr("tensorflow_datasets.core.utils.has_sufficient_disk_space", enough)
    folder = prepare.prepare("imagenet2012", str(tmp_path), str(imagenet))
    assert Path(folder) == tmp_path / "imagenet2012" / "5.1.0"
    train = sources.open_source("imagenet2012", "train", str(tmp_path))
    assert (len(train), train.num_classes) == (4, 1000)
    found = {
        example["file_name"].decode(): example
        for example in map(train.examples.__getitem__, range(4))
    }
    assert {name: example["label"] for name, example in found.items()} == {
        "n01440764_1.JPEG": 0,
        "n01440764_2.JPEG": 0,
        "n01443537_1.JPEG": 1,
        "n01443537_2.JPEG": 1,
    }
    # The bytes of the file: nothing was encoded again.
    assert found["n01443537_2.JPEG"]["image"] == jpeg(3)
    assert len(sources.open_source("imagenet2012", "validation", str(tmp_path))) == 1


def enough(*_: object, **__: object) -> bool:
    """Replaces TFDS's check of the disk: a tiny set needs no 300 GB."""
    return True


def test_missing_archives_are_named(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"looked in .*manual for ILSVRC2012_img_train\.tar, .* fo"
    ):
        prepare.prepare("imagenet2012", str(tmp_path))
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(ValueError, match=r"found ILSVRC2012_img_val\.tar; get ILSVRC2012_img_tra"):
        prepare.prepare("imagenet2012", str(tmp_path), str(tmp_path))
    again = f"prepare imagenet2012 --manual_dir=FOLDER --data_dir={tmp_path}"
    with pytest.raises(ValueError, match=f"{re.escape(again)}$"):
        prepare.prepare("imagenet2012", str(tmp_path))
